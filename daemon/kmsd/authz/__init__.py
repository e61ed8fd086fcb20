"""Decide, purely: who is calling, what policies and grants say, and the one answer with its reason."""
