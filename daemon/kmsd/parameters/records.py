"""What the tree keeps of a parameter and of each of its versions."""

from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from sys import intern
from typing import Any

from kmsfs.ids import parameter_arn


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """One version's facts without its value; the newest one stands for the parameter."""

    name: str
    type: str
    tier: str
    version: int
    owner: str
    key: str | None
    description: str | None
    pattern: str | None
    data_type: str
    modified: float
    user: str
    oldest: int
    key_arn: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    """Label to version. Only the newest version's facts count, as for tags."""
    tags: dict[str, str] = field(default_factory=dict)
    scope: str = ""
    """Region and account."""
    policies: str = ""
    """The JSON of its parameter policies; the newest version's count."""
    told: int = 0
    """Bit set of the policies whose notice was given."""

    @property
    def arn(self) -> str:
        """Its ARN."""
        return parameter_arn(self.scope, self.name)

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = tuple(one.name for one in fields_of(ParameterFacts))
_NONE: dict[str, Any] = {}
"""Nothing is ever put into a parameter's labels or tags: changed ones are new."""


def facts_of(row: dict[str, Any], home: str) -> ParameterFacts:
    """Read a sealed row, with or without a value; rows made before there were regions are of the `home` scope.

    What many parameters have alike is held once: there may be a million.
    """
    get = row.get
    return ParameterFacts(
        row["name"], intern(row["type"]), intern(row["tier"]), row["version"], intern(row["owner"]), _shared(row["key"]),
        row["description"], _shared(row["pattern"]), intern(row["data_type"]), row["modified"], intern(row["user"]), row["oldest"],
        _shared(get("key_arn")), get("labels") or _NONE, get("tags") or _NONE, intern(get("scope") or home), get("policies", ""),
        get("told", 0),
    )  # fmt: skip


def _shared(text: str | None) -> str | None:
    return text if text is None else intern(text)
