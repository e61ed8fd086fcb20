"""What the tree keeps of a parameter and of each of its versions."""

from dataclasses import asdict, dataclass, field
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
        return asdict(self)


def facts_of(row: dict[str, Any], home: str) -> ParameterFacts:
    """Read a sealed row, with or without a value; rows made before there were regions are of the `home` scope."""
    return ParameterFacts(**{"scope": home, **{key: value for key, value in row.items() if key != "value"}})
