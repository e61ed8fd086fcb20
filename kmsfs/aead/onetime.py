"""One-time passwords from time (RFC 6238, TOTP): six digits, SHA-1, 30 seconds, as virtual MFA devices make them."""

import hmac

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

STEP_SECONDS = 30
_DIGITS = 6


def step_at(now: float) -> int:
    """Return the number of the time step at `now`, in seconds since the epoch."""
    return int(now) // STEP_SECONDS


def matching_step(seed: bytes, code: str, steps: range) -> int | None:
    """Return the first of `steps` whose password is `code`, compared in constant time; None if none is. The seed is secret."""
    made = TOTP(seed, _DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303  (RFC 6238; HMAC-SHA-1 is what authenticators compute)
    found = None
    for step in steps:
        same = hmac.compare_digest(made.generate(step * STEP_SECONDS), code.encode())
        if same and found is None:
            found = step
    return found
