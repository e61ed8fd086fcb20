"""Get a mounted /dev/fuse descriptor: mount(2) as root, fusermount3 as anybody else."""

import array
import ctypes
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kmsfs.errors import StorageError, UsageError

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MNT_DETACH = 1, 2, 4, 2
_SUBTYPE = "kmsfs"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of the mount itself."""

    source: str
    allow_other: bool = False
    read_only: bool = False


def attach(mountpoint: Path, options: MountOptions) -> int:
    """Mount a FUSE file system and return its descriptor.

    Raises:
        UsageError: if FUSE is not there, or this user may not mount here.
        StorageError: if the kernel refuses.
    """
    if os.geteuid() == 0:
        return _attach_as_root(mountpoint, options)
    return _attach_by_helper(mountpoint, options)


def detach(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount.

    Raises:
        UsageError: if it is busy, or not ours to unmount.
    """
    if os.geteuid() == 0:
        if _LIBC.umount2(os.fsencode(mountpoint), _MNT_DETACH if lazy else 0):
            number = ctypes.get_errno()
            hint = "close what uses it, or pass --lazy" if number == 16 else ""
            raise UsageError(f"cannot unmount {mountpoint}: {os.strerror(number)}", hint=hint)
        return
    command = [_helper(), "-u", *(["-z"] if lazy else []), os.fspath(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"cannot unmount {mountpoint}: {done.stderr.strip()}", hint="close what uses it, or pass --lazy"
        )


def _attach_as_root(mountpoint: Path, options: MountOptions) -> int:
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open /dev/fuse: {error.strerror}", hint="load the fuse module") from error
    root_mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
    text = f"fd={descriptor},rootmode={root_mode:o},user_id={os.getuid()},group_id={os.getgid()}"
    if options.allow_other:
        # Without it only root gets in, to whom permission bits say nothing; each check would cost a request.
        text += ",allow_other,default_permissions"
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if options.read_only else 0)
    source, kind = os.fsencode(options.source), f"fuse.{_SUBTYPE}".encode()
    if _LIBC.mount(source, os.fsencode(mountpoint), kind, flags, text.encode()):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise StorageError(f"cannot mount on {mountpoint}: {os.strerror(number)}", os_errno=number)
    return descriptor


def _helper() -> str:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise UsageError("fusermount3 is not installed", hint="apt-get install fuse3")
    return helper


def _attach_by_helper(mountpoint: Path, options: MountOptions) -> int:
    """fusermount3 mounts and passes the descriptor over the socket named in _FUSE_COMMFD."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        text = f"default_permissions,nosuid,nodev,fsname={_escape(options.source)},subtype={_SUBTYPE}"
        text += ",allow_other" if options.allow_other else ""
        text += ",ro" if options.read_only else ""
        done = subprocess.run(
            [_helper(), "-o", text, "--", os.fspath(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            hint = "as an ordinary user, /dev/fuse must be writable" if "/dev/fuse" in done.stderr else ""
            raise UsageError(f"cannot mount on {mountpoint}: {done.stderr.strip()}", hint=hint)
        space = array.array("i", [0])
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(space.itemsize))
    for _, _, data in ancillary:
        space = array.array("i", data[:4])
        os.set_inheritable(space[0], False)
        return int(space[0])
    raise UsageError("fusermount3 did not pass a descriptor")


def _escape(source: str) -> str:
    return source.replace("\\", "\\\\").replace(",", "\\,")
