"""Volume sessions: who writes a volume, and which sessions did not end cleanly."""
