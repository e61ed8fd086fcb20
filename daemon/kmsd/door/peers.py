"""Whose process is at the other end of a connection on loopback, as the kernel's tables say (proc(5), /proc/net/tcp)."""

import ipaddress
import os
import pwd
import stat
import sys
from pathlib import Path

_ESTABLISHED = "01"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def uid_of_peer(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return the uid of the socket that is connected from `client` to `server`, None if there is none that a process holds.

    A socket whose process has closed it is listed with uid 0 and inode 0, in another state than ESTABLISHED: it is nobody's. A
    client may have reached an IPv4 address by an IPv6 socket (RFC 4291, section 2.5.5.2), as Java's do.
    """
    wanted = {(_spelled(*client), _spelled(*server))}
    if "." in client[0] and ":" not in client[0]:
        wanted.add((_spelled(f"::ffff:{client[0]}", client[1]), _spelled(f"::ffff:{server[0]}", server[1])))
    for table in _TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and (fields[1], fields[2]) in wanted and fields[3] == _ESTABLISHED and fields[9] != "0":
                return int(fields[7])
    return None


def groups_of(uid: int) -> tuple[int, tuple[int, ...]]:
    """Return the group and the supplementary groups that the user database gives a uid; of one that it does not know, its own number."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return uid, ()
    return entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))


def may_connect(path: Path, uid: int, gids: frozenset[int]) -> bool:
    """Tell whether a Unix socket's mode lets a user connect (unix(7): that takes write permission); on one that is not there nobody may."""
    try:
        facts = path.stat()
    except OSError:
        return False
    if uid in (0, facts.st_uid):
        return uid == 0 or bool(facts.st_mode & stat.S_IWUSR)
    return bool(facts.st_mode & (stat.S_IWGRP if facts.st_gid in gids else stat.S_IWOTH))


def _spelled(address: str, port: int) -> str:
    """An address and port as the tables write them: words of four bytes in the machine's order, hexadecimal."""
    packed = ipaddress.ip_address(address).packed
    if sys.byteorder == "little":
        packed = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    return f"{packed.hex().upper()}:{port:04X}"
