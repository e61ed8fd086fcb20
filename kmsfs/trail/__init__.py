"""Read the audit log: follow it, ask it in SQL, give it to what reads CloudTrail."""
