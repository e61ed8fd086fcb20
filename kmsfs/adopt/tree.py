"""Copy a tree with all that belongs to it, go on where a copy was cut off, and compare two trees to the last byte."""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmsfs.adopt.facts import attributes_of, content_differs, unlike
from kmsfs.errors import StorageError

_PARTIAL = ".kmsfs-adopting"
"""Name of the file that is being copied, one in a directory at a time."""


@dataclass(slots=True)
class TreeReport:
    """What was gone through, and what is not the same: (path below the tree, how)."""

    files: int = 0
    directories: int = 0
    others: int = 0
    content_bytes: int = 0
    copied: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "files": self.files, "directories": self.directories, "others": self.others,
            "content_bytes": self.content_bytes, "copied": self.copied,
            "problems": [{"path": path, "problem": problem} for path, problem in self.problems],
        }  # fmt: skip


class TreePair:
    """A source tree, which is only read, and its copy. `on_bytes` hears of content gone through."""

    def __init__(self, source: Path, target: Path, on_bytes: Callable[[int], None]) -> None:
        self._source = source
        self._target = target
        self._on_bytes = on_bytes
        self._device = source.stat().st_dev
        self._links: dict[tuple[int, int], Path] = {}
        self.report = TreeReport()

    # --- copying ----------------------------------------------------------------------------------------------

    def copy(self) -> TreeReport:
        """Copy what is not there yet or differs; nothing is removed. What cannot be read is a problem in the report.

        Raises:
            StorageError: if the copy cannot be written: a full disk and the like.
        """
        self._copy_directory(self._source, self._target)
        return self.report

    def _copy_directory(self, source: Path, target: Path) -> None:
        self.report.directories += 1
        with _writing(target):
            (target / _PARTIAL).unlink(missing_ok=True)
        for entry in self._entries(source):
            ours, theirs = source / entry.name, target / entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if ours.stat().st_dev != self._device:
                        self._problem(ours, "another file system is mounted here: adopt it by itself")
                        continue
                    with _writing(theirs):
                        theirs.mkdir(mode=0o700, exist_ok=True)
                    self._copy_directory(ours, theirs)
                else:
                    self._copy_entry(ours, theirs)
            except OSError as error:
                self._problem(ours, f"cannot be read: {error.strerror}")
        with _writing(target):
            _dress(source, target)

    def _entries(self, folder: Path) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as found:
                yield from sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._problem(folder, f"cannot be listed: {error.strerror}")

    def _copy_entry(self, source: Path, target: Path) -> None:
        facts = source.lstat()
        regular = stat.S_ISREG(facts.st_mode)
        self.report.files += regular
        self.report.others += not regular
        self.report.content_bytes += facts.st_size if regular else 0
        first = self._links.setdefault((facts.st_dev, facts.st_ino), target) if facts.st_nlink > 1 else target
        if first != target:
            self._copy_link(first, target)
        elif not os.path.lexists(target) or unlike(source, target):
            self.report.copied += 1
            if regular:
                self._copy_file(source, target, facts)
            else:
                self._copy_special(source, target, facts)
            return
        self._on_bytes(facts.st_size if regular else 0)

    def _copy_link(self, first: Path, target: Path) -> None:
        with _writing(target):
            if os.path.lexists(target):
                if first.lstat().st_ino == target.lstat().st_ino:
                    return
                target.unlink()
            os.link(first, target, follow_symlinks=False)
        self.report.copied += 1

    def _copy_file(self, source: Path, target: Path, facts: os.stat_result) -> None:
        partial = target.with_name(_PARTIAL)
        with source.open("rb", buffering=0) as reader, _writing(target):
            with partial.open("wb", buffering=0) as writer:
                for start, length in _data_runs(reader.fileno(), facts.st_size):
                    reader.seek(start)
                    writer.seek(start)
                    left = length
                    while left and (piece := reader.read(min(left, 1 << 20))):
                        writer.write(piece)
                        left -= len(piece)
                        self._on_bytes(len(piece))
                writer.truncate(facts.st_size)
            _dress(source, partial)
            partial.replace(target)

    def _copy_special(self, source: Path, target: Path, facts: os.stat_result) -> None:
        with _writing(target):
            if os.path.lexists(target):
                target.unlink()
            if stat.S_ISLNK(facts.st_mode):
                target.symlink_to(source.readlink())
            else:
                os.mknod(target, facts.st_mode, facts.st_rdev)
            _dress(source, target)

    # --- comparing --------------------------------------------------------------------------------------------

    def compare(self) -> TreeReport:
        """Compare everything, each byte of content; what the copy has and the source has not is a problem too."""
        self._compare_directory(self._source, self._target)
        return self.report

    def _compare_directory(self, source: Path, target: Path) -> None:
        self.report.directories += 1
        names = set()
        for entry in self._entries(source):
            names.add(entry.name)
            ours, theirs = source / entry.name, target / entry.name
            try:
                if entry.is_dir(follow_symlinks=False) and theirs.is_dir() and not theirs.is_symlink():
                    self._compare_directory(ours, theirs)
                else:
                    self._compare_entry(ours, theirs)
            except FileNotFoundError:
                self._problem(ours, "is missing in the copy")
            except OSError as error:
                self._problem(ours, f"cannot be read: {error.strerror}")
        for entry in self._entries(target):
            if entry.name not in names:
                self._problem(source / entry.name, "is in the copy only")
        difference = unlike(source, target)
        if difference:
            self._problem(source, difference)

    def _compare_entry(self, source: Path, target: Path) -> None:
        facts = source.lstat()
        regular = stat.S_ISREG(facts.st_mode)
        self.report.files += regular
        self.report.others += not regular
        difference = unlike(source, target)
        if not difference and facts.st_nlink > 1:
            first = self._links.setdefault((facts.st_dev, facts.st_ino), target)
            if first.lstat().st_ino != target.lstat().st_ino:
                difference = "no link to the same file any more"
        if not difference and regular:
            self.report.content_bytes += facts.st_size
            at = content_differs(source, target)
            difference = "" if at is None else f"content differs within a MiB from byte {at} on"
            self._on_bytes(facts.st_size)
        if difference:
            self._problem(source, difference)

    def _problem(self, path: Path, problem: str) -> None:
        self.report.problems.append((os.fspath(path.relative_to(self._source)), problem))


def _data_runs(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of what is no hole."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at - start


def _dress(source: Path, target: Path) -> None:
    """Give a copy its owner, mode, attributes and times: in this order, as each may undo the one before."""
    facts = source.lstat()
    os.chown(target, facts.st_uid, facts.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(facts.st_mode):
        target.chmod(stat.S_IMODE(facts.st_mode))
    wanted, present = attributes_of(source), attributes_of(target)
    for name in present.keys() - wanted.keys():
        os.removexattr(target, name, follow_symlinks=False)
    for name, value in wanted.items():
        if present.get(name) != value:
            os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror}", hint="what was copied stays; run it again to go on",
            os_errno=error.errno or 5,
        ) from error  # fmt: skip


def free_bytes(folder: Path) -> int:
    """Return how much may still be written where a folder lies."""
    return shutil.disk_usage(folder).free
