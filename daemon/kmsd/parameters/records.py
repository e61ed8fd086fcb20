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
_SHARED = ("type", "tier", "owner", "key", "data_type", "user", "key_arn", "scope", "pattern")
"""What many parameters have alike is held once."""
_NONE: dict[str, Any] = {}


def facts_of(row: dict[str, Any], home: str) -> ParameterFacts:
    """Read a sealed row, with or without a value; rows made before there were regions are of the `home` scope."""
    found = {"scope": home, **row}
    found.pop("value", None)
    for name in _SHARED:
        text = found.get(name)
        if text:
            found[name] = intern(text)
    for name in ("labels", "tags"):
        # Nothing is ever put into one of these: a changed parameter has a new one.
        found[name] = found.get(name) or _NONE
    return ParameterFacts(**found)
