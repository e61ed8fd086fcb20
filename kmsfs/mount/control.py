"""What a serving mount can be asked for by who mounted it: one socket for each mount, in a folder that nobody else enters.

One connection asks for one thing: a line of JSON there, a line of JSON back when it is done.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmsfs.client.locate import private_daemon
from kmsfs.errors import AccessDenied, KmsfsError, StorageError, UsageError
from kmsfs.mount.mounttable import Mounted

_LOG = logging.getLogger("kmsfs.mount")
_LINE_BYTES = 65_536
_ASK_SECONDS = 10
RESTART = {"do": "restart"}


def _address(device: str) -> Path:
    """Return the socket of the mount with a device number: below /run for root, else in this user's runtime folder.

    Raises:
        UsageError, StorageError: if there is no folder that is this user's alone.
    """
    folder = Path("/run/kmsfs") if os.geteuid() == 0 else private_daemon().runtime
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"mount-{device}.sock"


class MountControl:
    """The socket of one mount. Its thread waits; the mount does what is asked when it comes to it."""

    def __init__(self, device: str, check: Callable[[], None], leave: Callable[[], None]) -> None:
        """Listen for the mount with this device number.

        `check` says whether the next image of this process would start, and raises a KmsfsError if not; `leave` lets
        the mount's own thread begin with it.
        """
        self._check = check
        self._leave = leave
        self._answered = threading.Event()
        self.connection: socket.socket | None = None
        """Who waits for a restart."""
        self._path: Path | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path = _address(device)
            # Of a mount that was killed, or of the image of this process before: no two mounts have one device number.
            self._path.unlink(missing_ok=True)
            self._listener.bind(os.fspath(self._path))
            self._listener.listen(1)
        except (OSError, KmsfsError) as error:
            _LOG.warning("this mount cannot be restarted without unmounting it: %s", error)
            return
        threading.Thread(target=self._listen, name="kmsfs-control", daemon=True).start()

    def refuse(self, error: Exception) -> None:
        """Tell who asked why it was not done."""
        _LOG.error("the mount's process was not replaced: %s", error)
        hint = getattr(error, "hint", "")
        if self.connection is not None:
            answer(self.connection, {"ok": False, "error": str(error), "hint": hint})
        self.connection = None
        self._answered.set()

    def close(self) -> None:
        """Listen no more."""
        # shutdown(2) wakes the thread, which close(2) does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._serve(connection)
            except (KmsfsError, OSError, ValueError) as error:
                answer(connection, {"ok": False, "error": str(error), "hint": getattr(error, "hint", "")})

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_ASK_SECONDS)
        if json.loads(connection.recv(_LINE_BYTES)) != RESTART:
            raise UsageError("this version of kmsfs does not know what was asked")
        connection.settimeout(None)
        self._check()
        self.connection = connection
        self._answered.clear()
        self._leave()
        self._answered.wait()


def answer(connection: socket.socket, document: dict[str, Any]) -> None:
    """Answer on a connection, and close it; who asked may be gone."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(document).encode() + b"\n")
    connection.close()


def ask_restart(mounted: Mounted) -> dict[str, Any]:
    """Let a mount's process start anew, and return its answer: `version`, `waited_seconds`, `open_files`.

    Raises:
        UsageError: if it cannot be asked.
        AccessDenied: if it is somebody else's.
        StorageError: why it was not done; the mount serves as before.
    """
    hint = "unmount it and mount it again; only the kernel transport can be restarted"
    if mounted.uid != os.geteuid():
        raise AccessDenied(f"{mounted.point} was mounted by another user", hint="only who mounted it may do that")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(_address(mounted.device)))
            connection.sendall(json.dumps(RESTART).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline(_LINE_BYTES)
        except OSError as error:
            raise UsageError(f"{mounted.point} does not listen ({error.strerror})", hint=hint) from error
    if not line:
        raise StorageError(f"the process of {mounted.point} ended without an answer", hint="see its log")
    told: dict[str, Any] = json.loads(line)
    if not told.pop("ok"):
        raise StorageError(f"{mounted.point} goes on as it was: {told['error']}", hint=told["hint"])
    return told
