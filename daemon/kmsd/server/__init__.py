"""Sockets: listen, learn who the peer is, read frames, answer, push events."""
