"""kmsd backup, verify-backup, restore, recovery-drill, shares."""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from kmsd.backup.service import Contents, make_backup, prune, read_header, restore_backup, verify_backup
from kmsd.config import SYSTEM_SOCKET, SYSTEM_STATE, Config
from kmsd.realm import read_root
from kmsd.root.keyring import Keyring
from kmsd.root.recovery import parse_recovery_code
from kmsd.root.shares import join_shares, looks_like_share, make_shares
from kmsd.root.sources import read_root_key
from kmsd.store.files import write_atomically
from kmsfs.errors import KmsfsError, RootKeyMissing, StorageError, UsageError
from kmsfs.secret import KeyMaterial

State = Annotated[Path, typer.Option("--state", envvar="KMSD_STATE", help="Folder of the daemon's state.")]
Passphrase = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File with the passphrase, or with the token's PIN; `-` for standard input.")
]
Archive = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A backup.")]
Code = Annotated[
    Path | None,
    typer.Option("--code-file", help="File with the recovery code, or with shares of it, one a line; `-` for standard input."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def read_code(code_file: Path) -> KeyMaterial:
    """Return the root key of a recovery code, or of as many shares as it takes, in a file or on standard input.

    From standard input shares are read until they are enough, an empty line or the end.

    Raises:
        StorageError: if the file cannot be read.
        RootKeyMissing: if it is no code and these are no shares.
    """
    if os.fspath(code_file) == "-":
        first = sys.stdin.readline()
        return _read_shares(first) if looks_like_share(first) else parse_recovery_code(first)
    try:
        text = code_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {code_file}: {error}") from error
    lines = text.splitlines()
    return join_shares(lines) if lines and looks_like_share(lines[0]) else parse_recovery_code(text)


def _read_shares(first: str) -> KeyMaterial:
    shares = [first]
    while True:
        line = sys.stdin.readline()
        if not line.strip():
            return join_shares(shares)
        shares.append(line)
        with contextlib.suppress(RootKeyMissing):
            return join_shares(shares)


def shares(
    threshold: Annotated[int, typer.Option("--threshold", help="How many shares are enough.")],
    count: Annotated[int, typer.Option("--of", help="How many shares are made.")],
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Code = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Split the recovery code into shares, for several people. Shown once; every call makes new ones, and old ones stay good."""
    root_key = read_code(code_file) if code_file else read_root(Config(state, SYSTEM_SOCKET), passphrase_file)
    made = make_shares(root_key, threshold, count)
    if as_json:
        print(json.dumps({"threshold": threshold, "shares": made}))
        return
    print(f"Any {threshold} of these {count} lines are the recovery code; fewer tell nothing. Give each to somebody else.")
    for number, share in enumerate(made, 1):
        print(f"\n{number}: {share}")


def backup(
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="A file that is not there yet, or a folder.")
    ],
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Code = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="In a folder: remove all but so many of the newest backups.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Back up keys, policies, parameters, secrets and the audit log into one encrypted archive, while the daemon runs.

    It opens with the realm's root key or its recovery code, and holds neither: keep the code elsewhere.
    """
    if keep is not None and not destination.is_dir():
        raise UsageError("--keep goes with a folder")
    config = Config(state, SYSTEM_SOCKET)
    root_key = read_code(code_file) if code_file else read_root(config, passphrase_file)
    made = make_backup(config, root_key, destination)
    try:
        contents = verify_backup(made, root_key)
    except KmsfsError:
        made.unlink()
        raise
    pruned = prune(destination, keep) if keep is not None else []
    _remember(config, made, contents)
    if as_json:
        document = {"archive": os.fspath(made), "removed": [os.fspath(path) for path in pruned], **contents.document()}
        print(json.dumps(document))
        return
    print(f"{made}: {made.stat().st_size} bytes, verified")
    _print(contents)
    for path in pruned:
        print(f"removed {path}")


def _remember(config: Config, archive: Path, contents: Contents) -> None:
    """Leave word of the last backup for `kmsfs doctor`; a state folder that cannot be written is no reason to fail."""
    text = json.dumps({"archive": os.fspath(archive.absolute()), "created": contents.created})
    stamp = config.state / "last-backup.json"
    with contextlib.suppress(StorageError, OSError):
        write_atomically(stamp, text.encode(), mode=0o600)
        if os.geteuid() == 0:
            # Made by root, it is still for whom the state belongs to.
            owner = config.state.stat()
            os.chown(stamp, owner.st_uid, owner.st_gid)


def verify(archive: Archive, state: State = SYSTEM_STATE, passphrase_file: Passphrase = None, code_file: Code = None,
           *, as_json: AsJson = False) -> None:  # fmt: skip
    """Open everything in a backup, and tell what it holds."""
    contents = verify_backup(archive, _root_key_of(archive, state, passphrase_file, code_file))
    _show(contents, as_json=as_json)


def restore(
    archive: Archive,
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Code = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify only, change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a realm from a backup, where none is. Keys, parameters and grants are as they were when it was made."""
    root_key = _root_key_of(archive, state, passphrase_file, code_file)
    if dry_run:
        contents = verify_backup(archive, root_key)
    else:
        contents = restore_backup(archive, root_key, Config(state, SYSTEM_SOCKET))
    _show(contents, as_json=as_json)
    if not dry_run and not as_json:
        print(f"Restored into {state}. Mounted volumes ask once for `kmsfs volume accept-restore`.")


def recovery_drill(
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Annotated[
        Path, typer.Option("--code-file", help="File with the recovery code, `-` for standard input.")
    ] = Path("-"),
    *,
    as_json: AsJson = False,
) -> None:
    """Prove that the recovery code recovers: back up, restore the copy with the code alone, open every key, remove it."""
    code_key = read_code(code_file)
    config = Config(state, SYSTEM_SOCKET)
    with tempfile.TemporaryDirectory(prefix="kmsd-drill-") as scratch:
        archive = make_backup(config, read_root(config, passphrase_file), Path(scratch))
        contents = restore_backup(archive, code_key, Config(Path(scratch) / "realm" / "state", SYSTEM_SOCKET))
    _show(contents, as_json=as_json)
    if not as_json:
        print("The recovery code opens all of it.")


def _root_key_of(archive: Path, state: Path, passphrase_file: Path | None, code_file: Path | None) -> KeyMaterial:
    """The root key that opens an archive: from the code, or from the source that the archive's realm had."""
    realm: Keyring = read_header(archive).realm
    if code_file is not None:
        return read_code(code_file)
    return read_root_key(Config(state, SYSTEM_SOCKET).source(realm.seal_type, passphrase_file), realm.argon2)


def _show(contents: Contents, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(contents.document()))
    else:
        _print(contents)


def _print(contents: Contents) -> None:
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(contents.created))
    print(f"account {contents.account}, made {made}, root key source {contents.root_key_source}")
    print(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in contents.counts.items()))
