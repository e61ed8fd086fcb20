"""One thing that was looked at."""

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad it is: `ADVICE` is worth knowing, `WARNING` weakens what is promised, `PROBLEM` stops something."""

    OK = 0
    ADVICE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, why it matters, and the command that mends it; both empty where all is well."""

    subject: str
    level: Level
    found: str
    why: str = ""
    mend: str = ""

    def document(self) -> dict[str, str]:
        """Return it for JSON."""
        return {
            "subject": self.subject, "level": self.level.name.lower(), "found": self.found, "why": self.why, "mend": self.mend
        }  # fmt: skip


def fine(subject: str, found: str) -> Finding:
    """Return that all is well with something."""
    return Finding(subject, Level.OK, found)
