"""The files of an audit log: the one that is written to, and the closed segments before it."""

import contextlib
import fcntl
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from kmsd.store.files import sync_directory
from kmsfs.errors import AuditUnavailable
from kmsfs.formats.audit import segment_name, segments_among, time_of_line

WRITING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_FIRST_LINE_BYTES = 1 << 20


def closed_segments(log: Path) -> list[tuple[int, Path]]:
    """Return (number of the first record, file) of each closed segment, oldest first.

    Raises:
        AuditUnavailable: if the folder cannot be read.
    """
    try:
        names = os.listdir(log.parent)
    except OSError as error:
        raise AuditUnavailable(f"{log.parent} cannot be read: {error.strerror}") from error
    return [(first, log.with_name(name)) for first, name in segments_among(log.name, names)]


def first_line(path: Path) -> bytes:
    """Return a segment's first line; nothing if it has none yet.

    Raises:
        AuditUnavailable: if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            line = stream.readline(_FIRST_LINE_BYTES)
    except OSError as error:
        raise AuditUnavailable(f"the audit log cannot be read: {error.strerror}") from error
    return line if line.endswith(b"\n") else b""


def last_line(path: Path) -> bytes:
    """Return a closed segment's last line.

    Raises:
        AuditUnavailable: if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _FIRST_LINE_BYTES))
            return b"".join(deque(stream, maxlen=1))
    except OSError as error:
        raise AuditUnavailable(f"the audit log cannot be read: {error.strerror}") from error


def begin_file(log: Path, first: int) -> int:
    """Give the file that is written to the name of a closed segment whose first record is `first`; return an empty one's descriptor.

    At each moment the records are under one name at least, also after a power cut: the folder is synced between the two steps. Where it
    fails, all is as it was.

    Raises:
        OSError: if the disk refuses.
    """
    closed, fresh = log.with_name(segment_name(log.name, first)), log.with_name(f".{log.name}.next")
    fresh.unlink(missing_ok=True)
    inode = log.stat().st_ino
    descriptor = os.open(fresh, WRITING | os.O_EXCL, 0o600)
    try:
        os.link(log, closed)
        sync_directory(log.parent)
        fresh.rename(log)
        sync_directory(log.parent)
    except OSError:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            if closed.stat().st_ino == inode:
                # Over the new file, if it came so far: what follows goes on in the old one. Of one file's two names rename leaves both.
                closed.rename(log)
                closed.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    return descriptor


def was_closed(log: Path, first: int) -> bool:
    """Whether `begin_file` came to its end before a crash; if not, its trace is removed.

    Raises:
        OSError: if the folder cannot be read or changed.
    """
    closed = log.with_name(segment_name(log.name, first))
    try:
        inode = closed.stat().st_ino
    except FileNotFoundError:
        return False
    if log.exists() and log.stat().st_ino == inode:
        closed.unlink()
        return False
    return True


def ended_before(log: Path, first: int, time: float) -> int:
    """Return the number of the first record behind the oldest segments that ended before a time, in seconds since the epoch; 0 if none did.

    `first` is the number of the first record of the file that is written to. A segment whose last record does not say when it was made
    has not ended, nor have those behind it.

    Raises:
        AuditUnavailable: if a segment cannot be read.
    """
    closed = closed_segments(log)
    before = 0
    for (_number, path), (following, _path) in itertools.pairwise([*closed, (first, log)]):
        if not 0 < time_of_line(last_line(path)) < time:
            break
        before = following
    return before


def remove_segments(log: Path, before: int) -> None:
    """Remove the closed segments whose records are all before a number.

    Raises:
        AuditUnavailable: if the disk refuses.
    """
    try:
        for first, path in closed_segments(log):
            if first < before:
                path.unlink()
        sync_directory(log.parent)
    except OSError as error:
        raise AuditUnavailable(f"a segment of the audit log cannot be removed: {error.strerror}") from error


@contextlib.contextmanager
def segments_held(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Hold the segments as they are while they are copied, or alone to change which there are; whether that was to be had at once.

    A copy waits for a change, which takes a moment; a change does not wait for a copy: it has time.

    Raises:
        OSError: if the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
