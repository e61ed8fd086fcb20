"""The declarations, one module per family of operations."""
