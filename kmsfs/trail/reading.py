"""Records of an audit log (docs/formats/audit-v1.md), as they lie there; the chain is `kmsd verify-audit`'s business."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmsfs.errors import AuditChainBroken, StorageError

_POLL_SECONDS = 0.2
_TAIL_BYTES = 1 << 16


def read_records(log: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole record.

    Raises:
        StorageError: if the log cannot be read.
        AuditChainBroken: naming the first line that is no record.
    """
    try:
        with log.open("rb") as stream:
            for number, line in enumerate(stream):
                if line.endswith(b"\n"):
                    yield _record(line, number)
    except OSError as error:
        raise StorageError(
            f"cannot read the audit log {log}: {error.strerror}", hint="it is its owner's: run this as root, or name it with --log"
        ) from error


def last_records(log: Path, count: int) -> list[dict[str, Any]]:
    """Return the last records.

    Raises:
        StorageError, AuditChainBroken: as `read_records`.
    """
    try:
        with log.open("rb") as stream:
            end = stream.seek(0, 2)
            size = _TAIL_BYTES
            while True:
                start = max(0, end - size)
                stream.seek(start)
                lines = stream.read(end - start).split(b"\n")
                if start == 0 or len(lines) > count + 1:
                    break
                size *= 4
    except OSError as error:
        raise StorageError(f"cannot read the audit log {log}: {error.strerror}", hint="run this as root") from error
    whole = lines[:-1] if start == 0 else lines[1:-1]
    return [_record(line, number) for number, line in enumerate(whole[-count:] if count else [])]


def follow_records(log: Path) -> Iterator[dict[str, Any]]:
    """Yield records as they are written, from the end on, for ever; a new log in the place of this one is followed too.

    Raises:
        StorageError, AuditChainBroken: as `read_records`.
    """
    at, inode = log.stat().st_size, log.stat().st_ino
    while True:
        facts = log.stat()
        if facts.st_ino != inode or facts.st_size < at:
            at, inode = 0, facts.st_ino
        if facts.st_size > at:
            with log.open("rb") as stream:
                stream.seek(at)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    at += len(line)
                    yield _record(line, -1)
        time.sleep(_POLL_SECONDS)


def _record(line: bytes, number: int) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        record["seq"], record["op"], record["ts"]
    except (ValueError, KeyError, TypeError) as error:
        raise AuditChainBroken(f"line {number + 1} of the audit log is no record", hint="kmsd verify-audit") from error
    return record


def principal_of(record: dict[str, Any], account: str) -> str:
    """Return who called, as policies name it."""
    return str(record.get("who") or f"arn:kmsfs:iam::{account}:uid/{record.get('uid', '?')}")
