"""The AES-GCM core: seal and open bytes under one key, in caller-owned buffers.

The only room that imports `cryptography`. Nonces are made here and nowhere else; randomness is injected.
"""
