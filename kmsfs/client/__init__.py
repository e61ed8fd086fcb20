"""Speak to kmsd: transport, sessions, boto3-like clients, the data-key provider of the mount."""
