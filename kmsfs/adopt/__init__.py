"""Take an existing directory into a volume: copy it, and prove that the copy is the same."""
