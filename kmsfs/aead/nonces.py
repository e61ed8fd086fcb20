"""The only nonce maker: random 96-bit nonces drawn per request, never pooled, never counted.

A counter repeats after a snapshot is restored or a crash loses it; a pool is duplicated by fork. Random nonces
survive all three (NIST SP 800-38D section 8.2.2; security.md section 6.4).
"""

from collections.abc import Callable

from kmsfs.errors import InvariantBroken, LimitExceeded
from kmsfs.suites import GCM_NONCE_BYTES

Rng = Callable[[int], bytes]
"""Returns that many unpredictable bytes; `os.urandom` in production."""


def draw(rng: Rng, count: int) -> bytes:
    """Return `count` fresh nonces as one byte string of 12 * count bytes.

    Raises:
        InvariantBroken: if the generator returns another number of bytes.
    """
    nonces = rng(GCM_NONCE_BYTES * count)
    if len(nonces) != GCM_NONCE_BYTES * count:
        raise InvariantBroken("the random generator returned a wrong number of bytes")
    return nonces


class UsageCounter:
    """Counts seals under one key and refuses past the bound of security.md section 14."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int, used: int = 0) -> None:
        self.limit = limit
        self.used = used

    def spend(self, count: int = 1) -> None:
        """Count `count` more seals.

        Raises:
            LimitExceeded: if that would pass the limit; nothing is counted then.
        """
        if self.used + count > self.limit:
            raise LimitExceeded("this key has reached its usage limit", hint="rotate it")
        self.used += count
