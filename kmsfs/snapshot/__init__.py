"""Snapshots of volumes: one file with everything that lies in a cipher directory, encrypted as it is there."""
