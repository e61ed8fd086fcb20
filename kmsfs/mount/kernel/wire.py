"""Structures of linux/fuse.h, as packers and unpackers. Native byte order: the kernel is on this machine."""

import os
import struct
from enum import IntEnum, IntFlag

from kmsfs.mount.attributes import Stat

MAJOR = 7
MINOR = 31
"""The protocol we ask for; the kernel speaks down to it."""
MAX_WRITE = 1 << 20
MAX_PAGES = MAX_WRITE // 4096
BUFFER_BYTES = MAX_WRITE + 4096
NS = 1_000_000_000
_U64 = (1 << 64) - 1
"""Seconds before 1970 travel as two's complement."""


class Opcode(IntEnum):
    """Requests of the kernel."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51
    STATX = 52


class InitFlag(IntFlag):
    """Capabilities in INIT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_ATIME_NOW, SET_MTIME_NOW = 128, 256
SET_KILL_SUIDGID = 1 << 11
"""Which fields of SETATTR count; plain numbers, as enum arithmetic costs more than the call."""

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
EXPIRE_ONLY = 1 << 0
"""Of NOTIFY_INVAL_ENTRY."""
NOTIFY_STORE = 4
NOTIFY_PRUNE = 9

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_MORE = struct.Struct("=I")
"""The flags from the thirty-third on, behind INIT_IN where INIT_EXT is offered."""
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
ENTRY_OUT = struct.Struct("=QQQQII QQQQQQ III IIIIII I")
ATTR_OUT = struct.Struct("=QII QQQQQQ III IIIIII I")
OPEN_OUT = struct.Struct("=QIi")
ENTRY_OPEN_OUT = struct.Struct(ENTRY_OUT.format + "QIi")
SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
READ_IN = struct.Struct("=QQIIQII")
WRITE_OUT = struct.Struct("=II")
CREATE_IN = struct.Struct("=IIII")
OPEN_IN = struct.Struct("=II")
RELEASE_IN = struct.Struct("=QIIQ")
FSYNC_IN = struct.Struct("=QII")
MKNOD_IN = struct.Struct("=IIII")
MKDIR_IN = struct.Struct("=II")
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QII")
LINK_IN = struct.Struct("=Q")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")
FALLOCATE_IN = struct.Struct("=QQQII")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
DIRENT = struct.Struct("=QQII")
SETXATTR_IN = struct.Struct("=IIII")
GETXATTR_IN = struct.Struct("=II")
GETXATTR_OUT = struct.Struct("=II")
STATX_OUT = struct.Struct("=QII16x IIQ IIIH2x QQQQ" + "qI4x" * 4 + "IIII112x")
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800
INVAL_INODE = struct.Struct("=Qqq")
INVAL_ENTRY = struct.Struct("=QII")
STORE = struct.Struct("=QQI4x")
"""Node, offset and size; then the bytes (struct fuse_notify_store_out)."""
PRUNE = struct.Struct("=I4xQ")
"""Count and spare; then the node ids, u64 each (struct fuse_notify_prune_out, since Linux 6.18)."""

_SIZES = (ENTRY_OUT.size, ATTR_OUT.size, INIT_OUT.size, STATFS_OUT.size, SETATTR_IN.size, STATX_OUT.size)
if _SIZES != (128, 104, 64, 80, 88, 288):
    raise ImportError("FUSE structure sizes are wrong on this platform")


def attr_fields(stat: Stat) -> tuple[int, ...]:
    """Return the fields of struct fuse_attr."""
    return (
        stat.ino, stat.size, stat.blocks,
        stat.atime_ns // NS & _U64, stat.mtime_ns // NS & _U64, stat.ctime_ns // NS & _U64,
        stat.atime_ns % NS, stat.mtime_ns % NS, stat.ctime_ns % NS,
        stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev, 4096, 0,
    )  # fmt: skip


def entry_out(node_id: int, stat: Stat, valid_seconds: int) -> bytes:
    """Return struct fuse_entry_out; the kernel may keep name and attributes for `valid_seconds`."""
    return ENTRY_OUT.pack(node_id, 0, valid_seconds, valid_seconds, 0, 0, *attr_fields(stat))


def statx_out(stat: Stat, valid_seconds: int, birth_ns: int | None) -> bytes:
    """Return struct fuse_statx_out, with the birth time where it is known."""
    times = [divmod(ns, NS) for ns in (stat.atime_ns, birth_ns or 0, stat.ctime_ns, stat.mtime_ns)]
    return STATX_OUT.pack(
        valid_seconds, 0, 0, STATX_BASIC | (STATX_BTIME if birth_ns is not None else 0), 4096, 0, stat.nlink,
        stat.uid, stat.gid, stat.mode, stat.ino, stat.size, stat.blocks, 0,
        *(part for moment in times for part in moment), os.major(stat.rdev), os.minor(stat.rdev), 0, 0,
    )  # fmt: skip


def dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """Return one padded struct fuse_dirent."""
    body = DIRENT.pack(ino, offset, len(name), kind >> 12) + name
    return body + bytes(-len(body) % 8)


def direntplus_bytes(name: bytes) -> int:
    """Return the length of a padded struct fuse_direntplus."""
    return ENTRY_OUT.size + (DIRENT.size + len(name) + 7) // 8 * 8
