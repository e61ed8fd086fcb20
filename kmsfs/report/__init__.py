"""What there is and who uses it, as one page: keys, principals, volumes, and the audit log over time."""
