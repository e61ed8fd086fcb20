"""Structures of linux/fuse.h, as packers and unpackers. Native byte order: the kernel is on this machine."""

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


class InitFlag(IntFlag):
    """Capabilities in INIT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25


SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_ATIME_NOW, SET_MTIME_NOW = 128, 256
"""Which fields of SETATTR count; plain numbers, as enum arithmetic costs more than the call."""

FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
WRITE_CACHE = 1 << 0
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
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
INVAL_INODE = struct.Struct("=Qqq")
INVAL_ENTRY = struct.Struct("=QII")

if (ENTRY_OUT.size, ATTR_OUT.size, INIT_OUT.size, STATFS_OUT.size, SETATTR_IN.size) != (128, 104, 64, 80, 88):
    raise ImportError("FUSE structure sizes are wrong on this platform")


def attr_fields(stat: Stat) -> tuple[int, ...]:
    """Return the fields of struct fuse_attr."""
    return (
        stat.ino, stat.size, stat.blocks,
        stat.atime_ns // NS, stat.mtime_ns // NS & 0xFFFFFFFFFFFFFFFF, stat.ctime_ns // NS,
        stat.atime_ns % NS, stat.mtime_ns % NS, stat.ctime_ns % NS,
        stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev, 4096, 0,
    )  # fmt: skip


def dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """Return one padded struct fuse_dirent."""
    body = DIRENT.pack(ino, offset, len(name), kind >> 12) + name
    return body + bytes(-len(body) % 8)
