"""Bytes to values and back: no keys, no I/O. Unknown versions, flags and lengths are refused."""
