"""Sealed rows in SQLite: what they mean is in schema.py; who may read them is decided elsewhere."""
