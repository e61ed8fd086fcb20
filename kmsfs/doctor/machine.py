"""The machine: swap, core dumps, FUSE, inotify. `root` is `/`, or a stand-in for it."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from kmsfs.doctor.finding import Finding, Level, fine

_KERNEL = (5, 18)
_WATCHES = 65_536


def examine_machine(root: Path, *, uid: int) -> Iterator[Finding]:
    """Yield what this machine is like, for a user."""
    yield _swap(root)
    yield _core_dumps(root)
    yield _kernel(root)
    yield _fuse(root, uid)
    yield _watches(root)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _swap(root: Path) -> Finding:
    used = [line.split()[0] for line in _text(root / "proc/swaps").splitlines()[1:]]
    bare = [name for name in used if not _encrypted(root, name)]
    if not used:
        return fine("swap", "none")
    if not bare:
        return fine("swap", f"{', '.join(used)}: in memory or encrypted")
    return Finding(
        "swap", Level.WARNING, f"{', '.join(bare)} is not encrypted",
        "kmsd locks its memory, but a mount's data keys and what programs read can be written there and stay",
        "use a swap that is encrypted with a key of each boot (crypttab(5), `swap`), or zram",
    )  # fmt: skip


def _encrypted(root: Path, name: str) -> bool:
    if re.match(r"/dev/zram\d+\Z", name):
        return True
    try:
        number = (root / name.lstrip("/")).resolve().name
    except OSError:
        return False
    return _text(root / "sys/block" / number / "dm/uuid").startswith("CRYPT-")


def _core_dumps(root: Path) -> Finding:
    setting = _text(root / "proc/sys/fs/suid_dumpable")
    if setting == "1":
        return Finding(
            "core dumps", Level.WARNING, "fs.suid_dumpable is 1: programs with privileges leave cores",
            "a core of a program that read secrets has them", "sysctl -w fs.suid_dumpable=0",
        )  # fmt: skip
    return fine("core dumps", "kmsd and mounts leave none")


def _kernel(root: Path) -> Finding:
    release = _text(root / "proc/sys/kernel/osrelease")
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) < _KERNEL:
        return Finding(
            "kernel", Level.WARNING, release,
            "before 5.18 btrfs could lose the target of a symlink after fsync of its folder: directory ids are such targets",
            "a newer kernel, or another file system than btrfs for cipher directories",
        )  # fmt: skip
    return fine("kernel", release or "unknown")


def _fuse(root: Path, uid: int) -> Finding:
    device = root / "dev/fuse"
    if not device.exists():
        return Finding("fuse", Level.PROBLEM, "there is no /dev/fuse", "nothing can be mounted", "modprobe fuse")
    if uid == 0:
        return fine("fuse", "/dev/fuse is there")
    if not device.stat().st_mode & stat.S_IWOTH:
        return Finding(
            "fuse", Level.PROBLEM, "/dev/fuse is for root only", "you cannot mount anything", "chmod 0666 /dev/fuse, as root"
        )
    helper = root / "usr/bin/fusermount3"
    if not helper.exists() or not helper.stat().st_mode & stat.S_ISUID:
        return Finding(
            "fuse", Level.PROBLEM, "fusermount3 is missing, or not setuid", "users other than root cannot mount", "apt install fuse3"
        )
    return fine("fuse", "/dev/fuse and fusermount3 are there")


def _watches(root: Path) -> Finding:
    text = _text(root / "proc/sys/fs/inotify/max_user_watches")
    if text.isdigit() and int(text) < _WATCHES:
        return Finding(
            "inotify", Level.ADVICE, f"fs.inotify.max_user_watches is {text}",
            "a mount watches each directory that it knows; without a watch the kernel's caches live for one second only",
            f"sysctl -w fs.inotify.max_user_watches={_WATCHES * 8}",
        )  # fmt: skip
    return fine("inotify", f"{text or 'unknown'} watches a user")

