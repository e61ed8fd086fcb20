"""Rows of the freshness records, before they are sealed (docs/formats/freshness-v1.md)."""

import struct
from dataclasses import dataclass

from kmsfs.errors import UnsupportedFormat

FRESHNESS_VERSION = 1
ROW_AAD = b"kmsfs/freshness/file"
FACTS_AAD = b"kmsfs/freshness/facts"
DOUBT_AAD = b"kmsfs/freshness/doubt"
DOUBT = b"\1"
RECORDS_DIR = ".kr"
"""Folder of the cipher directory in which the records of a volume lie that several hosts mount."""
HEAD_BYTES = 32
_ROW = struct.Struct("<Q16s")
_FACTS = struct.Struct("<BQQ32s")
ROW_BYTES = _ROW.size
FACTS_BYTES = _FACTS.size


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file of records says of itself: `since` and `session` are session numbers, `base` is a head of 32 bytes."""

    since: int
    session: int
    base: bytes

    def pack(self) -> bytes:
        """Return the row's bytes."""
        return _FACTS.pack(FRESHNESS_VERSION, self.since, self.session, self.base.ljust(HEAD_BYTES, b"\0"))


def parse_facts(raw: bytes) -> Facts:
    """Return the facts of a row.

    Raises:
        UnsupportedFormat: if it is of another version.
    """
    version = raw[0] if raw else 0
    if version != FRESHNESS_VERSION or len(raw) != FACTS_BYTES:
        raise UnsupportedFormat(f"the freshness records are of version {version}, which is not known")
    _, since, session, base = _FACTS.unpack(raw)
    return Facts(since, session, base)


def pack_row(generation: int, tag: bytes) -> bytes:
    """Return a file's row."""
    return _ROW.pack(generation, tag)


def parse_row(raw: bytes) -> tuple[int, bytes]:
    """Return (generation, tag) of a file's row."""
    generation, tag = _ROW.unpack(raw)
    return generation, tag
