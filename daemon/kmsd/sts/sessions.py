"""What a session token says of IAM's callers, and the policies that limit a role's session."""

from dataclasses import asdict, dataclass, field
from typing import Any

from kmsd.authz.identity import IdentityPolicy, compile_identity_policy
from kmsd.iam.store import IamStore


@dataclass(frozen=True, slots=True)
class SessionIdentity:
    """A user or role by ARN and id (an entity made anew under an old name is another one), or the account root."""

    arn: str
    entity_id: str
    session: str = ""
    policy: str | None = None
    policy_arns: list[str] = field(default_factory=list)
    root: bool = False
    mfa_at: float | None = None
    """When the user proved that he has his MFA device, in seconds since the epoch."""
    tags: dict[str, str] = field(default_factory=dict)
    """Given to the session by who assumed the role, or by the session that did."""
    transitive: list[str] = field(default_factory=list)
    """Keys of those of them that go on to roles which the session assumes."""

    def facts(self) -> dict[str, Any]:
        """Return what goes into the token."""
        return asdict(self)


def session_policies(
    iam: IamStore, account: str, session: SessionIdentity
) -> tuple[IdentityPolicy, ...] | None:
    """Return the policies that limit a session, None if nothing does.

    Raises:
        NoSuchEntity: if a managed one is not there.
        MalformedPolicy, LimitExceeded: if the inline one cannot be used.
    """
    texts = [("session", session.policy)] if session.policy is not None else []
    texts += [(arn, iam.policy(account, arn).document) for arn in session.policy_arns]
    if not texts:
        return None
    return tuple(compile_identity_policy(name, text) for name, text in texts)
