"""Backups of a realm: one encrypted archive that verifies itself, and the way back."""
