"""Audit record bytes: canonical JSON lines with a hash chain (docs/formats/audit-v1.md)."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from kmsfs.errors import AuditChainBroken

GENESIS = "0" * 64
_ENCODER = msgspec.json.Encoder(order="sorted")
_HOLE = msgspec.Raw(b"\0")
_MARKED = b'"mac":\0'
LOG_NAME = "audit.jsonl"
"""The file of a log that is written to; its closed segments lie beside it."""
RETENTION = "AuditRetention"
"""The operation of the record that says before which number (`params.before`) records are removed."""
_NUMBERED = re.compile(r"-(\d{12,19})\Z")
_NUMBER_DIGITS = 12


def segment_name(log_name: str, first: int) -> str:
    """Return what a log's segment is called once it is closed: by the number of its first record."""
    stem, dot, suffix = log_name.rpartition(".")
    return f"{stem}-{first:0{_NUMBER_DIGITS}}{dot}{suffix}"


def segments_among(log_name: str, names: Iterable[str]) -> list[tuple[int, str]]:
    """Return (number of the first record, name) of each closed segment of a log among the names of its folder, oldest first."""
    stem, dot, suffix = log_name.rpartition(".")
    found = []
    for name in names:
        of_log = name.startswith(stem) and name.endswith(dot + suffix)
        numbered = _NUMBERED.match(name[len(stem) : len(name) - len(dot + suffix)]) if of_log else None
        if numbered is not None:
            found.append((int(numbered[1]), name))
    return sorted(found)


def split(record: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return the canonical JSON of a record, cut where its `mac` goes; both parts together are what the chain hashes.

    `record` gets a field `mac`. A zero byte marks the place: JSON has none, as texts have it escaped.
    """
    record["mac"] = _HOLE
    before, _, after = _ENCODER.encode(record).partition(_MARKED)
    # One comma belongs to the field: the one before it, or where it is the first, the one after.
    return (before[:-1], after) if before[-1:] == b"," else (before, after.removeprefix(b","))


def join(before: bytes, after: bytes, mac: bytes) -> bytes:
    """Return the line to store, newline included, of what `split` gave; `mac` is 16 bytes."""
    first = before == b"{"
    left = b"" if first else b","
    right = b"," if first and after != b"}" else b""
    return b'%s%s"mac":"%s"%s%s\n' % (before, left, mac.hex().encode(), right, after)


def parse_line(line: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """Return (record without mac, its canonical bytes, mac).

    Raises:
        AuditChainBroken: if the line is not a canonical record.
    """
    try:
        record = msgspec.json.decode(line)
        mac = bytes.fromhex(record.pop("mac"))
        before, after = split(record)
        if join(before, after, mac) != line:
            raise AuditChainBroken("an audit line is not canonical")
        if type(record["seq"]) is not int or type(record["prev"]) is not str:
            raise AuditChainBroken("an audit line lacks its chain fields")
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise AuditChainBroken("an audit line is not a record") from error
    del record["mac"]
    return record, before + after, mac


def time_of_line(line: bytes) -> float:
    """Return when a record was made, in seconds since the epoch; 0 where the line does not say."""
    try:
        made = msgspec.json.decode(line)["ts"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return 0.0
    return float(made) if isinstance(made, int | float) else 0.0
