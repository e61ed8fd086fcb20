"""The bare `AESGCM.encrypt_into` loop that the core is measured against: no associated data, one buffer."""

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsfs.aead.nonces import Rng


def bare_seal_loop(chunk_bytes: int, rng: Rng) -> Callable[[], int]:
    """Return a function that seals 1 MiB in chunks of `chunk_bytes` with the library alone; it returns the bytes."""
    aead = AESGCM(rng(32))
    total = max(chunk_bytes, 1 << 20)
    plain = memoryview(rng(total))
    out = memoryview(bytearray(chunk_bytes + 16))
    count = total // chunk_bytes

    def once() -> int:
        for index in range(count):
            aead.encrypt_into(rng(12), plain[index * chunk_bytes : (index + 1) * chunk_bytes], None, out)
        return total

    return once
