"""The snapshot file: a tar archive (POSIX.1-2001, pax) of a cipher directory, with what it is at its beginning.

Nothing is decrypted to make one, and nothing in it is readable without the volume's KMS key. Its first member, `kmsfs.snapshot`, is
JSON: {"format": 1, "created": seconds since the epoch, "version": of kmsfs, "stored_files": count, "bytes": of their content}; its second one is the
volume's configuration. Names are those of the cipher directory. Extended attributes and access control lists are kept
as `SCHILY.xattr.NAME`, as GNU tar and star do.
"""

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmsfs import __version__
from kmsfs.errors import CorruptVolume, StorageError, UnsupportedFormat, UsageError
from kmsfs.formats.freshness import RECORDS_DIR
from kmsfs.formats.volume import CONFIG_NAME

HEADER = "kmsfs.snapshot"
FORMAT = 1
_XATTR = "SCHILY.xattr."
_PIECE_BYTES = 1 << 20
_CONFIG_MAX_BYTES = 1 << 16
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
_NOT_KEPT = (f".{CONFIG_NAME}.new",)
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot says of itself, before anything of it is authenticated."""

    format: int
    created: float
    version: str
    stored_files: int
    """Regular files in the cipher directory: those of the volume, and records of their attributes."""
    bytes: int


def write_snapshot(cipher_dir: Path, target: Path, created: float, on_bytes: OnBytes) -> SnapshotHeader:
    """Write a snapshot of a cipher directory that nobody changes meanwhile; the file is there when it is whole and durable.

    Raises:
        UsageError: if the file is there already, or lies within the cipher directory.
        StorageError: if something cannot be read or written; no file is left then.
    """
    if target.resolve().is_relative_to(cipher_dir.resolve()):
        raise UsageError(f"{target} lies within the volume", hint="put the snapshot somewhere else")
    if target.exists():
        raise UsageError(f"{target} is there already", hint="name a file that is not")
    found = sorted(_entries(cipher_dir))
    # By inode: what has several names lies in the archive once.
    sizes = {(facts.st_dev, facts.st_ino): facts.st_size for _, facts in found if stat.S_ISREG(facts.st_mode)}
    header = SnapshotHeader(FORMAT, created, __version__, len(sizes), sum(sizes.values()))
    making = target.with_name(f".{target.name}.new")
    with _storing(target):
        making.unlink(missing_ok=True)
        try:
            with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, **_TEXT) as tar:
                    _add_bytes(tar, HEADER, json.dumps(asdict(header)).encode(), created)
                    tar.add(cipher_dir / CONFIG_NAME, CONFIG_NAME)
                    for name, _ in found:
                        _add(tar, cipher_dir, name, on_bytes)
                stream.flush()
                os.fsync(stream.fileno())
            making.rename(target)
            _sync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                making.unlink(missing_ok=True)
            raise
    return header


def read_head(snapshot: Path) -> tuple[SnapshotHeader, bytes]:
    """Return what a snapshot says of itself, and its volume's configuration; nothing is authenticated yet.

    Raises:
        UsageError: if it is no snapshot.
        UnsupportedFormat: if it is one of a newer format.
        StorageError: if it cannot be read.
    """
    with _reading(snapshot), tarfile.open(snapshot, "r:", **_TEXT) as tar:
        return _head(tar, snapshot)


def unpack_snapshot(snapshot: Path, target: Path, on_bytes: OnBytes) -> None:
    """Put a snapshot's files into an empty directory, all but the configuration: without it they are no volume yet.

    Files and directories come first and symbolic links last, so that no name in the archive leads through one of its own links.

    Raises:
        UsageError: if it is no snapshot.
        CorruptVolume: if it holds what no snapshot does, or is cut off.
        StorageError: if the disk refuses.
    """
    links, folders = [], []
    files = 0
    with _reading(snapshot), tarfile.open(snapshot, "r:", **_TEXT) as tar:
        header, _config = _head(tar, snapshot)
        for member in tar:
            if member.name in (HEADER, CONFIG_NAME):
                continue
            path = target / _checked(member.name)
            if member.isdir():
                _store(path.mkdir)
                folders.append((path, member))
            elif member.isreg():
                _unpack_file(tar, member, path, on_bytes)
                files += 1
            elif member.islnk():
                _store(path.hardlink_to, target / _checked(member.linkname))
            elif member.issym():
                links.append((path, member))
            elif member.isfifo() or member.ischr() or member.isblk():
                _store(_make_node, path, member)
                _dress(path, member)
            else:
                raise CorruptVolume(f"the snapshot holds {member.name!r}, which is of a kind that no volume has")
        if files != header.stored_files:
            raise CorruptVolume(f"the snapshot holds {files} files instead of {header.stored_files}: it is cut off, or was changed")
    for path, member in links:
        _store(path.symlink_to, member.linkname)
        _dress(path, member)
    for path, member in reversed(folders):
        _dress(path, member)


def _entries(cipher_dir: Path) -> Iterator[tuple[str, os.stat_result]]:
    def fail(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(cipher_dir, onerror=fail):
        for name in (*folders, *names):
            path = Path(folder) / name
            relative = os.fspath(path.relative_to(cipher_dir))
            if relative != CONFIG_NAME and relative not in _NOT_KEPT and relative.split("/", 1)[0] != RECORDS_DIR:
                yield relative, path.lstat()


def _add(tar: tarfile.TarFile, cipher_dir: Path, name: str, on_bytes: OnBytes) -> None:
    path = cipher_dir / name
    member = tar.gettarinfo(path, name)
    if member is None:
        # A socket: there is nothing in it to keep.
        return
    member.pax_headers = {
        _XATTR + attribute: os.getxattr(path, attribute, follow_symlinks=False).decode("utf-8", "surrogateescape")
        for attribute in os.listxattr(path, follow_symlinks=False)
    }
    if not member.isreg():
        tar.addfile(member)
        return
    with path.open("rb") as stream:
        tar.addfile(member, stream)
    on_bytes(member.size)


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, created: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), int(created)
    tar.addfile(member, io.BytesIO(data))


def _head(tar: tarfile.TarFile, snapshot: Path) -> tuple[SnapshotHeader, bytes]:
    first, second = tar.next(), tar.next()
    if first is None or second is None or (first.name, second.name) != (HEADER, CONFIG_NAME) or not (first.isreg() and second.isreg()):
        raise UsageError(f"{snapshot} is no snapshot of a volume")
    if max(first.size, second.size) > _CONFIG_MAX_BYTES:
        raise CorruptVolume(f"{snapshot} has an impossible beginning")
    streams = [tar.extractfile(member) for member in (first, second)]
    told, config = (stream.read() if stream is not None else b"" for stream in streams)
    try:
        fields = json.loads(told)
        if fields["format"] != FORMAT:
            raise UnsupportedFormat(f"{snapshot} has format {fields['format']}", hint="a newer kmsfs may read it")
        return SnapshotHeader(**fields), config
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptVolume(f"{snapshot} has an impossible beginning") from error


def _checked(name: str) -> str:
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise CorruptVolume(f"the snapshot holds {name!r}, which leads out of it")
    return name


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, on_bytes: OnBytes) -> None:
    stream = tar.extractfile(member)
    if stream is None:
        raise CorruptVolume(f"the snapshot holds {member.name!r} without content")

    def write() -> None:
        """Make the file, with as many bytes as the archive says."""
        left = member.size
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb", buffering=0) as made:
            while piece := stream.read(min(left, _PIECE_BYTES)):
                view = memoryview(piece)
                while view:
                    view = view[made.write(view) :]
                left -= len(piece)
                on_bytes(len(piece))
        if left:
            raise CorruptVolume(f"{member.name} in the snapshot is cut off")

    _store(write)
    _dress(path, member)


def _dress(path: Path, member: tarfile.TarInfo) -> None:
    """Give an entry its owner, if that is ours to give, its mode, attributes and time."""
    if os.geteuid() == 0:
        _store(os.chown, path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        _store(path.chmod, member.mode & 0o7777)
    for name, text in member.pax_headers.items():
        if name.startswith(_XATTR):
            with suppress(PermissionError):
                # What only root may set, an ordinary user's copy goes without, as with cp(1).
                _store(os.setxattr, path, name.removeprefix(_XATTR), text.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    at = int(float(member.mtime) * 1_000_000_000)
    _store(lambda: os.utime(path, ns=(at, at), follow_symlinks=False))


def _make_node(path: Path, member: tarfile.TarInfo) -> None:
    kind = stat.S_IFIFO if member.isfifo() else stat.S_IFCHR if member.ischr() else stat.S_IFBLK
    os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))


def _store(act: Callable[..., object], *arguments: object, **more: object) -> None:
    try:
        act(*arguments, **more)
    except PermissionError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or 'there'}: {error.strerror}", os_errno=error.errno or 5) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot make {target}: {error.strerror} ({error.filename or target})", os_errno=error.errno or 5) from error


@contextmanager
def _reading(snapshot: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise CorruptVolume(f"{snapshot} is no snapshot, or damaged: {error}") from error
    except OSError as error:
        raise StorageError(f"{snapshot}: {error.strerror} ({error.filename or snapshot})", os_errno=error.errno or 5) from error
