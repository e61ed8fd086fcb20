"""Ask kmsd as the user who reads: by a connection that a process of his has made, as SO_PEERCRED tells who connects."""

import os
import signal
import socket
import threading
from collections import OrderedDict
from pathlib import Path

from kmsfs.client.locate import locate
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.errors import AccessDenied, DaemonUnreachable

_SESSIONS_MAX = 64
_TIMEOUT_SECONDS = 30.0

User = tuple[int, int, tuple[int, ...]]
"""uid, gid and supplementary groups."""


class _SessionOf(ClientSession):
    """A session whose connections are made as another user."""

    def __init__(self, path: str, user: User) -> None:
        super().__init__(socket=path, autostart=False, timeout=_TIMEOUT_SECONDS, polling=False)
        self._path = path
        self._user = user

    def open_transport(self) -> Transport:
        """See ClientSession."""
        return Transport(self._path, _TIMEOUT_SECONDS, polling=False, connected=connect_as(self._path, self._user))


class Readers:
    """Sessions by user. Root reads as whoever calls; anybody else's view is his own alone."""

    def __init__(self, session: ClientSession, named: str | None) -> None:
        """Use `session` for its own user, and the daemon on the socket `named` (that of the environment, if None) for the others."""
        self.own = session
        """The session of the view's own user."""
        self._lock = threading.Lock()
        self._path = locate(named, autostart=False)
        self._sessions: OrderedDict[User, ClientSession] = OrderedDict()

    def session_of(self, user: User) -> ClientSession:
        """Return the session to ask with in a user's name.

        Raises:
            AccessDenied: if it is another user's than that of a view that is not root's.
        """
        if user[0] == os.geteuid():
            return self.own
        if os.geteuid():
            raise AccessDenied("this view is somebody else's")
        with self._lock:
            session = self._sessions.pop(user, None) or _SessionOf(self._path, user)
            self._sessions[user] = session
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)[1].close()
        return session


def user_of(uid: int, gid: int, pid: int) -> User:
    """Return a calling process's user; it waits for its answer, so its groups can be looked up (proc(5), status)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return uid, gid, ()
    line = next((line for line in text.splitlines() if line.startswith("Groups:")), "")
    return uid, gid, tuple(int(word) for word in line.split()[1:])


def connect_as(path: str, user: User) -> socket.socket:
    """Return a socket that was connected by a process of the user's.

    Raises:
        DaemonUnreachable: if that process could not connect.
    """
    uid, gid, groups = user
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if not child:
        # Nothing is imported, locked or cleaned up here: other threads' locks are held for ever in this process.
        status = 1
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.connect(path)
            socket.send_fds(theirs, [b"1"], [made.fileno()])
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    ours.settimeout(_TIMEOUT_SECONDS)
    descriptors: list[int] = []
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
    finally:
        ours.close()
        os.waitpid(child, 0)
    if not descriptors:
        raise DaemonUnreachable(f"uid {uid} cannot connect to the key daemon on {path}")
    return socket.socket(fileno=descriptors[0])
