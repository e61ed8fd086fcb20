"""A mount in the background: the command returns when it serves, the rest goes to a log."""

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

import typer

from kmsfs.cli.output import fail, say
from kmsfs.errors import KmsfsError

Serve = Callable[[Callable[[], None]], None]
"""Mounts, calls what it is given once it serves, and returns when it is unmounted."""


def serve_mount(serve: Serve, mountpoint: Path, said: str, *, foreground: bool) -> None:
    """Run a mount, in the background unless told otherwise; `said` is printed when it serves.

    Raises:
        Exit: if it could not begin; why was printed.
        KmsfsError: in the foreground, why it could not begin.
    """
    if foreground:
        log_to_stderr()
        serve(lambda: say(said))
        return
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        _wait_for_child(reader, f"{said}; unmount with `kmsfs umount {mountpoint}`")
        return
    os.close(reader)
    status = 1
    try:
        log_to_stderr()
        serve(lambda: _detach_from_terminal(writer, mountpoint))
        status = 0
    except KmsfsError as error:
        status = fail(error)
    except Exception:
        logging.getLogger("kmsfs").exception("the mount failed")
    finally:
        sys.stderr.flush()
        os._exit(status)


def mount_log(mountpoint: Path) -> Path:
    """Return where a mount that left the terminal logs."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kmsfs"
    name = os.fspath(mountpoint).strip("/").replace("/", "-") or "root"
    return state / f"mount-{name}.log"


def _wait_for_child(reader: int, said: str) -> None:
    with os.fdopen(reader, "rb") as pipe:
        ready = pipe.read(1)
    if ready:
        say(said)
        return
    _, status = os.wait()
    raise typer.Exit(os.waitstatus_to_exitcode(status) or 1)


def _detach_from_terminal(writer: int, mountpoint: Path) -> None:
    """The file system serves: leave the terminal, log to a file from here on."""
    os.setsid()
    os.chdir("/")
    log_to_file(mount_log(mountpoint))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.write(writer, b"1")
    os.close(writer)


def log_to_file(log: Path) -> None:
    """Log to a file of this user's own."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    target = _PrivateLog(log, maxBytes=1 << 20, backupCount=2)
    target.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(target)
    root.setLevel(logging.INFO)


class _PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that only its owner reads, whatever the umask is when it is rotated."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return TextIOWrapper(os.fdopen(os.open(self.baseFilename, flags, 0o600), "ab"), encoding="utf-8")


def log_to_stderr() -> None:
    """Log to stderr."""
    logging.basicConfig(level=logging.INFO, format="kmsfs: %(message)s", stream=sys.stderr)
