"""Bring out of a damaged volume whatever can still be read, into a plain directory. The volume is not changed.

More is taken than a mount would serve: files of the past, files in the wrong place, files with one header, names whose
directory has lost its id, and of a file with damaged chunks everything but those. Nothing unverified comes out: a
chunk is written as it was or left as a hole, and the report says where.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kmsfs.backing.extras import ExtrasStore
from kmsfs.backing.posix import PosixFile
from kmsfs.envelope import content
from kmsfs.envelope.kf1file import FileTools, Kf1File
from kmsfs.envelope.recovery import SessionRules
from kmsfs.envelope.slots import SlotPair, read_slots
from kmsfs.envelope.volumekeys import DIR_ID_NAME
from kmsfs.errors import (
    CorruptFile,
    CorruptVolume,
    IntegrityError,
    IntegrityReason,
    InvalidName,
    KmsfsError,
    UnsupportedFormat,
)
from kmsfs.formats.fileheader import Attributes
from kmsfs.formats.volume import CONFIG_NAME

LOST_AND_FOUND = "lost+found"
_RUN_BYTES = 1 << 20
_LAST_SESSION = 1 << 62
"""Past every session: all that authenticates is taken."""


@dataclass(slots=True)
class RescueReport:
    """What came out. `problems` are (path in the target, what is missing of it, or why nothing came)."""

    files: int = 0
    directories: int = 0
    links: int = 0
    plain_bytes: int = 0
    lost_bytes: int = 0
    lost_files: int = 0
    refused_files: int = 0
    """Files that the key service refused, or the disk did not read: they may be whole."""
    problems: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "files": self.files, "directories": self.directories, "links": self.links, "plain_bytes": self.plain_bytes,
            "lost_bytes": self.lost_bytes, "lost_files": self.lost_files, "refused_files": self.refused_files,
            "problems": [{"path": path, "problem": problem} for path, problem in self.problems],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Folder:
    """A directory on both sides; `dir_id` is empty if nothing tells it."""

    descriptor: int
    dir_id: bytes
    target: Path


class Rescuer:
    """Reads one volume into `target`; `on_bytes` hears of each stored byte gone through."""

    def __init__(self, tools: FileTools, target: Path, on_bytes: Callable[[int], None]) -> None:
        self._tools = replace(tools, rules=SessionRules(_LAST_SESSION, set(), tolerate_other_slot=True), freshness=None)
        self._keys = tools.keys
        self._target = target
        self._on_bytes = on_bytes
        self._extras: ExtrasStore | None = None
        self.report = RescueReport()

    def run(self, descriptor: int, root_id: bytes) -> RescueReport:
        """Rescue everything below the cipher directory.

        Raises:
            OSError: if the target cannot be written.
        """
        self._extras = ExtrasStore(self._tools, descriptor)
        try:
            self._folder(_Folder(descriptor, root_id, self._target))
        finally:
            self._extras.close()
        return self.report

    def _problem(self, path: Path, problem: str) -> None:
        self.report.problems.append((os.fspath(path.relative_to(self._target)), problem))

    # --- directories ------------------------------------------------------------------------------------------

    def _folder(self, folder: _Folder) -> None:
        self.report.directories += 1
        folder.target.mkdir(mode=0o700, exist_ok=True)
        for name in sorted(os.listdir(folder.descriptor)):
            if name == CONFIG_NAME or name[0] in ".s":
                continue
            try:
                facts = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
                self._entry(folder, name, facts)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                self.report.lost_files += 1
                self._problem(folder.target / name, f"cannot be read from the disk: {error.strerror}")
        if folder.dir_id:
            self._give_attributes(folder.dir_id, None, folder.target)
        facts = os.fstat(folder.descriptor)
        _dress(folder.target, facts, facts.st_mtime_ns)

    def _entry(self, folder: _Folder, disk_name: str, facts: os.stat_result) -> None:
        plain = self._plain_name(folder, disk_name)
        if stat.S_ISDIR(facts.st_mode):
            self._subfolder(folder, disk_name, plain)
        elif stat.S_ISREG(facts.st_mode):
            self._file(folder, disk_name, plain, facts)
            self._on_bytes(facts.st_size)
        elif stat.S_ISLNK(facts.st_mode):
            self._link(folder, disk_name, plain)
        elif stat.S_ISFIFO(facts.st_mode) or os.geteuid() == 0:
            os.mknod(self._place(folder, plain or os.fsencode(disk_name), lost=not plain), facts.st_mode, facts.st_rdev)

    def _plain_name(self, folder: _Folder, disk_name: str) -> bytes:
        """The plain name of an entry, empty if it cannot be read."""
        try:
            sidecar = os.readlink("s" + disk_name[1:], dir_fd=folder.descriptor) if disk_name[0] == "l" else None
            return self._keys.open_name(folder.dir_id, disk_name, sidecar) if folder.dir_id else b""
        except (InvalidName, OSError):
            return b""

    def _place(self, folder: _Folder, name: bytes, *, lost: bool) -> Path:
        """Where an entry goes; what has no name of its own goes to lost+found, and nothing takes another's place."""
        home = self._target / LOST_AND_FOUND if lost else folder.target
        home.mkdir(mode=0o700, exist_ok=True)
        wanted = home / os.fsdecode(name)
        number = 0
        while os.path.lexists(wanted):
            number += 1
            wanted = home / f"{os.fsdecode(name)[:200]}~{number}"
        return wanted

    def _subfolder(self, folder: _Folder, disk_name: str, plain: bytes) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(disk_name, flags, dir_fd=folder.descriptor)
        try:
            target = self._place(folder, plain or os.fsencode(disk_name), lost=not plain)
            dir_id = self._dir_id(descriptor)
            if not dir_id and os.listdir(descriptor):
                self._problem(target, "the directory has lost its id: its subdirectories' names are lost")
            self._folder(_Folder(descriptor, dir_id, target))
        finally:
            os.close(descriptor)

    def _dir_id(self, descriptor: int) -> bytes:
        """A directory's id: from its symlink, or from a file in it whose name proves it."""
        try:
            return self._keys.open_dir_id(os.readlink(DIR_ID_NAME, dir_fd=descriptor))[0]
        except (OSError, CorruptVolume):
            pass
        for name in os.listdir(descriptor):
            if name[0] != "n" or not stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                continue
            attributes = self._attributes(descriptor, name)
            if attributes is None:
                continue
            try:
                self._keys.open_name(attributes.primary_dir, name, None)
            except InvalidName:
                continue
            return attributes.primary_dir
        return b""

    def _attributes(self, descriptor: int, disk_name: str) -> Attributes | None:
        backing = PosixFile(os.open(disk_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor))
        try:
            pair = read_slots(self._keys, backing)
            return pair.valid[0].attributes if pair.valid else None
        except KmsfsError:
            return None
        finally:
            backing.close()

    def _link(self, folder: _Folder, disk_name: str, plain: bytes) -> None:
        place = self._place(folder, plain or os.fsencode(disk_name), lost=not plain)
        try:
            place.symlink_to(os.fsdecode(self._keys.open_link(os.readlink(disk_name, dir_fd=folder.descriptor))))
            self.report.links += 1
        except CorruptFile as error:
            self.report.lost_files += 1
            self._problem(place, str(error))

    # --- files ------------------------------------------------------------------------------------------------

    def _file(self, folder: _Folder, disk_name: str, plain: bytes, facts: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        backing = PosixFile(os.open(disk_name, flags, dir_fd=folder.descriptor))
        try:
            pair = read_slots(self._keys, backing)
            name = plain or (pair.valid[0].attributes.name if pair.valid else b"")
            # A name from the header is as good, if the directory is known; without one nobody knows the folder.
            lost = not plain and bool(folder.dir_id)
            place = self._place(folder, name or os.fsencode(disk_name), lost=lost or not name)
            self._bring(pair, backing, place, facts)
        except KmsfsError as error:
            if isinstance(error, IntegrityError):
                self.report.lost_files += 1
            else:
                self.report.refused_files += 1
            self._problem(folder.target / (os.fsdecode(plain) or disk_name), str(error))
        finally:
            backing.close()

    def _bring(self, pair: SlotPair, backing: PosixFile, place: Path, facts: os.stat_result) -> None:
        """Write a file from the header of which more is left: the newest, if both are as good."""
        if not pair.valid:
            raise pair.damaged or CorruptFile("the file has no header", IntegrityReason.EMPTY)
        best: tuple[int, Attributes] | None = None
        for slot in pair.valid:
            alone = SlotPair([slot], None, pair.file_bytes)
            file = Kf1File.open_pair(self._tools, backing, alone, None, known=False)
            attempt = place.with_name(f".{place.name[:200]}.rescued")
            lost = self._write(file, attempt)
            if best is None or lost < best[0]:
                attempt.replace(place)
                best = lost, slot.attributes
            else:
                attempt.unlink()
            if not lost:
                break
        if best is None:
            return
        lost, attributes = best
        self.report.files += 1
        self.report.plain_bytes += attributes.size - lost
        self.report.lost_bytes += lost
        if lost:
            self._problem(place, f"{lost} of {attributes.size} bytes are lost, and zeros in their place")
        self._give_attributes(pair.valid[0].clear.file_id, attributes.extras, place)
        _dress(place, facts, attributes.mtime_ns)

    def _give_attributes(self, owner: bytes, expected: int | None, place: Path) -> None:
        """Give what came out the extended attributes that it had, as far as they can be read and the target takes them."""
        if self._extras is None or expected == 0:
            return
        try:
            # An older record than the header's is better than none, as with everything here.
            found = self._extras.load(owner, None)
            for name, value in found.attributes.items():
                os.setxattr(place, name, value)
        except (CorruptFile, UnsupportedFormat) as error:
            self._problem(place, f"its extended attributes are lost: {error}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            self._problem(place, f"the target does not take its extended attributes: {error.strerror}")

    def _write(self, file: Kf1File, place: Path) -> int:
        """Write what opens; return how many bytes do not."""
        lost, step = 0, max(1 << file.clear.chunk_log2, 1)
        with place.open("wb") as target:
            target.truncate(file.size)
            for at in range(0, file.size, _RUN_BYTES):
                try:
                    _put(target.fileno(), content.read(file, _RUN_BYTES, at), at)
                except CorruptFile:
                    end = min(at + _RUN_BYTES, file.size)
                    lost += sum(self._chunk(file, target.fileno(), here, min(step, end - here)) for here in range(at, end, step))
        return lost

    def _chunk(self, file: Kf1File, target: int, at: int, length: int) -> int:
        try:
            _put(target, content.read(file, length, at), at)
        except CorruptFile:
            return length
        return 0


def _put(target: int, data: bytes | memoryview, at: int) -> None:
    if bytes(data).count(0) != len(data):
        os.pwrite(target, data, at)


def _dress(place: Path, facts: os.stat_result, mtime_ns: int) -> None:
    place.chmod(stat.S_IMODE(facts.st_mode))
    if os.geteuid() == 0:
        os.chown(place, facts.st_uid, facts.st_gid)
    os.utime(place, ns=(mtime_ns, mtime_ns))
