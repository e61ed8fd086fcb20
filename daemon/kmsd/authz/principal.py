"""Who is calling: principals made from the uid and groups of the socket's peer, or of whom a session token was given to."""

from dataclasses import dataclass

from kmsfs.ids import gid_principal, uid_principal


@dataclass(frozen=True, slots=True)
class Caller:
    """A connected peer; `principals` are all the names that a policy or grant may call it by."""

    account: str
    uid: int
    gid: int
    pid: int
    principal: str
    principals: frozenset[str]
    groups: tuple[int, ...] = ()
    access_key_id: str = ""
    """The temporary credentials that signed the request, where it came over HTTP."""


def make_caller(
    account: str, uid: int, gid: int, pid: int, groups: tuple[int, ...], *, access_key_id: str = ""
) -> Caller:
    """Return the caller with its principals: its uid, its gid and its supplementary groups."""
    principal = uid_principal(account, uid)
    names = {principal} | {gid_principal(account, group) for group in (gid, *groups)}
    return Caller(account, uid, gid, pid, principal, frozenset(names), groups, access_key_id)
