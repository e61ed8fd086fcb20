"""Signed digests of the audit log: one line each, chained (docs/formats/audit-v1.md, "Digests")."""

import re
from collections.abc import Callable

import msgspec

from kmsfs.errors import AuditChainBroken

GENESIS = "0" * 64
DIGESTS_NAME = "digests.jsonl"
"""The file of the digests, beside the log."""
_PURPOSE = b"kmsfs/audit-digest/v1\0"
_WITNESSED = re.compile(r"\baudit digest (\d{1,12}) sha256 ([0-9a-f]{64})\b")
_ENCODER = msgspec.json.Encoder(order="sorted")


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one digest says: records `first` up to, not including, `end` of a log are what they were when it was made."""

    number: int
    """From 0 on, without gaps."""
    previous: str
    """SHA-256 of the line of the digest before, hex; 64 zeros first."""
    log: str
    """SHA-256 of the log's first line, hex: a log that was begun anew is another one."""
    first: int
    end: int
    chain: str
    """SHA-256 that the record `end` will name as its previous one, hex."""
    made: float
    """Seconds since the epoch."""
    key: str
    """The public key, hex."""


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digest: Digest
    signature: str


def encode_digest(digest: Digest, sign: Callable[[bytes], bytes]) -> bytes:
    """Return a digest's line, newline included."""
    return _ENCODER.encode(_Signed(digest, sign(_message(digest)).hex())) + b"\n"


def parse_digest(line: bytes) -> tuple[Digest, bytes, bytes]:
    """Return (digest, the bytes that are signed, signature); nothing is verified yet.

    Raises:
        AuditChainBroken: if it is no canonical line.
    """
    try:
        signed = msgspec.json.decode(line, type=_Signed)
        signature = bytes.fromhex(signed.signature)
        bytes.fromhex(signed.digest.key)
    except (msgspec.DecodeError, ValueError) as error:
        raise AuditChainBroken("a line of the digests is no digest") from error
    if encode_digest(signed.digest, lambda _message: signature) != line:
        raise AuditChainBroken("a line of the digests is not canonical")
    return signed.digest, _message(signed.digest), signature


def witness_line(number: int, hashed: str, records: int) -> str:
    """Return what a witness is told of a digest: its number, the SHA-256 of its line, and how many records the log had."""
    return f"audit digest {number} sha256 {hashed} records {records}"


def parse_witness(text: str) -> dict[int, str]:
    """Return the digests that a witness was told of, wherever in its lines: SHA-256 by number.

    Raises:
        AuditChainBroken: if it was told of two that have one number.
    """
    found: dict[int, str] = {}
    for number, hashed in _WITNESSED.findall(text):
        if found.setdefault(int(number), hashed) != hashed:
            raise AuditChainBroken(f"the witness was told of two digests {number}: the log was signed anew")
    return found


def _message(digest: Digest) -> bytes:
    return _PURPOSE + _ENCODER.encode(digest)
