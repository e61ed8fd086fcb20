"""Derived-key AES-256-GCM with a key commitment: how KMS keys encrypt (security.md section 5).

Each message gets its own key from 16 random bytes, so no counter bounds the KMS key's use, and 32 committed
bytes are compared before anything is opened: a ciphertext is valid under one key only.
"""

from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kmsfs.aead.kdf import equal, keyed_hmac_sha256
from kmsfs.aead.nonces import Rng, draw
from kmsfs.errors import AuthenticationFailed, InvariantBroken
from kmsfs.suites import GCM_NONCE_BYTES

LABEL = b"kmsfs/kms/v1"
SALT_BYTES = 16
COMMITMENT_BYTES = 32
BODY_OVERHEAD_BYTES = SALT_BYTES + 12 + COMMITMENT_BYTES + 16

_FIRST, _SECOND = (number.to_bytes(4, "big") + LABEL + b"\0" for number in (1, 2))
_BITS = (64 * 8).to_bytes(4, "big")
Kdf = Callable[[bytes], bytes]
"""Returns 64 bytes that a key and a context determine."""


def kdf_of(key: bytes) -> Kdf:
    """Return the derivation of a key that is in memory."""
    return kdf_by(keyed_hmac_sha256(key))


def kdf_by(mac: Callable[[bytes], bytes]) -> Kdf:
    """Return the derivation of a key by its HMAC-SHA256, wherever the key lies: KBKDF in counter mode, r = 32 (NIST SP 800-108r1, section 4.1)."""
    return lambda context: mac(_FIRST + context + _BITS) + mac(_SECOND + context + _BITS)


def seal_derived(kdf: Kdf, rng: Rng, head: bytes, plain: bytes, context: bytes) -> bytes:
    """Return salt 16 ‖ nonce 12 ‖ commitment 32 ‖ ciphertext ‖ tag 16.

    `head` and everything before the ciphertext are authenticated together with `context`.
    """
    salt = rng(SALT_BYTES)
    derived = kdf(head + salt)
    nonce = draw(rng, 1)
    prefix = salt + nonce + derived[32:]
    return prefix + AESGCM(derived[:32]).encrypt(nonce, plain, head + prefix + context)


def seal_many(kdf: Kdf, rng: Rng, head: bytes, plains: Sequence[bytes], contexts: Sequence[bytes]) -> list[bytes]:
    """Return what `seal_derived` does of each plaintext and its context; what is random of all of them is drawn at once, for this call alone."""
    width = SALT_BYTES + GCM_NONCE_BYTES
    drawn = rng(width * len(plains))
    if len(drawn) != width * len(plains):
        raise InvariantBroken("the random generator returned a wrong number of bytes")
    sealed = []
    for at, (plain, context) in enumerate(zip(plains, contexts, strict=True)):
        salt, nonce = drawn[at * width : at * width + SALT_BYTES], drawn[at * width + SALT_BYTES : (at + 1) * width]
        derived = kdf(head + salt)
        prefix = salt + nonce + derived[32:]
        sealed.append(prefix + AESGCM(derived[:32]).encrypt(nonce, plain, head + prefix + context))
    return sealed


def open_derived(kdf: Kdf, head: bytes, body: bytes, context: bytes) -> bytes:
    """Return the plaintext of what `seal_derived` made.

    Raises:
        AuthenticationFailed: if the key, the commitment, the bytes or the context are not right.
    """
    if len(body) < BODY_OVERHEAD_BYTES:
        raise AuthenticationFailed("sealed bytes are too short")
    derived = kdf(head + body[:SALT_BYTES])
    if not equal(derived[32:], body[28:60]):
        raise AuthenticationFailed("key commitment does not match")
    try:
        return AESGCM(derived[:32]).decrypt(body[16:28], body[60:], head + body[:60] + context)
    except InvalidTag as error:
        raise AuthenticationFailed("authentication tag does not match") from error
