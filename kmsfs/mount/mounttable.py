"""What is mounted on this machine, as /proc/self/mountinfo tells (proc(5))."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VOLUME, VIEW = "fuse.kmsfs", "fuse.kmsfs-secrets"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the table; `device` is the number that stat(2) gives of everything on it."""

    point: str
    kind: str
    source: str
    device: str
    uid: int
    """Who mounted a FUSE file system."""


def find_mounted(mountpoint: Path) -> Mounted | None:
    """Return what is mounted at a place, the topmost if it is several."""
    return _topmost(os.path.realpath(mountpoint))


def device_of(point: str) -> str:
    """Return the device number of what is mounted at a place, given without symbolic links; it is not looked at."""
    found = _topmost(point)
    return found.device if found is not None else ""


def holds_mounts(point: str) -> bool:
    """Whether something is mounted below a place, given without symbolic links."""
    return any(entry.point.startswith(point.rstrip("/") + "/") for entry in _mounts())


def _topmost(point: str) -> Mounted | None:
    found = None
    for entry in _mounts():
        if entry.point == point:
            found = entry
    return found


def mounted_source(mountpoint: Path) -> str | None:
    """Return the cipher directory of a kmsfs mount, or None."""
    found = find_mounted(mountpoint)
    return found.source if found is not None and found.kind == VOLUME else None


def mounted_volumes() -> list[Mounted]:
    """Return all volumes that are mounted here."""
    return [entry for entry in _mounts() if entry.kind == VOLUME]


def _mounts() -> Iterator[Mounted]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            place, about = left.split(), right.split()
            options = dict(option.partition("=")[::2] for option in about[2].split(","))
            yield Mounted(
                _unescape(place[4]), about[0], _unescape(about[1]), place[2], int(options.get("user_id", "0"))
            )


def _unescape(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text
