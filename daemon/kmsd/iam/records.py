"""What IAM keeps: users, groups, roles, managed policies and access keys. Pure."""

from dataclasses import asdict, dataclass, field
from typing import Any

USER, GROUP, ROLE, POLICY, MFA = "user", "group", "role", "policy", "mfa"
PREFIXES = {USER: "AIDA", GROUP: "AGPA", ROLE: "AROA", POLICY: "ANPA"}
ACTIVE, INACTIVE = "Active", "Inactive"


@dataclass(frozen=True, slots=True)
class Entity:
    """A user, group, role or managed policy. `inline` holds policies of its own, `attached` the ARNs of managed ones."""

    kind: str
    arn: str
    account: str
    path: str
    name: str
    entity_id: str
    created: float
    updated: float
    inline: dict[str, str] = field(default_factory=dict)
    attached: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Names of a user's groups."""
    boundary: str | None = None
    trust: str = ""
    description: str | None = None
    session_seconds: int = 3600
    tags: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Documents of a managed policy by version id, oldest first."""
    version_dates: dict[str, float] = field(default_factory=dict)
    default_version: str = ""

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return asdict(self)

    @property
    def document(self) -> str:
        """The document of a managed policy that counts."""
        return self.versions[self.default_version]


def entity_of(row: dict[str, Any]) -> Entity:
    """Read a sealed row."""
    return Entity(**{**row, "attached": tuple(row["attached"]), "groups": tuple(row["groups"])})


@dataclass(frozen=True, slots=True)
class MfaDevice:
    """A virtual MFA device. `user` is whose it is, None of nobody's; `seed` is secret."""

    arn: str
    account: str
    name: str
    seed: bytes
    user: str | None = None
    enabled: float = 0.0
    drift: int = 0
    """By how many steps of 30 seconds its clock is ahead of ours."""
    last_step: int = 0
    """The step of the last code that was taken: none is taken twice."""
    tags: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """The last use of an access key: when, in seconds since the epoch (0: never), of which service, and where."""

    at: float = 0.0
    service: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A long-lived access key; `user` None stands for the account root."""

    key_id: str
    account: str
    user: str | None
    secret: str
    status: str
    created: float
    used_at: float = 0.0
    used_service: str = ""
    used_region: str = ""

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return asdict(self)
