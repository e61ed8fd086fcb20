"""kmsd seal, unseal, change-root."""

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsd.backup.commands import Code, Passphrase, State, read_code
from kmsd.config import SYSTEM_SOCKET, SYSTEM_STATE, Config
from kmsd.realm import change_root, next_path, read_root
from kmsd.root.keyring import Argon2Parameters, SealType
from kmsd.root.recovery import recovery_code
from kmsd.root.shares import make_shares
from kmsd.root.sources import key_of_passphrase, new_argon2, read_key_file, read_passphrase, read_pin
from kmsd.root.token import make_token_root
from kmsd.store.files import lock_state
from kmsd.tokens.token import parse_place
from kmsfs.errors import (
    AccessDenied,
    Conflict,
    DaemonUnreachable,
    RootKeyMissing,
    StorageError,
    UnsupportedOperation,
    UsageError,
)
from kmsfs.formats.frame import LENGTH_BYTES, decode_answer, encode_request, read_length
from kmsfs.secret import KeyMaterial

RootToken = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="MODULE:LABEL",
        help="For a root key in a PKCS #11 token: its module and label, such as /usr/lib/softhsm/libsofthsm2.so:kmsfs.",
    ),
]  # fmt: skip
Socket = Annotated[Path, typer.Option("--socket", envvar="KMSD_SOCKET", readable=False, help="The daemon's Unix socket.")]
_PROMPTS = {"passphrase": "Passphrase: ", "pkcs11": "PIN of the token: "}
_SECONDS = 30.0
_REFUSALS = {kind.code: kind for kind in (AccessDenied, Conflict, UnsupportedOperation)}


def call(path: Path, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Ask the daemon on a socket for one operation.

    Raises:
        DaemonUnreachable: if none answers.
        AccessDenied, Conflict, UnsupportedOperation, RootKeyMissing: if it refuses, with its words.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(encode_request(1, operation, parameters))
            with connection.makefile("rb") as stream:
                prefix = stream.read(LENGTH_BYTES)
                answer = decode_answer(stream.read(read_length(prefix))) if len(prefix) == LENGTH_BYTES else None
        except OSError as error:
            raise DaemonUnreachable(f"no key daemon answers on {path}: {error.strerror or error}") from error
    if answer is None:
        raise DaemonUnreachable(f"the key daemon on {path} closed the connection")
    if "e" in answer:
        refused = _REFUSALS.get(answer["e"]["code"], RootKeyMissing)
        raise refused(answer["e"]["message"], hint=answer["e"]["hint"])
    found: dict[str, Any] = answer["r"]
    return found


def seal(socket: Socket = SYSTEM_SOCKET, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Let a running daemon forget every key, in an emergency. Mounts answer errors within ten seconds, until `kmsd unseal`."""
    source = call(socket, "GetSealStatus", {})["RootKeySource"]
    if not yes and not typer.confirm(
        f"Every call is refused and every mount stops until somebody unseals it (root key source: {source}). Seal?"
    ):
        raise UsageError("nothing was done", hint="say y, or pass --yes")
    call(socket, "Seal", {})
    print(f"Sealed. `kmsd unseal --socket {socket}` brings it back.")


def unseal(
    socket: Socket = SYSTEM_SOCKET,
    passphrase_file: Passphrase = None,
    share_file: Annotated[
        Path | None, typer.Option("--share-file", help="File with your share, `-` for standard input; else it is asked for.")
    ] = None,
) -> None:
    """Give a sealed daemon its root key: your share of it, the passphrase, or word to ask its own source again."""
    status = call(socket, "GetSealStatus", {})
    if not status["Sealed"]:
        print("It is not sealed.")
        return
    source = status["RootKeySource"]
    if share_file is not None or (source == "shares" and passphrase_file is None):
        status = call(socket, "Unseal", {"Share": _secret(share_file, "Your share: ")})
    elif source in _PROMPTS:
        status = call(socket, "Unseal", {"Passphrase": _secret(passphrase_file, _PROMPTS[source]).encode()})
    else:
        status = call(socket, "Unseal", {})
    if status["Sealed"]:
        print(f"{status['SharesGiven']} of {status['SharesNeeded']} shares are given.")
    else:
        print("Unsealed.")


def _secret(file: Path | None, prompt: str) -> str:
    """Read one line: of a file, of standard input, or from the terminal without showing it."""
    if file is not None and os.fspath(file) != "-":
        try:
            return file.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot read {file}: {error}") from error
    if file is None and sys.stdin.isatty():
        return getpass.getpass(prompt)
    return sys.stdin.readline().strip("\r\n")


def change_root_command(
    to: Annotated[str, typer.Option(help="Where the root key comes from: keyfile, passphrase, credential, pkcs11 or shares.")],
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    code_file: Code = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="With `--to passphrase` or `pkcs11`: file with the new one, or the token's PIN; `-` for standard input.")
    ] = None,
    credential_file: Annotated[
        Path | None, typer.Option(help="With `--to credential`: file with the 32 bytes that systemd-creds has sealed.")
    ] = None,
    threshold: Annotated[int, typer.Option(help="With `--to shares`: how many are enough.")] = 0,
    of: Annotated[int, typer.Option(help="With `--to shares`: how many are made.")] = 0,
    token: RootToken = None,
) -> None:
    """Give a realm another root key, from another source, while kmsd is stopped. Keys and everything under them stay as they are.

    The old recovery code, shares and keyfile open this realm no more; backups that were made before still need them.
    """
    kinds = {kind.name.lower(): kind for kind in SealType}
    if to not in kinds:
        raise UsageError(f"--to is one of {', '.join(kinds)}")
    config, kind = Config(state, SYSTEM_SOCKET), kinds[to]
    lock_state(config.lock, config.socket)
    old = read_code(code_file) if code_file is not None else read_root(config, passphrase_file)
    if kind is SealType.PKCS11:
        place = parse_place(token) if token else None
        new, argon2 = make_token_root(next_path(config.token_file), place, read_pin(new_passphrase_file), os.urandom), Argon2Parameters()
    else:
        new, argon2 = _new_root(kind, new_passphrase_file, credential_file)
    # Before anything is changed: a realm whose shares nobody has seen is lost.
    print("What follows is shown once and stored nowhere.")
    if kind is SealType.SHARES:
        print_shares(make_shares(new, threshold, of), threshold)
    else:
        print(f"  recovery code           {recovery_code(new)}")
    sys.stdout.flush()
    change_root(config, old, new, kind, argon2)
    print(f"\nThe root key of {state} comes from {to} now.")


def print_shares(shares: list[str], threshold: int) -> None:
    """Print shares, once."""
    print(f"Any {threshold} of these {len(shares)} lines are the root key; fewer tell nothing. Give each to somebody else.")
    for number, share in enumerate(shares, 1):
        print(f"\n{number}: {share}")


def _new_root(kind: SealType, passphrase_file: Path | None, credential_file: Path | None) -> tuple[KeyMaterial, Argon2Parameters]:
    if kind is SealType.PASSPHRASE:
        if passphrase_file is None:
            raise UsageError("--to passphrase needs --new-passphrase-file")
        argon2 = new_argon2(os.urandom)
        return key_of_passphrase(read_passphrase(passphrase_file), argon2), argon2
    if kind is SealType.CREDENTIAL:
        if credential_file is None:
            raise UsageError(
                "--to credential needs --credential-file",
                hint="head -c 32 /dev/urandom > F; systemd-creds encrypt --name=kmsfs-root F SEALED; remove F afterwards",
            )
        return read_key_file(credential_file), Argon2Parameters()
    return KeyMaterial(os.urandom(32)), Argon2Parameters()
