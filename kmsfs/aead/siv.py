"""AES-SIV (RFC 5297) for names, directory ids, symlink targets and attributes: deterministic, authenticated."""

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from kmsfs.errors import AuthenticationFailed, InvariantBroken

SIV_KEY_BYTES = 64
SIV_BYTES = 16


class SivKey:
    """One AES-SIV key of 64 bytes (AES-256)."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        if len(key) != SIV_KEY_BYTES:
            raise InvariantBroken("an AES-SIV key has 64 bytes")
        self._aead = AESSIV(key)

    def seal(self, plain: bytes, aads: Sequence[bytes]) -> bytes:
        """Return tag ‖ ciphertext; `len(plain) + 16` bytes. `plain` is not empty."""
        return self._aead.encrypt(plain, list(aads))

    def open(self, sealed: bytes, aads: Sequence[bytes]) -> bytes:
        """Return the plaintext.

        Raises:
            AuthenticationFailed: if the bytes, the key or the associated data are not right.
        """
        if len(sealed) <= SIV_BYTES:
            raise AuthenticationFailed("sealed bytes are too short")
        try:
            return self._aead.decrypt(sealed, list(aads))
        except InvalidTag as error:
            raise AuthenticationFailed("authentication tag does not match") from error
