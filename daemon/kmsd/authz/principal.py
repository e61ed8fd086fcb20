"""Who is calling: principals made from the uid and groups of the socket's peer, or of whom a session token was given to."""

from dataclasses import dataclass, field, replace

from kmsd.authz.identity import Identity
from kmsfs.ids import gid_principal, root_principal, uid_principal, unit_principal


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
    """The credentials that signed the request, where it came over HTTP."""
    identity: Identity | None = None
    """What IAM lets the caller do; None for a local user, who has what belongs to him or names him."""
    root: bool = False
    """Whether the caller stands for the account itself: its root, or a local administrator."""
    mfa_at: float | None = None
    """When the caller showed a code of his MFA device for these temporary credentials, in seconds since the epoch."""
    address: str = ""
    """Where the request came from, if it came over IP."""
    unit: str = ""
    """The systemd unit that asks for a credential."""
    tags: dict[str, str] = field(default_factory=dict)
    """Of the IAM user; of the role and the session, whose own count first."""
    transitive: dict[str, str] = field(default_factory=dict)
    """Those of the session's tags that go on to roles which it assumes."""

    def as_session_alone(self) -> "Caller":
        """Return a role's session without the role's name: what is left where a limit withholds what the role has."""
        return replace(self, principals=frozenset({self.principal}))


def make_caller(
    account: str,
    uid: int,
    gid: int,
    pid: int,
    groups: tuple[int, ...],
    *,
    access_key_id: str = "",
    administrators: frozenset[str] = frozenset(),
) -> Caller:
    """Return a local user with his principals: uid, gid and supplementary groups; an administrator is the account too."""
    principal = uid_principal(account, uid)
    names = {principal} | {gid_principal(account, group) for group in (gid, *groups)}
    root = principal in administrators
    if root:
        names.add(root_principal(account))
    return Caller(account, uid, gid, pid, principal, frozenset(names), groups, access_key_id, root=root)


def unit_caller(account: str, unit: str, uid: int, gid: int, pid: int) -> Caller:
    """Return a systemd unit as the one who asks; uid, gid and pid are those of the service manager's helper."""
    principal = unit_principal(account, unit)
    return Caller(account, uid, gid, pid, principal, frozenset({principal}), unit=unit)
