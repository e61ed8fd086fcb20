"""The audit log over time: calls of each stretch by outcome, what was asked most, who was refused. Pure."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kmsfs.trail.reading import principal_of

STRETCHES = 84
"""Bars of the chart: a week is shown in stretches of two hours."""
_TOP = 10
_RECENT = 20


@dataclass(slots=True)
class Stretch:
    """The calls from `start` on, in seconds since the epoch."""

    start: float
    ok: int = 0
    denied: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All calls."""
        return self.ok + self.denied + self.failed


@dataclass(slots=True)
class Timeline:
    """What the records of a time say."""

    since: float
    until: float
    stretches: list[Stretch] = field(default_factory=list)
    operations: list[tuple[str, int]] = field(default_factory=list)
    callers: list[tuple[str, int]] = field(default_factory=list)
    refused: list[tuple[str, int]] = field(default_factory=list)
    denials: list[dict[str, Any]] = field(default_factory=list)
    """The last refusals, newest first: ts, principal, operation, key, decided_by."""
    records: int = 0

    @property
    def highest(self) -> int:
        """The most calls of a stretch, at least one."""
        return max((stretch.total for stretch in self.stretches), default=0) or 1


def make_timeline(records: Iterable[dict[str, Any]], account: str, since: float, until: float) -> Timeline:
    """Count the calls between two times, in seconds since the epoch; what the daemon did by itself does not count."""
    width = max((until - since) / STRETCHES, 1.0)
    made = Timeline(since, until, [Stretch(since + number * width) for number in range(STRETCHES)])
    operations: Counter[str] = Counter()
    callers: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
    for record in records:
        if record["ts"] < since or record["ts"] > until or record.get("req", "-") == "-":
            continue
        made.records += 1
        stretch = made.stretches[min(int((record["ts"] - since) / width), STRETCHES - 1)]
        who, code = principal_of(record, account), str(record.get("err") or "")
        operations[record["op"]] += 1
        callers[who] += 1
        if code.startswith("AccessDenied"):
            stretch.denied += 1
            refused[who] += 1
            recent.appendleft(
                {"ts": record["ts"], "principal": who, "operation": record["op"], "key": record.get("key"), "decided_by": record.get("by")}
            )
        elif code:
            stretch.failed += 1
        else:
            stretch.ok += 1
    made.operations, made.callers, made.refused = (counted.most_common(_TOP) for counted in (operations, callers, refused))
    made.denials = list(recent)
    return made
