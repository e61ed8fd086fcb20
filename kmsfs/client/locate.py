"""Find a key daemon, or start a private one for this user."""

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsfs.errors import DaemonUnreachable, StorageError, UsageError

SYSTEM_SOCKET = Path("/run/kmsd/kmsd.sock")
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class PrivateDaemon:
    """Where this user's private daemon lives."""

    state: Path
    runtime: Path

    @property
    def socket(self) -> Path:
        """Its socket."""
        return self.runtime / "kmsd.sock"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.state / "kmsd.log"


def private_daemon() -> PrivateDaemon:
    """Return the places of this user's private daemon.

    State lies in $XDG_STATE_HOME/kmsfs (~/.local/state/kmsfs), the socket in $XDG_RUNTIME_DIR/kmsfs, or where
    there is no runtime directory, in a 0700 folder of /tmp that belongs to this user.

    Raises:
        UsageError: if that folder belongs to somebody else.
    """
    state_home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    runtime_home = os.environ.get("XDG_RUNTIME_DIR")
    runtime = Path(runtime_home) / "kmsfs" if runtime_home else Path(f"/tmp/kmsfs-{os.getuid()}")  # noqa: S108
    try:
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = runtime.lstat()
    except OSError as error:
        raise StorageError(f"cannot make {runtime}: {error.strerror}", hint="set XDG_RUNTIME_DIR") from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise UsageError(f"{runtime} is not a private folder of yours", hint="set XDG_RUNTIME_DIR")
    return PrivateDaemon(Path(state_home) / "kmsfs" / "kmsd", runtime)


def answers(path: Path) -> bool:
    """Tell whether something listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            # So many wait to be taken in that there is no room for one more: somebody listens.
            return True
        except OSError:
            return False
        return True


def locate(named: str | None, *, autostart: bool) -> str:
    """Return the path of a daemon's socket: named, $KMSFS_SOCKET, the system's, or a private one.

    Raises:
        DaemonUnreachable: if none answers and none may be started.
    """
    chosen = named or os.environ.get("KMSFS_SOCKET")
    if chosen:
        return chosen
    if SYSTEM_SOCKET.exists() and os.access(SYSTEM_SOCKET, os.W_OK) and answers(SYSTEM_SOCKET):
        return os.fspath(SYSTEM_SOCKET)
    place = private_daemon()
    if not answers(place.socket):
        if not autostart:
            raise DaemonUnreachable("no key daemon answers", hint="start one with `kmsfs daemon start`")
        return start_private(place)
    return os.fspath(place.socket)


def start_private(place: PrivateDaemon) -> str:
    """Start this user's private daemon, making its realm on first use; says so once on stderr. Returns its socket.

    One that serves the same state already, started with another runtime directory, is used instead.

    Raises:
        DaemonUnreachable: if it does not come up; its log says why.
        StorageError: if its folders cannot be made.
    """
    try:
        place.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(place.runtime / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot make {place.state}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(place.socket):
            return os.fspath(place.socket)
        elsewhere = _serving_elsewhere(place)
        if elsewhere is not None:
            return elsewhere
        if not (place.state / "keyring.kms").exists():
            _initialise(place)
        _spawn(place)
        return os.fspath(place.socket)
    finally:
        os.close(lock)


def _serving_elsewhere(place: PrivateDaemon) -> str | None:
    """Return the socket of a daemon that has this state already, None if nobody has.

    Raises:
        DaemonUnreachable: if somebody has it and cannot be reached from here.
    """
    try:
        descriptor = os.open(place.state / "kmsd.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        path = str(found.get("socket", ""))
        if path and answers(Path(path)):
            return path
        raise DaemonUnreachable(
            f"a key daemon (pid {found.get('pid')}) has the state in {place.state}, and does not answer on {path}",
            hint="stop it, or name its socket in KMSFS_SOCKET",
        ) from None
    finally:
        os.close(descriptor)
    return None


def _initialise(place: PrivateDaemon) -> None:
    made = subprocess.run(
        [sys.executable, "-P", "-m", "kmsd", "init", "--state", os.fspath(place.state), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise DaemonUnreachable(f"the private key daemon could not be set up: {made.stderr.strip()}")
    document = json.loads(made.stdout)
    announce(f"made a private key store in {place.state}")
    announce(f"its recovery code, shown this once: {document['recovery_code']}")
    announce("keep the code elsewhere: without that folder or the code, encrypted files cannot be read")


def _spawn(place: PrivateDaemon) -> None:
    command = [
        sys.executable, "-P", "-m", "kmsd", "serve", "--private",
        "--state", os.fspath(place.state), "--socket", os.fspath(place.socket),
    ]  # fmt: skip
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + _START_SECONDS
    while not answers(place.socket):
        if process.poll() is not None or time.monotonic() > deadline:
            raise DaemonUnreachable(
                f"the private key daemon did not start: {_last_line(place.log)}", hint=f"see {place.log}"
            )
        time.sleep(0.02)
    announce(f"started a private key daemon for you (pid {process.pid}); stop it with `kmsfs daemon stop`")


def stop(pid: int, path: Path) -> None:
    """Stop a daemon by SIGTERM and wait until its socket is silent.

    Raises:
        DaemonUnreachable: if it does not stop within ten seconds.
    """
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while answers(path):
        if time.monotonic() > deadline:
            raise DaemonUnreachable(f"the key daemon {pid} does not stop")
        time.sleep(0.05)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if "hint" not in line), "no message")


def say_on_stderr(text: str) -> None:
    """Print a line for the user."""
    sys.stderr.write(f"kmsfs: {text}\n")


announce: Callable[[str], None] = say_on_stderr
"""What is said when a private daemon is made or started: the recovery code too, so it is never silent."""
