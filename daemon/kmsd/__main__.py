"""The `kmsd` command: init, serve, recover, restart-audit, verify-audit; and those of kmsd.backup."""

import contextlib
import gc
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from kmsd.access.rules import SYSTEM_FOLDER
from kmsd.audit.journal import verify_log
from kmsd.audit.upkeep import SEGMENT_BYTES, AuditLimits
from kmsd.backup import commands
from kmsd.backup.commands import Code, Passphrase, State, read_code
from kmsd.config import HOME_REGION, SYSTEM_SOCKET, SYSTEM_STATE, Config, lock_memory_and_dumps
from kmsd.parameters.tier import parse_limits
from kmsd.realm import (
    begin_new_audit,
    initialise,
    open_realm,
    open_with,
    read_header,
    read_root,
    recover,
    renew_state_key,
)
from kmsd.root.keyring import Keyring, SealType, open_keyring
from kmsd.root.sources import key_of_passphrase
from kmsd.root.token import read_token_root
from kmsd.sealing.commands import RootToken, change_root_command, print_shares, seal, unseal
from kmsd.sealing.server import SealedState, keepers, serve_sealed
from kmsd.sealing.unsealing import Unsealing
from kmsd.server.listen import CREDENTIALS, MAIN, activated_sockets, bind_socket, pass_on
from kmsd.server.throttle import parse_quotas
from kmsd.sharing.commands import Database, join, share_state_command
from kmsd.store.files import lock_state
from kmsd.tokens.token import parse_place, parse_places
from kmsfs.aead.selfcheck import run_self_check
from kmsfs.errors import KmsfsError, UsageError
from kmsfs.loopback import parse_endpoint
from kmsfs.secret import KeyMaterial

_BOUND = "KMSD_BOUND_SOCKETS"
"""Sockets to be removed at the end, for a daemon that comes back sealed."""
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The key daemon of kmsfs.",
)
Socket = Annotated[
    # Not `readable`: under socket activation the socket is systemd's, and the daemon's user may not even open it.
    Path, typer.Option("--socket", envvar="KMSD_SOCKET", readable=False, help="Unix socket to listen on.")
]
AuditSegment = Annotated[
    int, typer.Option(min=1, metavar="MIB", help="Size at which the audit log goes on in a new file; it does once a day in any case.")
]
AuditKeep = Annotated[
    float | None,
    typer.Option(min=1, metavar="DAYS", envvar="KMSD_AUDIT_KEEP", help="Remove files of the audit log whose records are all older; without it none is."),
]
Account = Annotated[
    str | None, typer.Option(help="Twelve digits that name the account in ARNs; at random if not given.")
]

AwsSocket = Annotated[
    Path | None, typer.Option("--aws-socket", envvar="KMSD_AWS_SOCKET", help="Unix socket for HTTP clients, beside --aws-endpoint or alone.")
]
Quotas = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS=RATE",
        help="Calls a second of each principal: cryptographic, asymmetric, parameters, management; also in KMSD_QUOTAS, with spaces between.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="Raise a limit of parameters: standard-parameters, advanced-parameters (how many in a region), standard-value, "
        "advanced-value (bytes); also in KMSD_LIMITS, with spaces between.",
    ),
]
KeyStoreTokens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODULE:LABEL",
        help="A PKCS #11 token that may be a custom key store; also in KMSD_KEY_STORE_TOKENS, with spaces between.",
    ),
]


