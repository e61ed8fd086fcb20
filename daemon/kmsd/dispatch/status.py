"""Handlers of GetStatus and Watch."""

from collections.abc import Callable
from dataclasses import dataclass

from kmsd.dispatch.authorise import Authoriser
from kmsd.dispatch.call import Call
from kmsd.keys.registry import KeyRegistry
from kmsfs import __version__
from kmsfs.api.shapes import admin as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.clock import passed
from kmsfs.errors import AccessDenied
from kmsfs.quantity import HEARTBEAT_SECONDS, LEASE_SECONDS

WATCHED_KEYS = "watched-keys"
"""Name of the call note with the ids of the keys to watch."""


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """What does not change while the daemon runs."""

    pid: int
    state_directory: str
    root_key_source: str
    started: float
    private: bool
    aws_endpoint: str
    home_region: str
    audit_digest_key: str


class AdminService:
    """GetStatus and Watch."""

    def __init__(
        self, facts: DaemonFacts, registry: KeyRegistry, authoriser: Authoriser, clock: Callable[[], float]
    ) -> None:
        self._facts = facts
        self._registry = registry
        self._authoriser = authoriser
        self._clock = clock

    def get_status(self, call: Call) -> shapes.StatusResponse:
        """GetStatus."""
        _request: Empty = call.request
        facts = self._facts
        return shapes.StatusResponse(
            version=__version__,
            account=call.caller.account,
            principal=call.caller.principal,
            pid=facts.pid,
            state_directory=facts.state_directory,
            root_key_source=facts.root_key_source,
            uptime_seconds=self._clock() - facts.started,
            keys=len(self._registry.keys),
            private=facts.private,
            aws_endpoint=facts.aws_endpoint or None,
            home_region=facts.home_region if facts.aws_endpoint else None,
            audit_digest_key=facts.audit_digest_key,
            damaged_records=len(self._registry.store.quarantined),
            host=self._registry.store.host or None,
        )

    def watch(self, call: Call) -> shapes.WatchResponse:
        """Watch: the session that carries the call begins the stream with the noted keys."""
        request: shapes.WatchRequest = call.request
        watched = []
        for reference in request.key_ids:
            key = self._registry.find(reference, call.scope)
            self._require_any(call, reference)
            watched.append(key.key_id)
        call.notes[WATCHED_KEYS] = frozenset(watched)
        return shapes.WatchResponse(heartbeat_seconds=HEARTBEAT_SECONDS, lease_seconds=LEASE_SECONDS, sent_at=passed())

    def _require_any(self, call: Call, reference: str) -> None:
        """Whoever may describe a key or decrypt with it may learn that it changes."""
        key = self._registry.find(reference, call.scope)
        try:
            self._authoriser.require(call, key, "kms:DescribeKey", {})
        except AccessDenied:
            if not any(key.grants_for(call.caller)):
                self._authoriser.require(call, key, "kms:Decrypt", {})
