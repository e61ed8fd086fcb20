"""`python -m kmsfs.cli.successor`: the next image of a mount's process, executed by the one before. Not for people."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from kmsfs.cli.background import log_to_file, log_to_stderr, mount_log
from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError, UsageError
from kmsfs.mount.handover import read_state, startable
from kmsfs.mount.run import Successor, take_over

COMMAND = (sys.executable, "-P", "-m", "kmsfs.cli.successor")
_PRIVATE = 0o077


def successor(mountpoint: Path, socket: str | None, *, autostart: bool, foreground: bool) -> Successor:
    """Return how a mount's next image is executed."""
    log = None if foreground else os.fsencode(mount_log(mountpoint))
    named = os.fsencode(os.path.abspath(socket)) if socket else None
    return Successor(COMMAND, {"socket": named, "autostart": autostart, "log": log})


def _session(context: dict[str, Any]) -> ClientSession:
    named = context["socket"]
    return ClientSession(socket=os.fsdecode(named) if named else None, autostart=context["autostart"])


def run(arguments: list[str]) -> None:
    """Take over, or with `--probe` say that it could be done.

    Raises:
        UsageError: if it is called by hand.
    """
    if arguments == ["--probe"]:
        print(json.dumps(startable()))
        return
    if len(arguments) != 4 or not arguments[-1].isdecimal():
        raise UsageError("this is executed by a mount; see `kmsfs volume restart`")
    os.umask(_PRIVATE)
    state = read_state(int(arguments[-1]))
    log = state.context["log"]
    if log is None:
        log_to_stderr()
    else:
        log_to_file(Path(os.fsdecode(log)))
    try:
        take_over(state, _session(state.context), COMMAND)
    except KmsfsError as error:
        logging.getLogger("kmsfs.mount").critical("the mount could not be taken over: %s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run(sys.argv[1:])
