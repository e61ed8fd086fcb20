"""Credentials for systemd's units: the socket of `LoadCredential=ID:/run/kmsd/credentials.sock`."""
