"""Where secrets are put: one file replaced at once, or a directory in memory whose files change together."""

import os
import shutil
import tempfile
from pathlib import Path

from kmsfs.errors import InvalidRequest, StorageError, UsageError

_DATA = "..data"
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def replace_file(path: Path, data: bytes, mode: int | None) -> bool:
    """Put bytes into a file by a rename, if it does not have them already; return whether it changed.

    A file that was there keeps its owner, and its mode if none is given; a new one is 0600.

    Raises:
        StorageError: if it cannot be written; the old one is as it was then.
    """
    try:
        facts = path.stat() if path.exists() else None
        wanted = mode if mode is not None else (facts.st_mode & 0o777 if facts is not None else 0o600)
        if facts is not None and facts.st_mode & 0o777 == wanted and path.read_bytes() == data:
            return False
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                if facts is not None and os.geteuid() == 0:
                    os.fchown(stream.fileno(), facts.st_uid, facts.st_gid)
                os.fchmod(stream.fileno(), wanted)
                os.fsync(stream.fileno())
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="check the disk's space and rights") from error
    return True


def require_memory(folder: Path) -> None:
    """Refuse a directory whose files would lie on a disk.

    Raises:
        UsageError: if it is not there, or on no tmpfs.
    """
    try:
        device = os.stat(folder).st_dev
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", hint="make it, for instance in /run or /dev/shm") from error
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            if right.split()[0] in _IN_MEMORY:
                return
            break
    raise UsageError(
        f"{folder} is not in memory: secrets would lie on a disk in the clear", hint="choose one in /run or /dev/shm"
    )


def publish(folder: Path, files: dict[str, bytes]) -> bool:
    """Make a directory show exactly these files, all at once; return whether anything changed.

    Readers see the old files or the new ones: the names in `folder` lead through one symbolic link, which is replaced by a rename.

    Args:
        folder: a directory of nobody else's.
        files: contents by relative path.

    Raises:
        InvalidRequest: if a name is both a file and a directory, or would lead elsewhere.
        StorageError: if they cannot be written; the old ones stay then.
    """
    for name in files:
        _check_name(name, files)
    try:
        return _publish(folder, files)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}", hint="check its space and rights") from error


def _check_name(name: str, files: dict[str, bytes]) -> None:
    parts = name.split("/")
    if parts[0].startswith("..") or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidRequest(f"{name} is no name for a file")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        if above in files:
            raise InvalidRequest(f"{above} is a value and has levels below it")


def _publish(folder: Path, files: dict[str, bytes]) -> bool:
    link = folder / _DATA
    old = folder / os.readlink(link) if link.is_symlink() else None
    changed = old is None or _content(old) != files
    if changed:
        made = Path(tempfile.mkdtemp(prefix="..", dir=folder))
        try:
            for name, data in files.items():
                path = made / name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o600)
            made.chmod(0o700)
            _relink(link, made.name)
        except BaseException:
            shutil.rmtree(made)
            raise
        # Also what a killed process has left.
        for stale in folder.glob("..*"):
            if stale.name not in (_DATA, made.name):
                shutil.rmtree(stale)
    _show(folder, {name.partition("/")[0] for name in files})
    return changed


def _show(folder: Path, names: set[str]) -> None:
    """Have one symbolic link for each name, and none of a name that is gone."""
    ours = {entry.name for entry in folder.iterdir() if entry.is_symlink() and os.readlink(entry) == f"{_DATA}/{entry.name}"}
    for name in ours - names:
        (folder / name).unlink()
    for name in names - ours:
        (folder / name).symlink_to(f"{_DATA}/{name}")


def _relink(link: Path, target: str) -> None:
    temporary = link.with_name(".data~")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def _content(folder: Path) -> dict[str, bytes]:
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