@app.command()
def init(
    state: State = SYSTEM_STATE,
    source: Annotated[
        str, typer.Option(help="Root key source: keyfile, passphrase, credential, pkcs11 or shares.")
    ] = "keyfile",
    passphrase_file: Passphrase = None,
    account: Account = None,
    threshold: Annotated[int, typer.Option(help="With `--source shares`: how many are enough.")] = 0,
    of: Annotated[int, typer.Option(help="With `--source shares`: how many are made.")] = 0,
    token: RootToken = None,
    database: Database = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a realm and print its recovery code, or the shares of its root key, once."""
    seal_types = {kind.name.lower(): kind for kind in SealType}
    if source not in seal_types:
        raise typer.BadParameter(f"--source is one of {', '.join(seal_types)}")
    made = initialise(Config(state, SYSTEM_SOCKET), seal_types[source], passphrase_file, account, (threshold, of),
                      parse_place(token) if token else None, database)  # fmt: skip
    if as_json:
        document: dict[str, object] = {"audit_verification_key": made.audit_verification_key}
        document |= {"shares": made.shares} if made.shares else {"recovery_code": made.recovery_code}
        print(json.dumps({"state": os.fspath(state), **document}))
        return
    print(f"Made a realm in {state}. What follows is shown once and stored nowhere: keep it elsewhere.")
    if not made.shares:
        print(f"  recovery code           {made.recovery_code}")
    print(f"  audit verification key  {made.audit_verification_key}")
    if made.shares:
        print_shares(made.shares, threshold)


@app.command()
def serve(
    state: State = SYSTEM_STATE,
    socket: Socket = SYSTEM_SOCKET,
    passphrase_file: Passphrase = None,
    socket_mode: Annotated[str, typer.Option(help="Octal mode of the socket.")] = "0660",
    administrator: Annotated[
        list[int] | None, typer.Option(help="uid that may read every parameter.")
    ] = None,
    aws_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="KMSD_AWS_ENDPOINT", help="Loopback address for AWS's clients, such as 127.0.0.1:4599."
        ),
    ] = None,
    aws_socket: AwsSocket = None,
    aws_region: Annotated[
        str,
        typer.Option(help="The region in which AWS's clients see what the socket keeps; others are apart."),
    ] = HOME_REGION,
    account: Account = None,
    metrics: Annotated[
        str | None,
        typer.Option(envvar="KMSD_METRICS", help="Loopback address for Prometheus, such as 127.0.0.1:9464."),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(envvar="KMSD_TRACES", help="Loopback address of an OpenTelemetry collector (OTLP over HTTP), such as 127.0.0.1:4318."),
    ] = None,
    guardrails: Annotated[
        Path | None,
        typer.Option(
            envvar="KMSD_GUARDRAILS",
            help=f"Folder of policies that deny and that nobody can loosen; {SYSTEM_FOLDER} if it is there.",
        ),
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(help="Socket for systemd's LoadCredential=ID:SOCKET; systemd's own units pass one."),
    ] = None,
    digest_every: Annotated[
        float, typer.Option(min=1, help="Seconds between two signed digests of the audit log.")
    ] = 3600.0,
    audit_segment: AuditSegment = SEGMENT_BYTES >> 20,
    audit_keep: AuditKeep = None,
    quota: Quotas = None,
    limit: Limits = None,
    key_store_token: KeyStoreTokens = None,
    *,
    ephemeral: Annotated[
        bool, typer.Option(help="Serve an empty realm that is gone when the daemon stops; --account names it.")
    ] = False,
    private: Annotated[bool, typer.Option(help="Serve this user only, with a 0600 socket.")] = False,
    sealed: Annotated[bool, typer.Option("--sealed", help="Wait for `kmsd unseal` before anything else; realms of shares always do.")] = False,
    accept_clock: Annotated[bool, typer.Option(help="Take the clock's time, though the log knows a later one: it was ahead before; audited.")] = False,
    accept_rollback: Annotated[bool, typer.Option(help="Start on a restored, older state; audited.")] = False,
) -> None:
    """Serve a realm on a Unix socket (or the one systemd passes) until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="kmsd: %(message)s", stream=sys.stderr)
    administrators = (*(administrator or ()), *((os.getuid(),) if private else ()))
    endpoint = parse_endpoint(aws_endpoint) if aws_endpoint else None
    mode = 0o600 if private else int(socket_mode, 8)
    if account and not ephemeral:
        raise UsageError("--account goes with --ephemeral", hint="a kept realm gets it by `kmsd init --account`")
    with _state_folder(state, ephemeral=ephemeral) as folder:
        config = Config(
            folder, socket, mode, accept_rollback, private, administrators, endpoint, aws_socket, aws_region,
            parse_endpoint(metrics) if metrics else None,
            parse_endpoint(traces) if traces else None,
            guardrails or (SYSTEM_FOLDER if SYSTEM_FOLDER.is_dir() else None),
            credentials, digest_every, AuditLimits(audit_segment << 20, audit_keep), parse_quotas(_settings("KMSD_QUOTAS", quota)), parse_limits(_settings("KMSD_LIMITS", limit)),
            parse_places(_settings("KMSD_KEY_STORE_TOKENS", key_store_token)), accept_clock, ephemeral,
        )  # fmt: skip
        lock_memory_and_dumps()
        run_self_check()
        if ephemeral:
            initialise(config, SealType.KEYFILE, None, account)
        _serve(config, passphrase_file, sealed=sealed and not ephemeral)


def _settings(variable: str, given: list[str] | None) -> list[str]:
    """Return the settings of an environment variable, and behind them those of the command line, which win."""
    return [*os.environ.get(variable, "").split(), *(given or ())]


@contextlib.contextmanager
def _state_folder(state: Path, *, ephemeral: bool) -> Iterator[Path]:
    """Yield the state folder; an ephemeral one lies in memory where it can, and is removed afterwards."""
    if not ephemeral:
        yield state
        return
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="kmsd-", dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made) / "state"


