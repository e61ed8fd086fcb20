"""Changes of keys, parameters and secrets, kept for a while so that who lost the connection goes on where it was."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kmsd.authz.principal import Caller
from kmsd.keys.registry import KmsKey
from kmsd.parameters.path import below

KEPT = 10_000
"""So many changes are kept; who was away for longer is told to read everything again."""

SOURCES = ("kms", "secretsmanager", "ssm")
"""What a stream is told of that names none."""
ALARMS = "alarms"
"""A source that is told of where it is named."""

Audience = Callable[[Caller, float], bool]
"""Whether a caller may know of a change, at a time in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `operation` is in the words of the service's events at AWS, for keys in those of Watch."""

    source: str
    operation: str
    scope: str
    arn: str
    name: str
    shown_to: Audience
    detail: dict[str, Any] | None = None
    """What an alarm says besides."""


@dataclass(frozen=True, slots=True)
class Happened:
    """A change with its place in the order of all."""

    number: int
    time: float
    change: Change


@dataclass(frozen=True, slots=True)
class Following:
    """Which changes one stream wants; `path` is a checked path of parameters, or None for all of them."""

    caller: Caller
    scope: str
    sources: frozenset[str]
    path: str | None

    def wants(self, change: Change, now: float) -> bool:
        """Whether the stream is told: asked for, and allowed."""
        if change.source not in self.sources or change.scope != self.scope:
            return False
        if change.source == "ssm" and self.path is not None and not below(change.name, self.path, recursive=True):
            return False
        return change.shown_to(self.caller, now)


def key_change(key: KmsKey, operation: str, may_know: Callable[[Caller, KmsKey, float], bool]) -> Change:
    """Return a change of a KMS key: who may describe the key by then may know of it."""
    return Change("kms", operation, key.scope, key.arn, key.key_id, lambda caller, now: may_know(caller, key, now))


class ChangeLog:
    """The last changes. `stamp` is another one for each life of the daemon, `clock` gives seconds since the epoch."""

    def __init__(self, stamp: str, clock: Callable[[], float]) -> None:
        self._stamp = stamp
        self._clock = clock
        self._kept: deque[Happened] = deque(maxlen=KEPT)
        self._number = 0
        self.listeners: list[Callable[[Happened], None]] = []

    def publish(self, change: Change) -> None:
        """Note a change that is in the store, and tell the listeners."""
        self._number += 1
        happened = Happened(self._number, self._clock(), change)
        self._kept.append(happened)
        for listener in self.listeners:
            listener(happened)

    def forget(self, stamp: str) -> None:
        """Know nothing of before any more: whoever comes back with an older token is told to read everything again."""
        self._stamp = stamp
        self._kept.clear()

    def token(self, number: int | None = None) -> str:
        """Return what names the place after a change, or the present end."""
        return f"{self._stamp}-{self._number if number is None else number}"

    def after(self, token: str) -> list[Happened] | None:
        """Return what happened after a token; None where that is not known any more."""
        stamp, _, text = token.rpartition("-")
        if stamp != self._stamp or not text.isascii() or not text.isdigit() or int(text) > self._number:
            return None
        number = int(text)
        if number < self._number - len(self._kept):
            return None
        return [happened for happened in self._kept if happened.number > number]

    def event(self, happened: Happened) -> dict[str, Any]:
        """Return a change as it is sent."""
        change = happened.change
        return {
            "kind": "change", "token": self.token(happened.number), "time": round(happened.time, 3),
            "source": change.source, "operation": change.operation, "arn": change.arn, "name": change.name,
            **({"detail": change.detail} if change.detail is not None else {}),
        }  # fmt: skip
