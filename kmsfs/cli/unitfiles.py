"""Unit files that come with kmsfs, and the programs of systemd that take them."""

import subprocess
from pathlib import Path

import kmsfs
from kmsfs.errors import StorageError, UsageError


def unit_text(name: str, programs: Path) -> str:
    """Return a unit that runs what is installed in the folder `programs`.

    Raises:
        StorageError: if the unit is not there.
    """
    package = Path(kmsfs.__file__).parent
    for folder in (package / "systemd", package.parent / "systemd"):
        if (folder / name).exists():
            text = (folder / name).read_text(encoding="utf-8")
            return text.replace("=/usr/bin/", f"={programs}/")
    raise StorageError(f"{name} is missing from this installation", hint="install kmsfs again")


def write_file(path: Path, text: str) -> None:
    """Write a file that everybody may read.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def run_program(*command: str, data: bytes = b"", may_fail: bool = False) -> str:
    """Run a program with `data` as its input; return what it prints.

    Raises:
        UsageError: if it is not installed.
        StorageError: if it fails, with what it said, unless it may.
    """
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not installed", hint="this command needs systemd") from error
    if done.returncode and not may_fail:
        raise StorageError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout.decode(errors="replace")
