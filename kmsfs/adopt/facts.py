"""What makes two directory entries the same: kind, owner, mode, times, attributes, links, and every byte."""

import contextlib
import os
import stat
from pathlib import Path

_PIECE_BYTES = 1 << 20
_NOT_COMPARED = frozenset({"security.selinux"})
"""Attributes that the system gives an entry by its place."""


def attributes_of(path: Path) -> dict[str, bytes]:
    """Return the extended attributes and access control lists of an entry, as far as they may be read."""
    found: dict[str, bytes] = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            if name not in _NOT_COMPARED:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def unlike(source: Path, target: Path) -> str:
    """Return how two entries differ without reading content, empty if they do not.

    Raises:
        OSError: if one of them cannot be looked at.
    """
    ours, theirs = source.lstat(), target.lstat()
    if stat.S_IFMT(ours.st_mode) != stat.S_IFMT(theirs.st_mode):
        return "another kind"
    if stat.S_ISLNK(ours.st_mode) and source.readlink() != target.readlink():
        return "another target"
    if stat.S_ISREG(ours.st_mode) and ours.st_size != theirs.st_size:
        return f"size {theirs.st_size}, not {ours.st_size}"
    if (ours.st_uid, ours.st_gid) != (theirs.st_uid, theirs.st_gid):
        return "another owner"
    if not stat.S_ISLNK(ours.st_mode) and stat.S_IMODE(ours.st_mode) != stat.S_IMODE(theirs.st_mode):
        return f"mode {stat.S_IMODE(theirs.st_mode):04o}, not {stat.S_IMODE(ours.st_mode):04o}"
    if stat.S_ISCHR(ours.st_mode) or stat.S_ISBLK(ours.st_mode):
        if ours.st_rdev != theirs.st_rdev:
            return "another device"
    elif ours.st_mtime_ns != theirs.st_mtime_ns:
        return "another time"
    if attributes_of(source) != attributes_of(target):
        return "other attributes"
    return ""


def content_differs(source: Path, target: Path) -> int | None:
    """Return the first piece at which two files differ, as a byte offset; None if every byte is the same.

    Raises:
        OSError: if one of them cannot be read.
    """
    at = 0
    with source.open("rb", buffering=0) as ours, target.open("rb", buffering=0) as theirs:
        while True:
            piece, other = _whole(ours.fileno()), _whole(theirs.fileno())
            if piece != other:
                return at
            if not piece:
                return None
            at += len(piece)


def _whole(descriptor: int) -> bytes:
    """Read a piece that is only short at the end."""
    pieces, left = [], _PIECE_BYTES
    while left and (piece := os.read(descriptor, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
