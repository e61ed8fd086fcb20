"""Wrapping of key material on its way in: RSAES-OAEP (RFC 8017) and RSA-AES key wrap (PKCS #11 CKM_RSA_AES_KEY_WRAP, RFC 5649).

Source: KMS developer guide, "Encrypt the key material".
"""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
)

from kmsfs.errors import AuthenticationFailed, InvariantBroken

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "RSAES_OAEP_SHA_1": hashes.SHA1(),  # noqa: S303  (AWS's; collisions do not matter to OAEP)
    "RSAES_OAEP_SHA_256": hashes.SHA256(),
    "RSA_AES_KEY_WRAP_SHA_1": hashes.SHA1(),  # noqa: S303
    "RSA_AES_KEY_WRAP_SHA_256": hashes.SHA256(),
}
WRAPPING_ALGORITHMS = tuple(_HASHES)
_AES_KEY_BYTES = 32


def unwrap_imported(private_der: bytes, algorithm: str, wrapped: bytes) -> bytes:
    """Return the material that was wrapped under the public key. Secret.

    Raises:
        AuthenticationFailed: if it was not, or with another algorithm.
    """
    private = load_der_private_key(private_der, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise InvariantBroken("a wrapping key is an RSA key")
    chosen = _HASHES[algorithm]
    oaep = padding.OAEP(padding.MGF1(chosen), chosen, None)
    try:
        if algorithm.startswith("RSAES_OAEP"):
            return private.decrypt(wrapped, oaep)
        size = private.key_size // 8
        key = private.decrypt(wrapped[:size], oaep)
        if len(key) != _AES_KEY_BYTES:
            raise AuthenticationFailed("the wrapping AES key has not 256 bits")
        return aes_key_unwrap_with_padding(key, wrapped[size:])
    except (ValueError, InvalidUnwrap) as error:
        raise AuthenticationFailed("the wrapped key material does not open") from error
