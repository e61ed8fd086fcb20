"""The audit log: every call leaves a record before it is answered."""
