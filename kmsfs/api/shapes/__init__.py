"""Request and response types, one module per family."""
