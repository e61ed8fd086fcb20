"""kmsfs import: bring what another encrypted file system has into a volume, by reading through that one's own mount."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kmsfs.cli.adopting import adopt_tree, check_places
from kmsfs.cli.output import say
from kmsfs.errors import StorageError, UsageError

_SECONDS = 300
_KINDS = ("gocryptfs", "encfs")


def bring(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{' or '.join(_KINDS)}; whatever is mounted already, `kmsfs adopt` takes.")],
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Its cipher directory; it is only read.")],
    cipher_dir: Annotated[Path, typer.Argument(metavar="CIPHERDIR", help="Where the volume's encrypted files go.")],
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="File with its passphrase; else its own program asks for it.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="KMS key of a new volume (default alias/kmsfs/default).")] = None,
) -> None:
    """Copy what gocryptfs or EncFS encrypted into a volume, read everything back, compare. Goes on where it was cut off. Example: kmsfs import gocryptfs old.cipher new.cipher

    The old one stays as it is. Exit code 21: the copy is not the same in all.
    """
    if kind not in _KINDS:
        raise UsageError(f"{kind!r} is none of {', '.join(_KINDS)}", hint="mount it with its own program, and: kmsfs adopt MOUNTPOINT CIPHERDIR")
    if shutil.which(kind) is None:
        raise UsageError(f"the program {kind} is not installed", hint=f"apt install {kind}")
    if not old.is_dir():
        raise UsageError(f"{old} is no directory")
    if old.resolve() == cipher_dir.resolve():
        raise UsageError("OLD and CIPHERDIR are the same")
    with _mounted(kind, old.absolute(), passphrase_file) as plain:
        check_places(plain, cipher_dir.absolute())
        adopt_tree(plain, cipher_dir.absolute(), key)
    say(f"everything of {old} is in {cipher_dir}: kmsfs mount {cipher_dir} DIR; remove {old} when you are content")


@contextlib.contextmanager
def _mounted(kind: str, old: Path, secret: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kmsfs-import-") as scratch:
        plain = Path(scratch) / "plain"
        plain.mkdir()
        words, given = _mount_words(kind, old, plain, secret)
        try:
            with given.open("rb") if given is not None else contextlib.nullcontext() as stream:
                done = subprocess.run(words, stdin=stream, timeout=_SECONDS, check=False)
        except OSError as error:
            raise StorageError(f"{kind} cannot be run: {error.strerror} ({error.filename})") from error
        except subprocess.TimeoutExpired as error:
            raise StorageError(f"{kind} did not mount {old} within {_SECONDS} s", hint="run this again; it goes on") from error
        if done.returncode or not os.path.ismount(plain):
            raise StorageError(f"{kind} could not mount {old}", hint="is the passphrase right? what it said stands above")
        try:
            yield plain
        finally:
            subprocess.run(["fusermount3" if os.geteuid() else "umount", *(("-u",) if os.geteuid() else ()), os.fspath(plain)], check=False)


def _mount_words(kind: str, old: Path, mount: Path, secret: Path | None) -> tuple[list[str], Path | None]:
    """Return how it is mounted without being changed: the words, and what its standard input is."""
    places = [os.fspath(old), os.fspath(mount)]
    if kind == "gocryptfs":
        return ["gocryptfs", "-ro", "-q", *(("-passfile", os.fspath(secret)) if secret else ()), "--", *places], None
    return ["encfs", *(("--stdinpass",) if secret else ()), *places, "-o", "ro"], secret
