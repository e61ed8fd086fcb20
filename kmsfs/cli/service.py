"""kmsfs install-service: put the systemd units in place, make the realm, start the socket; and undo it."""

import ipaddress
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from kmsfs.cli.output import say, show
from kmsfs.cli.unitfiles import run_program, unit_text, write_file
from kmsfs.cli.userservice import install_user_service, remove_user_service
from kmsfs.errors import StorageError, UsageError

UNITS = Path("/etc/systemd/system")
HELPER = Path("/usr/sbin/mount.kmsfs")
STATE = Path("/var/lib/kmsd")
MANUAL = Path("/usr/local/share/man")
_MANUAL = ("man1/kmsfs.1", "man8/kmsd.8")
_PLACES = {
    "kmsd.socket": UNITS, "kmsd-credentials.socket": UNITS, "kmsd.service": UNITS, "kmsfs@.service": UNITS,
    "kmsd-backup.service": UNITS, "kmsd-backup.timer": UNITS, "kmsfs-rotate.service": UNITS,
    "kmsfs-rotate.timer": UNITS, "kmsfs-alarms.service": UNITS, "kmsd-recovery-drill.service": UNITS,
    "kmsd-recovery-drill.timer": UNITS, "kmsfs-scrub@.service": UNITS, "kmsfs-scrub@.timer": UNITS,
    "sysusers.d/kmsd.conf": Path("/etc/sysusers.d"), "tmpfiles.d/kmsd.conf": Path("/etc/tmpfiles.d"),
}  # fmt: skip
_SOCKETS = ("kmsd.socket", "kmsd-credentials.socket")
_TIMERS = ("kmsd-backup.timer", "kmsfs-rotate.timer", "kmsd-recovery-drill.timer")
_DROP_INS = UNITS / "kmsd.service.d"
_SEALED_KEY = Path("/etc/credstore.encrypted/kmsfs-root")
CREDENTIAL_NAME = "kmsfs-root"
_ROOT_KEY_DROP_INS = ("kmsd.service.d/root-key.conf", "kmsd-backup.service.d/root-key.conf")
_ROOT_KEY = """# The root key is sealed by systemd-creds: by the TPM, or by this host's key.
[Service]
LoadCredentialEncrypted={name}:{path}
"""
_DATABASE_DROP_INS = tuple(f"{unit}.service.d/database.conf" for unit in ("kmsd", "kmsd-backup", "kmsd-recovery-drill"))
_DATABASE = """# The state is in a database that several hosts share: its addresses, and this machine's for looking up names.
[Service]
IPAddressAllow=localhost {networks}
PrivateNetwork=no
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
"""
_LOOPBACK = """# {what} on loopback: the daemon keeps its other walls.
[Service]
Environment={variable}={endpoint}
IPAddressAllow=localhost
PrivateNetwork=no
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
"""


def install_service(
    aws_endpoint: Annotated[
        str | None, typer.Option(help="Serve AWS's clients too, on this loopback address.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Serve Prometheus's metrics on this loopback address.")
    ] = None,
    traces: Annotated[
        str | None, typer.Option(help="Send traces to an OpenTelemetry collector on this loopback address.")
    ] = None,
    database_network: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Let kmsd reach the PostgreSQL that it shares, at these addresses or networks, such as 10.1.0.0/24."),
    ] = None,
    seal_root_key: Annotated[
        bool,
        typer.Option(
            "--seal-root-key", help="Keep a new realm's root key sealed by systemd-creds: by the TPM, or the host's key."
        ),
    ] = False,
    user: Annotated[
        bool, typer.Option("--user", help="For yourself alone, by your own systemd: a private daemon, and mounts below your home.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Stop the service and take its files away; keys and state stay.")
    ] = False,
) -> None:
    """Run kmsd as a system service: units, users, realm, mount helper. Prints the recovery code, once."""
    if user:
        if aws_endpoint or metrics or traces or seal_root_key or database_network:
            raise UsageError("a user's service takes no other options", hint="`systemctl --user edit kmsd.service` changes it")
        (remove_user_service if undo else install_user_service)()
        return
    if os.geteuid():
        raise UsageError("this changes the system", hint="run it as root, or with --user for yourself alone")
    if undo:
        _undo()
        return
    if seal_root_key and (STATE / "keyring.kms").exists():
        raise UsageError(
            f"{STATE} holds a realm already", hint="--seal-root-key is for a new one; secrets move by `kmsfs param export`"
        )
    programs = _programs()
    for name, folder in _PLACES.items():
        write_file(folder / Path(name).name, unit_text(name, programs))
    for name, what, endpoint in (
        ("aws-endpoint", "AWS's own clients", aws_endpoint), ("metrics", "Prometheus's metrics", metrics),
        ("traces", "OpenTelemetry's collector", traces),
    ):  # fmt: skip
        if endpoint is not None:
            variable = f"KMSD_{name.upper().replace('-', '_')}"
            text = _LOOPBACK.format(what=what, variable=variable, endpoint=endpoint)
            write_file(_DROP_INS / f"{name}.conf", text)
    if database_network:
        for name in _DATABASE_DROP_INS:
            write_file(UNITS / name, _DATABASE.format(networks=" ".join(map(_network, database_network))))
    _link_helper(programs)
    _copy_manual(programs)
    run_program("systemd-sysusers")
    run_program("systemd-tmpfiles", "--create", os.fspath(Path("/etc/tmpfiles.d/kmsd.conf")))
    run_program("systemctl", "daemon-reload")
    made = _make_sealed_realm(programs) if seal_root_key else _make_realm(programs)
    if _SEALED_KEY.exists():
        for name in _ROOT_KEY_DROP_INS:
            write_file(UNITS / name, _ROOT_KEY.format(name=CREDENTIAL_NAME, path=_SEALED_KEY))
    run_program("systemctl", "daemon-reload")
    # A socket cannot begin while its service runs, and the service would go on with the old program: the next call starts it.
    run_program("systemctl", "stop", "kmsd.service")
    run_program("systemctl", "enable", "--now", *_SOCKETS, *_TIMERS)
    show(made, lambda: _tell(made))


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as error:
        raise UsageError(f"{text!r} is no address and no network", hint="such as 10.1.0.7 or 10.1.0.0/24; names are not known here") from error


