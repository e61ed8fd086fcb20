"""Records of an audit log (docs/formats/audit-v1.md), as they lie there; the chain is `kmsd verify-audit`'s business."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmsfs.errors import AuditChainBroken, StorageError

_POLL_SECONDS = 0.2
_TAIL_BYTES = 1 << 16
_PATIENCE_LOOKS = 25
"""A log that is missing for this many looks is gone."""


def read_records(log: Path, until: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield every whole record, or those in the first `until` bytes.

    Raises:
        StorageError: if the log cannot be read.
        AuditChainBroken: naming the first line that is no record.
    """
    for number, line in enumerate(read_lines(log, until)):
        yield _record(line, number)


def read_lines(log: Path, until: int | None = None) -> Iterator[bytes]:
    """Yield every whole line, newline included, or those in the first `until` bytes.

    Raises:
        StorageError: if the log cannot be read.
    """
    at = 0
    try:
        with log.open("rb") as stream:
            for line in stream:
                at += len(line)
                if line.endswith(b"\n") and (until is None or at <= until):
                    yield line
    except OSError as error:
        raise _unreadable(log, error) from error


def last_records(log: Path, count: int) -> list[dict[str, Any]]:
    """Return the last records.

    Raises:
        StorageError, AuditChainBroken: as `read_records`.
    """
    return [_record(line, number) for number, line in enumerate(last_lines(log, count)[0])]


def last_lines(log: Path, count: int) -> tuple[list[bytes], int]:
    """Return the last whole lines, and where the last of them ends.

    Raises:
        StorageError: if the log cannot be read.
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
        raise _unreadable(log, error) from error
    whole = lines[:-1] if start == 0 else lines[1:-1]
    return [line + b"\n" for line in whole[-count:]] if count else [], end - len(lines[-1])


def follow_records(log: Path) -> Iterator[dict[str, Any]]:
    """Yield records as they are written, from the end on, for ever; a new log in the place of this one is followed too.

    Raises:
        StorageError, AuditChainBroken: as `read_records`.
    """
    for line in follow_lines(log, last_lines(log, 0)[1]):
        if line:
            yield _record(line, -1)


def follow_lines(log: Path, at: int) -> Iterator[bytes | None]:
    """Yield whole lines as they are written, from a place on, for ever.

    At each look comes a None first, and an empty line where another log lies in the place of this one, or this one was cut.

    Raises:
        StorageError: if the log cannot be read.
    """
    inode = _facts(log)[1]
    while True:
        yield None
        size, now = _facts(log)
        if now != inode or size < at:
            at, inode = 0, now
            yield b""
        if size > at:
            with log.open("rb") as stream:
                stream.seek(at)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    at += len(line)
                    yield line
        time.sleep(_POLL_SECONDS)


def _facts(log: Path) -> tuple[int, int]:
    """Return a log's size and inode; one that is just being replaced is waited for."""
    patience = _PATIENCE_LOOKS
    while True:
        try:
            facts = log.stat()
        except OSError as error:
            if not patience or not isinstance(error, FileNotFoundError):
                raise _unreadable(log, error) from error
        else:
            return facts.st_size, facts.st_ino
        patience -= 1
        time.sleep(_POLL_SECONDS)


def _unreadable(log: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read the audit log {log}: {error.strerror}", hint="it is its owner's: run this as root, or name it with --log"
    )


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
