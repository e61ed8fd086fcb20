"""What was heard of the daemon last: whether what it allowed may still be used."""

import math
from typing import Any

from kmsfs.clock import passed
from kmsfs.quantity import LEASE_SECONDS


class Lease:
    """Counts from when the daemon spoke, not from when that was read.

    A machine that slept, or a process that was stopped, finds old heartbeats in its socket. Each says when it was sent, by the daemon's clock, which may be
    another one in a container: what took longer than the fastest one was on its way, or lay there, for the difference.
    """

    def __init__(self) -> None:
        self._heard = -math.inf
        self._least = math.inf

    @property
    def silent(self) -> float:
        """For how many seconds nothing has been heard."""
        return passed() - self._heard

    @property
    def holds(self) -> bool:
        """Whether something was heard within the lease's time."""
        return self.silent < LEASE_SECONDS

    def asked(self, at: float, answer: dict[str, Any]) -> None:
        """Note the answer to what the daemon was asked at a time of `passed`."""
        self._late(answer.get("SentAt"))
        self._heard = max(self._heard, at)

    def heartbeat(self, event: dict[str, Any]) -> None:
        """Note a heartbeat; one of an older daemon does not say when it was sent."""
        self._heard = max(self._heard, passed() - self._late(event.get("at")))

    def _late(self, sent: float | None) -> float:
        """Return for how long something was on its way, or lay there, beside the fastest message so far."""
        if sent is None:
            return 0.0
        lag = passed() - sent
        self._least = min(self._least, lag)
        return lag - self._least

    def lost(self) -> None:
        """Note that the connection is gone, and with it whatever would have been told."""
        self._heard = -math.inf
