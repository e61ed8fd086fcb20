"""The root key: where it comes from, and the keyring of domain keys that it wraps."""
