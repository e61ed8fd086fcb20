"""The parameter tree as a file system: each reader sees what is his."""
