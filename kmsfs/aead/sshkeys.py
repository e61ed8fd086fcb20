"""Public keys and signatures of key pairs, as AWS KMS has them, in SSH's forms (RFC 4253, RFC 5656, RFC 8332, RFC 8709)."""

import hashlib

from kmsfs.errors import UnsupportedOperation

ALGORITHMS = {
    "ECC_NIST_EDWARDS25519": ("ED25519_SHA_512", "ssh-ed25519"),
    "ECC_NIST_P256": ("ECDSA_SHA_256", "ecdsa-sha2-nistp256"),
    "ECC_NIST_P384": ("ECDSA_SHA_384", "ecdsa-sha2-nistp384"),
    "ECC_NIST_P521": ("ECDSA_SHA_512", "ecdsa-sha2-nistp521"),
    "RSA_2048": ("RSASSA_PKCS1_V1_5_SHA_512", "rsa-sha2-512"),
    "RSA_3072": ("RSASSA_PKCS1_V1_5_SHA_512", "rsa-sha2-512"),
    "RSA_4096": ("RSASSA_PKCS1_V1_5_SHA_512", "rsa-sha2-512"),
}
"""By key spec: the signing algorithm of KMS, and the name of the same in SSH."""


def ssh_public_key(public_key: bytes) -> str:
    """Return a SubjectPublicKeyInfo as SSH's line, without a comment.

    Raises:
        UnsupportedOperation: if SSH has no such keys.
    """
    # Every command of the command line loads this room, and next to none has to do with keys of SSH.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    try:
        loaded = load_der_public_key(public_key)
        return loaded.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise UnsupportedOperation("SSH has no keys of this kind") from error


def dss_numbers(signature: bytes) -> tuple[int, int]:
    """Return r and s of an ECDSA signature in ASN.1 (ANSI X9.62)."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(signature)
    return r, s


def sha512(message: bytes) -> bytes:
    """SHA-512 (FIPS 180-4); 64 bytes."""
    return hashlib.sha512(message).digest()
