"""The files of an audit log as readers take them: the closed segments, oldest first, then the one that is written to."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kmsfs.errors import StorageError
from kmsfs.formats.audit import segments_among, time_of_line

POLL_SECONDS = 0.2
"""How often who follows a log looks."""
_PATIENCE_LOOKS = 25
"""A log that is missing for this many looks is gone."""
_FIRST_LINE_BYTES = 1 << 20


class Place(NamedTuple):
    """Behind which line somebody stands: which file, however it is called by now, and how many bytes into it."""

    inode: int
    offset: int


def _segment_paths(log: Path) -> list[Path]:
    """Return a log's closed segments, oldest first; a file that is called otherwise than a log has none.

    Raises:
        StorageError: if the folder cannot be read.
    """
    try:
        return [log.with_name(name) for _first, name in segments_among(log.name, os.listdir(log.parent))]
    except OSError as error:
        raise unreadable(log, error) from error


def open_log(log: Path, since: float = 0.0) -> Iterator[BinaryIO]:
    """Yield a log's files, open, oldest first; those whose records were all made before `since` (seconds since the epoch) are left out.

    A segment that is closed meanwhile is given once, and one that is removed before it was reached is passed over: it was the oldest.

    Raises:
        StorageError: if one cannot be read, or was removed between two that were there.
    """
    with _opened(log) as last:
        paths = segments_before(log, os.fstat(last.fileno()).st_ino)
        begun = False
        for path in paths[_first_wanted([*paths, log], since) :]:
            try:
                stream = _opened(path)
            except StorageError as error:
                if begun or error.os_errno != errno.ENOENT:
                    raise
                continue
            with stream:
                begun = True
                yield stream
        yield last


def segments_before(log: Path, inode: int) -> list[Path]:
    """Return the closed segments before the file with this inode, oldest first: before the log itself, or what was it when it was opened.

    Raises:
        StorageError: if the folder cannot be read.
    """
    paths = _segment_paths(log)
    for place, path in reversed(list(enumerate(paths))):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                return paths[:place]
    return paths


def _first_wanted(paths: list[Path], since: float) -> int:
    """Return the place of the newest file that was begun before a time: all that is in those before it is older."""
    if since > 0:
        for place, path in reversed(list(enumerate(paths))):
            with _opened(path) as stream:
                if 0 < time_of_line(stream.readline(_FIRST_LINE_BYTES)) < since:
                    return place
    return 0


def files_from(log: Path, inode: int) -> list[Path]:
    """Return a log's files from the one with this inode on, oldest first; none if it is not among them.

    Raises:
        StorageError: if the folder cannot be read, or there is no log for so long that it is not just being replaced.
    """
    if place_of(log).inode == inode:
        return [log]
    closed = _segment_paths(log)
    for place, path in enumerate(closed):
        try:
            if path.stat().st_ino == inode:
                return [*closed[place:], log]
        except FileNotFoundError:
            continue
    return []


def place_of(log: Path) -> Place:
    """Return where a log's file ends; one that is just being replaced is waited for.

    Raises:
        StorageError: if it cannot be read, or stays away.
    """
    patience = _PATIENCE_LOOKS
    while True:
        try:
            facts = log.stat()
        except OSError as error:
            if not patience or not isinstance(error, FileNotFoundError):
                raise unreadable(log, error) from error
        else:
            return Place(facts.st_ino, facts.st_size)
        patience -= 1
        time.sleep(POLL_SECONDS)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(log: Path, error: OSError) -> StorageError:
    """Return what a reader is told of a file that cannot be read."""
    return StorageError(
        f"cannot read the audit log {log}: {error.strerror}", hint="it is its owner's: run this as root, or name it with --log",
        os_errno=error.errno or errno.EIO,
    )  # fmt: skip
