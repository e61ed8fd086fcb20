"""kmsfs install-service --user: a user's own key daemon and mounts, run by his systemd."""

import json
import os
import subprocess
import sys
from pathlib import Path

from kmsfs.cli.output import say, show
from kmsfs.cli.unitfiles import run_program, unit_text, write_file
from kmsfs.client.locate import answers, private_daemon
from kmsfs.errors import StorageError, UsageError

_UNITS = ("kmsd.socket", "kmsd.service", "kmsfs@.service")


def install_user_service() -> None:
    """Put the units in place, make the realm if there is none, start the socket.

    Raises:
        UsageError: if a private daemon runs that systemd did not start, its state lies elsewhere, or there is no systemd.
        StorageError: if a file cannot be written, or the realm not be made.
    """
    place = private_daemon()
    usual = Path.home() / ".local" / "state" / "kmsfs" / "kmsd"
    if place.state != usual:
        raise UsageError(f"your key daemon's state lies in {place.state}", hint=f"unset XDG_STATE_HOME: the units use {usual}")
    programs = Path(sys.prefix) / "bin"
    running = run_program("systemctl", "--user", "is-active", "kmsd.socket", may_fail=True).strip() == "active"
    if not running and answers(place.socket):
        raise UsageError("a private daemon runs already", hint="`kmsfs daemon stop`, and then this again; mounts go on when it is back")
    folder = _folder()
    for name in _UNITS:
        write_file(folder / name, unit_text(f"user/{name}", programs))
    run_program("systemctl", "--user", "daemon-reload")
    made = {} if (place.state / "keyring.kms").exists() else _make_realm(programs, place.state)
    # The next call starts the service, with the program that is installed now.
    run_program("systemctl", "--user", "stop", "kmsd.service")
    run_program("systemctl", "--user", "enable", "--now", "kmsd.socket")
    show(made, lambda: _tell(made, os.fspath(place.socket)))


def remove_user_service() -> None:
    """Stop the service and take its units away; keys and state stay."""
    run_program("systemctl", "--user", "disable", "--now", "kmsd.socket", "kmsd.service", may_fail=True)
    for name in _UNITS:
        (_folder() / name).unlink(missing_ok=True)
    run_program("systemctl", "--user", "daemon-reload")
    show({}, lambda: say(f"the service is gone; its keys and state are still in {private_daemon().state}"))


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _make_realm(programs: Path, state: Path) -> dict[str, str]:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {state}: {error.strerror}") from error
    command = [os.fspath(programs / "kmsd"), "init", "--json", "--state", os.fspath(state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(f"kmsd init failed: {done.stderr.strip()}")
    made: dict[str, str] = json.loads(done.stdout)
    return made


def _tell(made: dict[str, str], socket: str) -> None:
    if made:
        print(f"recovery code           {made['recovery_code']}")
        print(f"audit verification key  {made['audit_verification_key']}")
        say("both are shown this once and stored nowhere: keep them elsewhere")
    say(f"your kmsd answers on {socket}, where kmsfs looks for it")
    say("`systemctl --user enable --now kmsfs@Documents` mounts ~/Documents.encrypted on ~/Documents whenever you log in")
