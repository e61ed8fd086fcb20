"""The listening socket: from systemd (socket activation) or bound here."""

import fcntl
import os
import socket
import stat
from pathlib import Path

from kmsfs.errors import StorageError, UsageError

_FIRST_ACTIVATED = 3
BACKLOG = 1024
"""How many connections wait to be taken in, at most: who comes in a burst is not turned away (listen(2))."""
MAIN, CREDENTIALS = "main", "credentials"


def activated_sockets() -> dict[str, socket.socket]:
    """Return the sockets that systemd passed by what they are for, `credentials` or `main` (sd_listen_fds_with_names(3)).

    Raises:
        UsageError: if it passed two for the same.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    found: dict[str, socket.socket] = {}
    for index in range(count):
        use = CREDENTIALS if names[index : index + 1] == [CREDENTIALS] else MAIN
        if use in found:
            raise UsageError(f"systemd passed several sockets, kmsd takes one for each use: {', '.join(names)}")
        os.set_inheritable(_FIRST_ACTIVATED + index, False)
        found[use] = socket.socket(fileno=_FIRST_ACTIVATED + index)
    return found


def pass_on(sockets: dict[str, socket.socket]) -> None:
    """Leave sockets to the program that this process becomes, as systemd passes them."""
    # Away from the numbers that they are to have first.
    held = [fcntl.fcntl(one, fcntl.F_DUPFD, _FIRST_ACTIVATED + len(sockets)) for one in sockets.values()]
    for place, descriptor in enumerate(held):
        os.dup2(descriptor, _FIRST_ACTIVATED + place, inheritable=True)
        os.close(descriptor)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(sockets))
    os.environ["LISTEN_FDNAMES"] = ":".join(sockets)


def bind_endpoint(endpoint: tuple[str, int]) -> socket.socket:
    """Bind an HTTP listener's socket; port 0 takes a free one.

    Raises:
        StorageError: if the address is taken.
    """
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(endpoint)
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot listen on {endpoint[0]}:{endpoint[1]}: {error.strerror}") from error
    return listener


def bind_socket(path: Path, mode: int) -> socket.socket:
    """Bind a Unix socket; a dead one at the same path is replaced.

    Raises:
        UsageError: if a live daemon listens there, or something else lies there.
        StorageError: if the socket cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(old_mask)
        listener.listen(BACKLOG)
    except OSError as error:
        raise StorageError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _clear(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(f"{path} is there and is no socket", hint="choose another path with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            # So many wait to be taken in that there is no room for one more: it is alive.
            pass
        except OSError:
            path.unlink()
            return
    raise UsageError(f"a key daemon already listens on {path}")
