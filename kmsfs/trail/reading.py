"""Records of an audit log (docs/formats/audit-v1.md), as they lie there; the chain is `kmsd verify-audit`'s business."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kmsfs.errors import AuditChainBroken
from kmsfs.trail.segments import (
    POLL_SECONDS,
    Place,
    files_from,
    open_log,
    place_of,
    segments_before,
    unreadable,
)

_TAIL_BYTES = 1 << 16


def read_records(log: Path, since: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield every whole record, or those made since a time, in seconds since the epoch; for that, segments that are older are not read.

    Raises:
        StorageError: if the log cannot be read.
        AuditChainBroken: naming the first line that is no record.
    """
    for number, line in enumerate(read_lines(log, since=since)):
        record = _record(line, number)
        if not since or record["ts"] >= since:
            yield record


def read_lines(log: Path, until: Place | None = None, since: float = 0.0) -> Iterator[bytes]:
    """Yield every whole line, newline included, or those up to a place; of segments that are older than `since`, none.

    Raises:
        StorageError: if the log cannot be read.
    """
    try:
        for stream in open_log(log, since):
            at = 0
            last = until is not None and os.fstat(stream.fileno()).st_ino == until.inode
            for line in stream:
                at += len(line)
                if last and until is not None and at > until.offset:
                    return
                if line.endswith(b"\n"):
                    yield line
            if last:
                return
    except OSError as error:
        raise unreadable(log, error) from error


def last_records(log: Path, count: int) -> list[dict[str, Any]]:
    """Return the last records.

    Raises:
        StorageError, AuditChainBroken: as `read_records`.
    """
    return [_record(line, number) for number, line in enumerate(last_lines(log, count)[0])]


def last_lines(log: Path, count: int) -> tuple[list[bytes], Place]:
    """Return the last whole lines, and where the last of them ends.

    Raises:
        StorageError: if the log cannot be read.
    """
    try:
        with log.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            lines, end = _last_of(stream, count)
        for path in reversed(segments_before(log, inode)):
            if len(lines) >= count:
                break
            with path.open("rb") as stream:
                lines = _last_of(stream, count - len(lines))[0] + lines
    except OSError as error:
        raise unreadable(log, error) from error
    return lines, Place(inode, end)


def _last_of(stream: BinaryIO, count: int) -> tuple[list[bytes], int]:
    """Return a file's last whole lines, and where the last of them ends."""
    end = stream.seek(0, os.SEEK_END)
    size = _TAIL_BYTES
    while True:
        start = max(0, end - size)
        stream.seek(start)
        lines = stream.read(end - start).split(b"\n")
        if start == 0 or len(lines) > count + 1:
            break
        size *= 4
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


def follow_lines(log: Path, place: Place) -> Iterator[bytes | None]:
    """Yield whole lines as they are written, from a place on, for ever, from one segment into the next.

    At each look comes a None first, and an empty line where another log lies in the place of this one, or this one was cut.

    Raises:
        StorageError: if the log cannot be read.
    """
    while True:
        yield None
        files = files_from(log, place.inode)
        now = place_of(files[0] if files else log)
        if not files or (now.inode == place.inode and now.offset < place.offset):
            yield b""
            files, place = [log], Place(now.inode, 0)
        for line in _lines_after(files[0], place):
            place = Place(place.inode, place.offset + len(line))
            yield line
        if len(files) == 1:
            time.sleep(POLL_SECONDS)
        else:
            following = place_of(files[1])
            # Whether it is still the next one: what was written to a moment ago may be closed by now, and another has its name.
            if files_from(log, place.inode) == files:
                place = Place(following.inode, 0)


def _lines_after(path: Path, place: Place) -> Iterator[bytes]:
    """Yield a file's whole lines behind a place; none if another file has its name by now."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_ino != place.inode:
                return
            stream.seek(place.offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                yield line
    except FileNotFoundError:
        # It is just being given another name; the next look finds it.
        return
    except OSError as error:
        raise unreadable(path, error) from error


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
