"""Ed25519ph, the prehashed form of Ed25519 (RFC 8032 section 5.1, FIPS 186-5 section 7.8), with an empty context.

The library that does everything else here has no such form; libsodium has.
"""

from nacl.bindings import (
    crypto_sign_ed25519ph_final_create,
    crypto_sign_ed25519ph_final_verify,
    crypto_sign_ed25519ph_state,
    crypto_sign_ed25519ph_update,
)
from nacl.exceptions import BadSignatureError

from kmsfs.errors import AuthenticationFailed

_SIGNATURE_BYTES = 64


def sign_prehashed(seed: bytes, public: bytes, message: bytes) -> bytes:
    """Return the 64-byte signature of a message, which is hashed here with SHA-512. `seed` (secret) and `public` are 32 bytes each."""
    signature: bytes = crypto_sign_ed25519ph_final_create(_hashed(message), seed + public)
    return signature


def verify_prehashed(public: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature of a message, which is hashed here with SHA-512.

    Raises:
        AuthenticationFailed: if it is not one of this message.
    """
    if len(signature) != _SIGNATURE_BYTES:
        raise AuthenticationFailed("signature does not fit")
    try:
        crypto_sign_ed25519ph_final_verify(_hashed(message), signature, public)
    except BadSignatureError as error:
        raise AuthenticationFailed("signature does not fit") from error


def _hashed(message: bytes) -> crypto_sign_ed25519ph_state:
    state = crypto_sign_ed25519ph_state()
    crypto_sign_ed25519ph_update(state, message)
    return state
