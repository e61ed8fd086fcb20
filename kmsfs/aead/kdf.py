"""Key derivation, with the one table of labels: one key, one purpose.

HKDF-Expand-SHA512 (RFC 5869 section 2.3) from keys that are uniformly random already; HMAC-SHA256 for what KMS keys derive (kmsfs.aead.derived); Argon2id (RFC 9106) for passphrases.
"""

import hashlib
import hmac
from collections.abc import Callable
from enum import Enum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_SHA256 = hashes.SHA256()
_SHA512 = hashes.SHA512()


class Label(Enum):
    """Every purpose a key is derived for, with the length of the derived key in bytes."""

    ROOT_KEK = ("root/kek", 32)
    ROOT_ANCHOR = ("root/anchor", 32)
    ROOT_BACKUP = ("root/backup", 32)
    DOMAIN_STATE = ("domain/state", 32)
    DOMAIN_EKT = ("domain/ekt", 32)
    DOMAIN_INDEX = ("domain/index", 32)
    DOMAIN_ACCUMULATOR = ("domain/accumulator", 32)
    DOMAIN_AUDIT = ("domain/audit", 32)
    DOMAIN_TOKEN = ("domain/token", 32)
    DOMAIN_SESSION = ("domain/session", 64)
    DOMAIN_IMPORT = ("domain/import", 32)
    DOMAIN_DIGEST = ("domain/digest", 32)
    VOLUME_ATTR = ("volume/attr", 64)
    VOLUME_NAME = ("volume/name", 64)
    VOLUME_DIR = ("volume/dir", 64)
    VOLUME_LINK = ("volume/link", 64)
    VOLUME_HOME = ("volume/home", 32)
    VOLUME_CONFIG = ("volume/config", 32)
    VOLUME_EXTRAS = ("volume/extras", 32)
    VOLUME_FRESHNESS = ("volume/freshness", 64)
    VOLUME_LISTING = ("volume/listing", 64)
    FILE_MAP = ("file/map", 32)
    FILE_COMMIT = ("file/commit", 32)
    FILE_CHUNK = ("file/chunk", 32)

    def __init__(self, purpose: str, length_bytes: int) -> None:
        self.purpose = purpose
        self.length_bytes = length_bytes


def derive(key: bytes, label: Label, ids: bytes = b"") -> bytes:
    """Return the key for `label`; `ids` is a fixed-length suffix such as an epoch."""
    info = b"kmsfs/v1/" + label.purpose.encode() + b"\0" + ids
    return HKDFExpand(algorithm=_SHA512, length=label.length_bytes, info=info).derive(key)


def hkdf_extract_sha512(salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract with SHA-512 (RFC 5869 section 2.2); 64 bytes."""
    return hmac.digest(salt, secret, "sha512")


def hkdf_expand_sha512(prk: bytes, info: bytes, length_bytes: int) -> bytes:
    """HKDF-Expand with SHA-512 for formats that are not ours (the AWS Encryption SDK message)."""
    return HKDFExpand(algorithm=_SHA512, length=length_bytes, info=info).derive(prk)


def argon2id(passphrase: bytes, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    """Return a 32-byte key from a passphrase (RFC 9106)."""
    return Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib).derive(
        passphrase
    )


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104); 32 bytes."""
    return hmac.digest(key, message, "sha256")


def keyed_hmac_sha256(key: bytes) -> Callable[[bytes], bytes]:
    """Return `hmac_sha256` of one key, which is prepared once for many messages."""
    prepared = HMAC(key, _SHA256)

    def mac(message: bytes) -> bytes:
        one = prepared.copy()
        one.update(message)
        return one.finalize()

    return mac


def sha256(message: bytes) -> bytes:
    """SHA-256 (FIPS 180-4); 32 bytes."""
    return hashlib.sha256(message).digest()


def equal(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)
