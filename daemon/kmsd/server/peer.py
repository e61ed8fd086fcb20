"""Who is at the other end: SO_PEERCRED and SO_PEERGROUPS, and nothing that the peer says of itself.

The credentials are those of the process that called connect(2) (unix(7)), so a passed descriptor keeps its
connector's identity.
"""

import socket
import struct
from collections.abc import Callable

from kmsd.authz.principal import Caller, make_caller

_SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("3i")
_MAX_GROUPS_BYTES = 65_536 * 4


def identify(
    connection: socket.socket, account_of: Callable[[int], str], administrators: frozenset[str]
) -> Caller:
    """Return the caller behind a connected Unix socket; `account_of` tells a uid's account, `administrators` stand for theirs.

    Raises:
        OSError: if the socket is not a connected Unix socket.
    """
    pid, uid, gid = peer_ids(connection)
    return make_caller(
        account_of(uid), uid, gid, pid, _groups(connection), administrators=administrators
    )


def peer_ids(connection: socket.socket) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process behind a connected Unix socket.

    Raises:
        OSError: if the socket is not a connected Unix socket.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)
