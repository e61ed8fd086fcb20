"""Grants: rules that bound them, and the operations on them."""
