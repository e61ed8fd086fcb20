"""kmsd join, share-state."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from kmsd.backup.commands import AsJson, Code, Passphrase, State, read_code
from kmsd.config import SYSTEM_SOCKET, SYSTEM_STATE, Config
from kmsd.realm import join_realm, open_realm, share_state
from kmsd.root.keyring import parse_header
from kmsd.root.sources import read_root_key
from kmsd.store.files import lock_state
from kmsfs.errors import StorageError, UsageError

Url = Annotated[
    str, typer.Argument(metavar="URL", help="An empty PostgreSQL database, such as postgresql://kmsd@db1,db2/kmsd?target_session_attrs=read-write")
]
Database = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Keep the state in this empty PostgreSQL database, for several hosts.")
]


def join(
    database: Annotated[str, typer.Option("--database", metavar="URL", help="The database that the realm's daemons share.")],
    keyring: Annotated[Path, typer.Option("--keyring", help="A copy of keyring.kms of a host that has joined.")],
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Code = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let this host's daemon serve a realm whose state is in a shared database.

    The keyring says where the root key comes from; where that is a keyfile, the recovery code makes one here.
    """
    config = Config(state, SYSTEM_SOCKET)
    try:
        wrapped = keyring.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {keyring}: {error.strerror}") from error
    header = parse_header(wrapped)
    root_key = read_code(code_file) if code_file else read_root_key(config.source(header.seal_type, passphrase_file), header.argon2)
    key = join_realm(config, wrapped, root_key, database)
    if as_json:
        print(json.dumps({"state": os.fspath(state), "audit_verification_key": key}))
        return
    print(f"{state} serves the realm from its shared database. This host has an audit log of its own; its key is shown once:")
    print(f"  audit verification key  {key}")


def share_state_command(
    url: Url,
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: kmsd of this host needs that database from then on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the state of a realm, while its daemon is stopped, into an empty PostgreSQL database, so that other hosts can join."""
    config = Config(state, SYSTEM_SOCKET)
    if not yes:
        raise UsageError("kmsd will need that database from then on", hint="make a backup first (kmsd backup), then pass --yes")
    lock_state(config.lock, config.socket)
    kept = share_state(config, open_realm(config, passphrase_file).keyring, url)
    if as_json:
        print(json.dumps({"state": os.fspath(state), "kept": os.fspath(kept)}))
        return
    print(f"The state is in the database. What it was is kept as {kept}: remove it when the daemon has proven itself.")
    print(f"Other hosts: copy {config.keyring} there, and kmsd join --database URL --keyring FILE --code-file -")
