"""Ciphertext blob: what Encrypt and GenerateDataKey return (docs/formats/blob-v1.md)."""

import struct
import uuid
from enum import IntEnum
from functools import lru_cache

import msgspec

from kmsfs.errors import InvalidCiphertext
from kmsfs.quantity import KMS_PLAINTEXT_MAX_BYTES
from kmsfs.suites import BlobSuite

BLOB_VERSION = 1
HEAD_BYTES = 24
OVERHEAD_BYTES = 100
MAX_BLOB_BYTES = OVERHEAD_BYTES + KMS_PLAINTEXT_MAX_BYTES
_HEAD = struct.Struct("<BBBB16sI")


@lru_cache(maxsize=4096)
def _text_of(owner: bytes) -> str:
    return str(uuid.UUID(bytes=owner))


class BlobType(IntEnum):
    """What a blob is sealed under."""

    KMS_CIPHERTEXT = 1
    WRAPPED_MATERIAL = 2


_TYPES = {int(kind): kind for kind in BlobType}


class Blob(msgspec.Struct, frozen=True):
    """A parsed blob: `head` names the key, `body` is salt ‖ nonce ‖ commitment ‖ ciphertext ‖ tag."""

    kind: BlobType
    owner: bytes
    term: int
    head: bytes
    body: bytes

    @property
    def key_id(self) -> str:
        """The KMS key's id as text."""
        return _text_of(self.owner)


def make_head(kind: BlobType, owner: bytes, term: int) -> bytes:
    """Return the 24 clear bytes; `owner` is a key's UUID or the realm id, `term` the material's version."""
    return _HEAD.pack(BLOB_VERSION, kind, BlobSuite.KBKDF_AES_256_GCM_COMMIT, 0, owner, term)


def parse_blob(data: bytes) -> Blob:
    """Read a blob's shape; nothing is authenticated yet.

    Raises:
        InvalidCiphertext: if the length, version, type, suite or flags are not known. One text for all.
    """
    if not OVERHEAD_BYTES <= len(data) <= MAX_BLOB_BYTES:
        raise InvalidCiphertext(evidence="blob length")
    version, kind, suite, flags, owner, term = _HEAD.unpack_from(data)
    if version != BLOB_VERSION or flags or suite != BlobSuite.KBKDF_AES_256_GCM_COMMIT or kind not in _TYPES:
        raise InvalidCiphertext(evidence="blob head")
    return Blob(_TYPES[kind], owner, term, data[:HEAD_BYTES], data[HEAD_BYTES:])
