"""Follow a log for alarms: its new records, whether they follow upon each other, and whether it is signed."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kmsfs.aead.kdf import sha256
from kmsfs.alarms.watching import Alarm, Watching
from kmsfs.errors import AuditChainBroken
from kmsfs.formats.audit import parse_line
from kmsfs.formats.digest import DIGESTS_NAME
from kmsfs.trail.reading import follow_lines, last_lines, read_lines

_SIGNED_EVERY_SECONDS = 30.0


class _Chain:
    """Whether each line follows upon the one before; the first is believed."""

    def __init__(self) -> None:
        self._next: tuple[int, str] | None = None

    def forget(self) -> None:
        """Begin anew: the log is another one."""
        self._next = None

    def follow(self, line: bytes) -> str:
        """Take a line; return what is wrong with it, or nothing."""
        try:
            record, unsealed, _mac = parse_line(line)
        except AuditChainBroken as error:
            self._next = None
            return str(error)
        expected, self._next = self._next, (record["seq"] + 1, sha256(b"\0" + unsealed).hex())
        if expected is not None and (record["seq"], record["prev"]) != expected:
            return f"record {expected[0]} is missing or was changed"
        return ""


def watch_log(watching: Watching, log: Path, clock: Callable[[], float]) -> Iterator[Alarm]:
    """Yield the alarms of what is written to a log from now on, for ever.

    Raises:
        StorageError: if the log cannot be read.
    """
    chain = _Chain()
    before, end = last_lines(log, 1)
    for known in before:
        chain.follow(known)
    if watching.needs_history:
        strange = 0
        for earlier in read_lines(log, end):
            past = _record(earlier)
            strange += past is None
            if past is not None:
                watching.learn(past)
        if strange:
            yield from watching.gap(clock(), f"{strange} lines of the log are no records")
    looked = 0.0
    for line in follow_lines(log, end):
        now = clock()
        if now - looked >= _SIGNED_EVERY_SECONDS:
            looked = now
            yield from watching.unsigned(now, _signed(log, now))
        if line is None:
            continue
        if not line:
            chain.forget()
            yield from watching.gap(now, "the log was replaced by another one, or cut")
            continue
        yield from _of_line(watching, chain, line, now)


def _of_line(watching: Watching, chain: _Chain, line: bytes, now: float) -> Iterator[Alarm]:
    wrong = chain.follow(line)
    if wrong:
        yield from watching.gap(now, wrong)
    record = _record(line)
    if record is not None:
        yield from watching.see(record)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, or nothing of one that is none."""
    try:
        record: dict[str, Any] = json.loads(line)
        str(record["op"]), float(record["ts"])
    except (ValueError, KeyError, TypeError):
        return None
    return record


def past_alarms(watching: Watching, log: Path) -> Iterator[Alarm]:
    """Yield the alarms that the records which are there would have made as they were written.

    Raises:
        StorageError: if the log cannot be read.
    """
    chain = _Chain()
    for line in read_lines(log):
        yield from _of_line(watching, chain, line, time.time())


def _signed(log: Path, now: float) -> float:
    """When the last digest was written; a log that has none yet is as old as its file."""
    for path in (log.with_name(DIGESTS_NAME), log):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return now
