"""Ed25519 signatures (RFC 8032) under a key that is derived, not stored."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kmsfs.errors import AuthenticationFailed

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """A private key from a seed of 32 bytes."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()
        """The public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        return self._private.sign(message)


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        AuthenticationFailed: if it is not one of this key over this message, or the key is none.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise AuthenticationFailed("the signature does not match") from error
