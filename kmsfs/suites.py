"""The enumerated algorithm suites as data. An unknown id is refused, never guessed."""

from dataclasses import dataclass
from enum import IntEnum

from kmsfs.errors import UnsupportedFormat

GCM_NONCE_BYTES = 12
GCM_TAG_BYTES = 16
SIV_OVERHEAD_BYTES = 16
AES_256_BYTES = 32


class BlobSuite(IntEnum):
    """Suites of the ciphertext blob."""

    KBKDF_AES_256_GCM_COMMIT = 1


class FileSuite(IntEnum):
    """Suites of a KF1 file."""

    AES_256_GCM_HKDF_SHA512 = 1


@dataclass(frozen=True, slots=True)
class SuiteFacts:
    """What a suite means, in bytes."""

    summary: str
    key_bytes: int
    nonce_bytes: int
    tag_bytes: int
    commitment_bytes: int


BLOB_SUITES = {
    BlobSuite.KBKDF_AES_256_GCM_COMMIT: SuiteFacts(
        "KBKDF-CTR-HMAC-SHA256, AES-256-GCM, 32-byte commitment", 32, 12, 16, 32
    )
}
FILE_SUITES = {
    FileSuite.AES_256_GCM_HKDF_SHA512: SuiteFacts(
        "HKDF-Expand-SHA512, AES-256-GCM, random nonces, 32-byte commitment", 32, 12, 16, 32
    )
}


def file_suite(number: int) -> FileSuite:
    """Return the file suite with this number.

    Raises:
        UnsupportedFormat: if no such suite exists.
    """
    try:
        return FileSuite(number)
    except ValueError as error:
        raise UnsupportedFormat(f"unknown file suite {number}") from error
