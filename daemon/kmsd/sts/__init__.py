"""Temporary credentials for AWS's own clients."""
