"""Look into encrypted files without mounting them."""
