"""What stat answers, and names of attributes that are not stored, independent of any transport."""

import os
from collections.abc import Callable
from dataclasses import dataclass

KEY_ATTRIBUTE = b"user.kmsfs.key"
"""Of a directory: the id of the KMS key that it has of its own."""
EFFECTIVE_KEY_ATTRIBUTE = b"user.kmsfs.key.effective"
"""Of a directory: the id of the KMS key that new files in it get. Of a file: the one that its data key is wrapped under."""
KEY_ATTRIBUTES = (KEY_ATTRIBUTE, EFFECTIVE_KEY_ATTRIBUTE)


@dataclass(slots=True)
class Stat:
    """Attributes of an inode; times in nanoseconds, `blocks` of 512 bytes."""

    ino: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int


def from_backing(facts: os.stat_result) -> Stat:
    """Return the backing inode's own attributes."""
    return Stat(
        facts.st_ino, facts.st_size, facts.st_blocks, facts.st_atime_ns, facts.st_mtime_ns, facts.st_ctime_ns,
        facts.st_mode, facts.st_nlink, facts.st_uid, facts.st_gid, facts.st_rdev,
    )  # fmt: skip


def owned_by(uid: int | None, gid: int | None) -> Callable[[os.stat_result], Stat]:
    """Return what tells a backing inode's attributes with another owner, other group, or both."""

    def told(facts: os.stat_result) -> Stat:
        """Return the backing inode's attributes, but for its owner."""
        answer = from_backing(facts)
        if uid is not None:
            answer.uid = uid
        if gid is not None:
            answer.gid = gid
        return answer

    return from_backing if uid is None and gid is None else told


def gone(ino: int, kind: int) -> Stat:
    """Return the attributes of an inode that exists no more, for a kernel that still holds it."""
    return Stat(ino, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to change; None leaves a field alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def only_times(self) -> bool:
        """Whether nothing but times is to change."""
        return self.mode is None and self.uid is None and self.gid is None and self.size is None


@dataclass(slots=True)
class Requester:
    """Who makes a call, as the kernel says."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0
    """What the transport has not taken from a new entry's mode yet."""
