"""Which alarms a log's records make: no clock and no file in here."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kmsfs.alarms.rules import Actions, Kind, Per, Rule
from kmsfs.api.registry import OPERATIONS
from kmsfs.trail.reading import principal_of

_GROUPS_MAX = 4096
"""Principals or keys that one rule counts apart; the one that was quiet longest is forgotten."""
_UNUSABLE = "KMSInvalidStateException"


@dataclass(frozen=True, slots=True)
class Alarm:
    """What happened: the rule, when (seconds since the epoch), of whom or what, how often, and one of the records."""

    name: str
    kind: Kind
    time: float
    group: str
    count: int
    record: dict[str, Any]
    actions: Actions

    def document(self) -> dict[str, Any]:
        """Return it for JSON; there is no secret in a record."""
        return {
            "alarm": self.name, "on": self.kind.value, "time": self.time, "group": self.group, "count": self.count,
            "record": self.record,
        }  # fmt: skip


class Watching:
    """The state of all rules: what was counted, who was seen, which keys wait for their deletion."""

    def __init__(self, rules: Iterable[Rule], account: str) -> None:
        self._rules = tuple(rules)
        self._account = account
        self._counted: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._quiet_until: dict[tuple[str, str], float] = {}
        self._seen: set[tuple[str, str]] = set()
        self._dying: set[str] = set()

    @property
    def needs_history(self) -> bool:
        """Whether a rule is about what was before."""
        return any(rule.kind in (Kind.NEW_PRINCIPAL, Kind.PENDING_DELETION) for rule in self._rules)

    def learn(self, record: dict[str, Any]) -> None:
        """Take a record of before the watching began."""
        self._note_key(record)
        self._first_use(record)

    def see(self, record: dict[str, Any]) -> list[Alarm]:
        """Take a new record, and return the alarms that it makes."""
        operation, key = str(record["op"]), str(record.get("key", "")).rpartition("/")[2]
        principal = principal_of(record, self._account).rpartition(":")[2]
        self._note_key(record)
        kinds = self._kinds(record, key)
        found = []
        for rule in self._rules:
            if rule.kind in kinds and rule.is_about(operation, key, principal):
                group = {Per.ALL: "", Per.PRINCIPAL: principal, Per.KEY: key}[rule.per]
                found += self._count(rule, group, float(record["ts"]), record)
        return found

    def gap(self, now: float, why: str) -> list[Alarm]:
        """Return the alarms of a log that is not whole."""
        return self._all_of(Kind.GAP, now, {"why": why})

    def unsigned(self, now: float, signed: float) -> list[Alarm]:
        """Return the alarms of a log that was last signed at a time."""
        found = []
        for rule in self._rules:
            if rule.kind is Kind.UNSIGNED and now - signed > rule.within_seconds:
                found += self._raise(rule, "", now, 1, {"signed_until": signed})
        return found

    def _all_of(self, kind: Kind, now: float, record: dict[str, Any]) -> list[Alarm]:
        found = []
        for rule in self._rules:
            if rule.kind is kind:
                found += self._count(rule, "", now, record)
        return found

    def _kinds(self, record: dict[str, Any], key: str) -> set[Kind]:
        error = str(record.get("err", ""))
        if error:
            kinds = {Kind.DENIED} if error == "AccessDeniedException" else set()
            if error == _UNUSABLE and key in self._dying and _uses_key(record):
                kinds.add(Kind.PENDING_DELETION)
            return kinds
        if record.get("req", "-") == "-":
            # What the daemon does of itself.
            return set()
        return {Kind.CALLS, Kind.NEW_PRINCIPAL} if self._first_use(record) else {Kind.CALLS}

    def _first_use(self, record: dict[str, Any]) -> bool:
        if record.get("err") or not record.get("key") or not _uses_key(record):
            return False
        pair = (principal_of(record, self._account), str(record["key"]))
        new = pair not in self._seen
        self._seen.add(pair)
        return new

    def _note_key(self, record: dict[str, Any]) -> None:
        key = str(record.get("key", "")).rpartition("/")[2]
        if record.get("err") or not key:
            return
        if record["op"] == "ScheduleKeyDeletion":
            self._dying.add(key)
        elif record["op"] in ("CancelKeyDeletion", "DeleteKey"):
            self._dying.discard(key)

    def _count(self, rule: Rule, group: str, at: float, record: dict[str, Any]) -> list[Alarm]:
        times = self._counted.setdefault((rule.name, group), deque(maxlen=rule.more_than + 1))
        self._counted.move_to_end((rule.name, group))
        if len(self._counted) > _GROUPS_MAX * len(self._rules):
            forgotten, _ = self._counted.popitem(last=False)
            self._quiet_until.pop(forgotten, None)
        times.append(at)
        if len(times) <= rule.more_than or at - times[0] > rule.within_seconds:
            return []
        count = len(times)
        made = self._raise(rule, group, at, count, record)
        if made:
            times.clear()
        return made

    def _raise(self, rule: Rule, group: str, at: float, count: int, record: dict[str, Any]) -> list[Alarm]:
        if at < self._quiet_until.get((rule.name, group), 0.0):
            return []
        self._quiet_until[rule.name, group] = at + rule.quiet_seconds
        return [Alarm(rule.name, rule.kind, at, group, count, record, rule.actions)]


def _uses_key(record: dict[str, Any]) -> bool:
    operation = OPERATIONS.get(str(record["op"]))
    return operation is not None and operation.cryptographic
