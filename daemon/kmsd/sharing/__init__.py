"""One state for the daemons of several hosts: take what others write, join them, and let a state be shared."""
