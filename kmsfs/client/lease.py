"""What was heard of the daemon last: whether what it allowed may still be used."""

import math
from typing import Any

from kmsfs.clock import passed
from kmsfs.quantity import LEASE_SECONDS


class Lease:
    """Counts from when the daemon spoke, not from when that was read.

    A machine that slept, or a process that was stopped, finds old heartbeats in its socket. Each says when it was sent, by the daemon's clock, which may be
    another one in a container: how far they are apart is taken from the fastest message, and from the first answer, which was not sent before it was asked for.
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
        """Note the answer to what the daemon was asked at a time of `passed`: of a connection's first call, which may be to another daemon."""
        self._least = at - answer.get("SentAt", -math.inf)
        self._heard = max(self._heard, at)

    def heartbeat(self, event: dict[str, Any]) -> None:
        """Note a heartbeat; one of an older daemon does not say when it was sent."""
        now = passed()
        lag = now - event.get("at", now)
        self._least = min(self._least, lag)
        self._heard = max(self._heard, now - (lag - self._least))

    def lost(self) -> None:
        """Note that the connection is gone, and with it whatever would have been told."""
        self._heard = -math.inf
