"""A daemon without its root key: how it comes to have none, what it answers then, and how it gets it back."""