def _serve(config: Config, passphrase_file: Path | None, *, sealed: bool) -> None:
    # All rooms meet there; what does not serve, such as `init`, starts sooner without.
    from kmsd.app import Daemon

    header = read_header(config)
    sealed = sealed or header.seal_type is SealType.SHARES
    realm = None if sealed else open_realm(config, passphrase_file)
    lock_state(config.lock, config.socket)
    sockets = activated_sockets()
    bound = [Path(path) for path in os.environ.pop(_BOUND, "").split("\n") if path]
    if MAIN not in sockets:
        sockets[MAIN] = bind_socket(config.socket, config.socket_mode)
        bound.append(config.socket)
    if CREDENTIALS not in sockets and config.credentials is not None:
        sockets[CREDENTIALS] = bind_socket(config.credentials, 0o600)
        bound.append(config.credentials)
    try:
        helpers: list[int] = []
        if realm is None:
            unsealing = _unsealing(config, header)
            state = SealedState(unsealing, keepers(config.administrators))
            if not serve_sealed(state, sockets[MAIN]) or unsealing.root_key is None:
                return
            realm, helpers = open_with(config, unsealing.root_key), state.helpers
        # What is loaded stays: the collector would look at all of it again and again while it comes.
        gc.disable()
        daemon = Daemon(config, realm, helpers)
        gc.enable()
        if daemon.serve(sockets[MAIN], sockets.get(CREDENTIALS)):
            _come_back_sealed(sockets, bound)
    finally:
        for path in bound:
            path.unlink(missing_ok=True)


def _unsealing(config: Config, header: Keyring) -> Unsealing:
    """What can open a sealed realm."""

    def read_source(passphrase: bytes | None) -> KeyMaterial:
        """Return the root key from where the realm has it."""
        if passphrase is None:
            return read_root(config, None)
        if header.seal_type is SealType.PKCS11:
            return read_token_root(config.token_file, passphrase)
        return key_of_passphrase(passphrase, header.argon2)

    def opens(key: KeyMaterial) -> None:
        open_keyring(config.keyring.read_bytes(), key)

    return Unsealing(header.seal_type, read_source, opens)


def _come_back_sealed(sockets: dict[str, socket.socket], bound: list[Path]) -> None:
    """Become a new process image that has no key in its memory: no trust in wiping. The sockets and the pid stay."""
    pass_on(sockets)
    os.environ[_BOUND] = "\n".join(map(os.fspath, bound))
    command = [word for word in sys.orig_argv if word != "--sealed"]
    os.execv(sys.executable, [*command, "--sealed"])  # noqa: S606


@app.command("recover")
def recover_command(
    state: State = SYSTEM_STATE,
    code_file: Annotated[
        Path, typer.Option(help="File with the recovery code, or shares of it; `-` for standard input.")
    ] = Path("-"),
) -> None:
    """Give a realm a new keyfile from its recovery code."""
    recover(Config(state, SYSTEM_SOCKET), commands.read_code(code_file))
    print(f"The realm in {state} opens with {state / 'root.key'} again.")


app.command()(seal)
app.command()(unseal)
app.command("change-root")(change_root_command)
app.command()(commands.backup)
app.command("verify-backup")(commands.verify)
app.command()(commands.restore)
app.command("recovery-drill")(commands.recovery_drill)
app.command()(commands.shares)
app.command()(join)
app.command("share-state")(share_state_command)


@app.command("restart-audit")
def restart_audit(
    state: State = SYSTEM_STATE,
    passphrase_file: Passphrase = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: the broken log is kept beside the new one.")] = False,
) -> None:
    """Begin a new audit log where the old one is damaged and kmsd refuses to start. Keep the old one for whoever looks into it."""
    config = Config(state, SYSTEM_SOCKET)
    if not yes:
        raise UsageError(
            "this ends the present audit chain; the new log begins with a record of it", hint="pass --yes"
        )
    lock_state(config.lock, config.socket)
    kept, key = begin_new_audit(config, open_realm(config, passphrase_file))
    print(f"The old log is {kept}. The new one has its own verification key, shown once:")
    print(f"  audit verification key  {key}")


@app.command("renew-state-key")
def renew_state_key_command(state: State = SYSTEM_STATE, passphrase_file: Passphrase = None, code_file: Code = None) -> None:
    """Give a stopped daemon's state another key for what it stores from now on; kmsd says when that is due (2^30 changes)."""
    config = Config(state, SYSTEM_SOCKET)
    lock_state(config.lock, config.socket)
    number = renew_state_key(config, read_code(code_file) if code_file else read_root(config, passphrase_file))
    print(f"What {state} stores from now on is sealed under its domain key {number}. Backups made before hold only what is under the others.")


@app.command("verify-audit")
def verify_audit(
    log: Annotated[Path, typer.Argument(help="The audit log, audit.jsonl.")],
    key_file: Annotated[
        Path, typer.Option(help="File with the audit verification key, `-` for standard input.")
    ],
) -> None:
    """Check an audit log from its first record with the key that `init` printed."""
    text = sys.stdin.readline() if os.fspath(key_file) == "-" else key_file.read_text(encoding="ascii")
    print(f"{verify_log(log, bytes.fromhex(text.strip()))} records, chain unbroken")


def main() -> None:
    """Run a command; a known failure becomes one line and its exit code."""
    command: Callable[[], None] = app
    # All that kmsd writes is its own; the socket's mode is set by itself.
    os.umask(0o077)
    try:
        command()
    except KmsfsError as error:
        print(f"kmsd: {error.detail}", file=sys.stderr)
        if error.hint:
            print(f"kmsd: hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
