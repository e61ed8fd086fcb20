"""kmsfs adopt: encrypt an existing directory, and keep the original until it is confirmed."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kmsfs.adopt.tree import TreePair, TreeReport, free_bytes
from kmsfs.cli.background import mount_log
from kmsfs.cli.output import SETTINGS, byte_progress, confirm, say, show, stored_bytes
from kmsfs.errors import ExitCode, StorageError, UsageError
from kmsfs.formats.volume import CONFIG_NAME

_SHOWN = 50


def adopt(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to encrypt; it is only read.")],
    cipher_dir: Annotated[
        Path | None, typer.Argument(metavar="CIPHERDIR", help="Where the encrypted files go (default DIR.encrypted).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="KMS key of a new volume (default alias/kmsfs/default).")] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Then rename DIR to DIR.original and mount the volume in its place."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Encrypt an existing directory: copy it, read everything back, compare. Goes on where it was cut off.

    The original stays as it is. Exit code 21: the copy is not the same in all.
    """
    source = source.absolute()
    cipher_dir = (cipher_dir or source.with_name(source.name + ".encrypted")).absolute()
    check_places(source, cipher_dir)
    if replace:
        confirm(f"{source} is renamed to {source}.original, and the volume is mounted in its place", source.name, yes=yes)
    adopt_tree(source, cipher_dir, key)
    if replace:
        _replace(source, cipher_dir)
        return
    say(f"every byte of {source} is in {cipher_dir}; the original is as it was")
    say(f"to use it: kmsfs mount {cipher_dir} DIR, or kmsfs adopt --replace {source} {cipher_dir}")


def adopt_tree(source: Path, cipher_dir: Path, key: str | None) -> None:
    """Copy a tree into a volume, compare, and print what was found; `check_places` comes before.

    Raises:
        UsageError, StorageError: if it cannot be done.
        typer.Exit: with exit code 21, if the copy is not the same in all.
    """
    report = _copy_and_compare(source, cipher_dir, key, stored_bytes(source))
    show(report.document(), lambda: _print(report))
    if report.problems:
        say(f"{source} is as it was; mend what is listed and run this again")
        raise typer.Exit(ExitCode.DAMAGE_FOUND)


def check_places(source: Path, cipher_dir: Path) -> None:
    """See that a tree can be adopted into a volume there.

    Raises:
        UsageError: if there is no tree, it is a volume, or both lie inside each other.
        StorageError: if there is not enough room.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is no directory")
    real, real_cipher = source.resolve(), cipher_dir.resolve()
    if real == real_cipher or real in real_cipher.parents or real_cipher in real.parents:
        raise UsageError("the directory and CIPHERDIR lie inside each other", hint="keep them side by side")
    if (source / CONFIG_NAME).exists():
        raise UsageError(f"{source} is a volume already: its files are encrypted")
    if not (cipher_dir / CONFIG_NAME).exists():
        needed, free = stored_bytes(source), free_bytes(cipher_dir.parent)
        if needed > free:
            raise StorageError(f"{source} has {needed} bytes, and {cipher_dir.parent} has {free} free")


def _copy_and_compare(source: Path, cipher_dir: Path, key: str | None, total: int) -> TreeReport:
    options = ("--key", key) if key else ()
    with _mounted(cipher_dir, *options) as plain, byte_progress("copying", total) as advance:
        copied = TreePair(source, plain, advance).copy()
    # Mounted anew: what is compared is what lies on the disk, and not what the mount still held.
    with _mounted(cipher_dir, "--read-only") as plain, byte_progress("comparing", total) as advance:
        compared = TreePair(source, plain, advance).compare()
    compared.copied = copied.copied
    known = {path for path, _ in compared.problems}
    compared.problems += [problem for problem in copied.problems if problem[0] not in known]
    return compared


@contextlib.contextmanager
def _mounted(cipher_dir: Path, *options: str) -> Iterator[Path]:
    """Mount a volume on a private folder for a while."""
    from kmsfs.mount.run import unmount

    with tempfile.TemporaryDirectory(prefix="kmsfs-adopt-") as scratch:
        plain = Path(scratch) / "plain"
        _mount(cipher_dir, plain, *options)
        try:
            yield plain
        finally:
            unmount(plain)
            log = mount_log(plain)
            if log.exists() and not log.stat().st_size:
                log.unlink()


def _mount(cipher_dir: Path, mountpoint: Path, *options: str) -> None:
    # In a process of its own: mounting forks, and this process goes on.
    shared = ["--quiet", *(() if SETTINGS.autostart else ("--no-autostart",))]
    if SETTINGS.socket:
        shared += ["--socket", SETTINGS.socket]
    command = [sys.executable, "-P", "-m", "kmsfs.cli", *shared, "mount", *options]
    done = subprocess.run([*command, os.fspath(cipher_dir), os.fspath(mountpoint)], check=False)
    if done.returncode:
        raise StorageError(f"{cipher_dir} cannot be mounted")


def _replace(source: Path, cipher_dir: Path) -> None:
    original = source.with_name(source.name + ".original")
    if os.path.lexists(original):
        raise UsageError(f"{original} is there already", hint="move it away")
    try:
        source.rename(original)
        source.mkdir(mode=0o700)
        try:
            _mount(cipher_dir, source)
        except StorageError:
            source.rmdir()
            original.rename(source)
            raise
    except OSError as error:
        raise StorageError(f"cannot put the volume in the place of {source}: {error.strerror}") from error
    say(f"{source} is encrypted now; the original is {original}: remove it when you are content")


def _print(report: TreeReport) -> None:
    for path, problem in report.problems[:_SHOWN]:
        print(f"{path}  ({problem})")
    if len(report.problems) > _SHOWN:
        print(f"… and {len(report.problems) - _SHOWN} more")
    counts = f"{report.files} files, {report.directories} directories, {report.content_bytes} bytes"
    say(f"{report.copied} copied; compared {counts}: {len(report.problems) or 'no'} differences")
