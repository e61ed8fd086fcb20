"""Who is calling: principals made from the socket peer's uid and groups, nothing else."""

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


def make_caller(account: str, uid: int, gid: int, pid: int, groups: tuple[int, ...]) -> Caller:
    """Return the caller with its principals: its uid, its gid and its supplementary groups."""
    principal = uid_principal(account, uid)
    names = {principal} | {gid_principal(account, group) for group in (gid, *groups)}
    return Caller(account, uid, gid, pid, principal, frozenset(names))
