"""Small files that must be wholly old or wholly new after a crash."""

import fcntl
import json
import os
from pathlib import Path

from kmsfs.errors import Conflict, StorageError


def write_atomically(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file by temporary file, fsync, rename and fsync of the directory.

    Raises:
        StorageError: if the disk refuses; the old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            give_to_owner(descriptor, path.parent)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="check the disk's space and rights"
        ) from error


def give_to_owner(descriptor: int, folder: Path) -> None:
    """Let a file that root has just made belong to whom its folder belongs to: the daemon, which reads it, is not root.

    Raises:
        OSError: if the folder cannot be looked at, or the file not be given away.
    """
    if os.geteuid() == 0 and os.fstat(descriptor).st_nlink == 1:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def lock_state(path: Path, socket: Path) -> int:
    """Take a state folder for this process alone, and say in its lock file who has it; held until the descriptor is closed.

    Two daemons on one state would break the audit chain and overwrite each other's rows.

    Raises:
        Conflict: if another process has it.
        StorageError: if the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner(descriptor, path.parent)
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"another process uses the state in {path.parent}: {holder}", hint="stop it, or use its socket"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "socket": os.fspath(socket)}).encode(), 0)
    return descriptor


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