def _tell(made: dict[str, str]) -> None:
    if made:
        print(f"recovery code           {made['recovery_code']}")
        print(f"audit verification key  {made['audit_verification_key']}")
        say("both are shown this once and stored nowhere: keep them elsewhere")
    say("kmsd answers on /run/kmsd/kmsd.sock; members of the group kmsfs may connect")
    say("a unit's LoadCredential=ID:/run/kmsd/credentials.sock is the parameter /systemd/UNIT/ID")
    say("daily backups go to /var/lib/kmsd-backups: copy that folder to another machine")
    say("an fstab line mounts at boot: /srv/data.encrypted /srv/data kmsfs allow_other,nofail 0 0")


def _programs() -> Path:
    """Return the folder of kmsd and kmsfs, if the service's user can run what lies there.

    Raises:
        UsageError: if it lies where a service may not look.
    """
    folder = Path(sys.prefix) / "bin"
    for program in (folder / "kmsd", Path(sys.executable).resolve()):
        for part in (program, *program.parents):
            try:
                mode = part.stat().st_mode
            except OSError as error:
                raise UsageError(f"{part} is not there: {error.strerror}") from error
            hidden = part in (Path("/root"), Path("/home"), Path("/run/user"))
            if hidden or not mode & stat.S_IXOTH:
                raise UsageError(
                    f"{program} lies below {part}, where a system service may not look",
                    hint="install kmsfs into /opt: python3 -m venv /opt/kmsfs && /opt/kmsfs/bin/pip install .",
                )
    return folder


def _link_helper(programs: Path) -> None:
    """Let mount(8) and fstab find `mount.kmsfs`."""
    target = programs / "mount.kmsfs"
    if HELPER.is_symlink():
        HELPER.unlink()
    if HELPER.exists() or not target.exists():
        return
    try:
        HELPER.symlink_to(target)
    except OSError as error:
        raise StorageError(f"cannot make {HELPER}: {error.strerror}") from error


def _copy_manual(programs: Path) -> None:
    """Put the manual pages where man(1) looks."""
    for place in _MANUAL:
        page = programs.parent / "share" / "man" / place
        if page.exists():
            write_file(MANUAL / place, page.read_text(encoding="utf-8"))


def _make_realm(programs: Path) -> dict[str, str]:
    """Make the realm as the service's user, unless there is one; return what is shown once."""
    if (STATE / "keyring.kms").exists():
        return {}
    user = pwd.getpwnam("kmsd")
    for folder in (STATE, STATE.with_name("kmsd-anchor")):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(folder, user.pw_uid, user.pw_gid)
    done = subprocess.run(
        [os.fspath(programs / "kmsd"), "init", "--json", "--state", os.fspath(STATE)],
        user="kmsd", group=user.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StorageError(f"kmsd init failed: {done.stderr.strip()}")
    made: dict[str, str] = json.loads(done.stdout)
    return made


def _make_sealed_realm(programs: Path) -> dict[str, str]:
    """Make the realm under a root key that only this machine's systemd unseals; it is in no file, and on no command line.

    A unit of the service's user makes it, with the credential that the service will have.
    """
    if not _SEALED_KEY.exists():
        _SEALED_KEY.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sealing = ("systemd-creds", "encrypt", f"--name={CREDENTIAL_NAME}", "-", os.fspath(_SEALED_KEY))
        run_program(*sealing, data=os.urandom(32))
    made: dict[str, str] = json.loads(
        run_program(
            "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=User=kmsd", "--property=UMask=0077",
            f"--property=LoadCredentialEncrypted={CREDENTIAL_NAME}:{_SEALED_KEY}",
            "--property=StateDirectory=kmsd kmsd-anchor", "--property=StateDirectoryMode=0700",
            os.fspath(programs / "kmsd"), "init", "--json", "--source", "credential", "--state", os.fspath(STATE),
        )
    )  # fmt: skip
    return made


def _undo() -> None:
    if shutil.which("systemctl"):
        subprocess.run(
            ["systemctl", "disable", "--now", *_SOCKETS, "kmsd.service", "kmsfs-alarms.service", *_TIMERS],
            capture_output=True, check=False,
        )  # fmt: skip
    for name, folder in _PLACES.items():
        (folder / Path(name).name).unlink(missing_ok=True)
    for place in _MANUAL:
        (MANUAL / place).unlink(missing_ok=True)
    for name in ("aws-endpoint", "metrics", "traces"):
        (_DROP_INS / f"{name}.conf").unlink(missing_ok=True)
    for name in (*_ROOT_KEY_DROP_INS, *_DATABASE_DROP_INS):
        (UNITS / name).unlink(missing_ok=True)
    if HELPER.is_symlink():
        HELPER.unlink()
    run_program("systemctl", "daemon-reload")
    show({}, lambda: say(f"the service is gone; its keys and state are still in {STATE}"))
