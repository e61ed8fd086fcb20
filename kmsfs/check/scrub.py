"""Read every byte of a mounted volume past the kernel's cache, so that what the disk has lost is found while backups still have it."""

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class ScrubReport:
    """What was read. `problems` are (path, why it could not be)."""

    files: int = 0
    directories: int = 0
    content_bytes: int = 0
    gone: int = 0
    """Files that were removed meanwhile."""
    problems: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "files": self.files, "directories": self.directories, "content_bytes": self.content_bytes, "gone": self.gone,
            "problems": [{"path": path, "problem": problem} for path, problem in self.problems],
        }  # fmt: skip


def scrub(root: Path, on_bytes: Callable[[int], None], bytes_a_second: float | None = None) -> ScrubReport:
    """Read every file below a mountpoint; the pace is kept if one is given."""
    report = ScrubReport()
    pace = _Pace(bytes_a_second)
    with mmap.mmap(-1, _PIECE_BYTES) as buffer:
        for path in _files(root, report):
            try:
                for count in _pieces(path, buffer):
                    report.content_bytes += count
                    on_bytes(count)
                    pace.wait(count)
                report.files += 1
            except OSError as error:
                if error.errno == errno.ENOENT:
                    report.gone += 1
                else:
                    report.problems.append((os.fspath(path.relative_to(root)), error.strerror or str(error)))
    return report


class _Pace:
    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due = time.monotonic()

    def wait(self, count: int) -> None:
        """Sleep until `count` more bytes may be read."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now - 1.0) + count / self._rate
        if self._due > now:
            time.sleep(self._due - now)


def _files(root: Path, report: ScrubReport) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        if error.errno != errno.ENOENT:
            where = os.path.relpath(os.fsdecode(error.filename or root), root)
            report.problems.append((where, error.strerror or str(error)))

    device = root.stat().st_dev
    for folder, folders, names in os.walk(root, onerror=failed):
        report.directories += 1
        # What is mounted within is another file system.
        folders[:] = [name for name in folders if _on(os.path.join(folder, name), device)]
        for name in names:
            path = Path(folder) / name
            try:
                regular = stat.S_ISREG(path.lstat().st_mode)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    report.problems.append((os.fspath(path.relative_to(root)), error.strerror or str(error)))
                continue
            if regular:
                yield path


def _on(path: str, device: int) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False


def _pieces(path: Path, buffer: mmap.mmap) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        at = 0
        while count := os.preadv(descriptor, [buffer], at):
            yield count
            at += count
    finally:
        os.close(descriptor)
