"""Turn file content into envelope-encrypted content, given a data-key provider and a block file. Pure."""
