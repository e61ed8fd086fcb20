"""The denials of late, by decision id, as they were decided."""

from collections import OrderedDict
from dataclasses import dataclass

from kmsd.authz.decide import Question
from kmsd.authz.grants import Grant
from kmsd.authz.policy import KeyPolicy
from kmsd.authz.principal import Caller

KEPT = 10_000
"""Denials that are remembered; the audit log has all."""


@dataclass(frozen=True, slots=True)
class Denial:
    """One denial with the policy and the grants of that moment."""

    caller: Caller
    question: Question
    policy: KeyPolicy
    grants: tuple[Grant, ...]
    guardrails: dict[str, KeyPolicy]


class Denials:
    """Remembers the newest denials in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Denial] = OrderedDict()

    def note(self, decision_id: str, denial: Denial) -> None:
        """Remember a denial; the last one of a call counts."""
        self._kept[decision_id] = denial
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def find(self, decision_id: str) -> Denial | None:
        """Return a denial, or None if it is not remembered."""
        return self._kept.get(decision_id)
