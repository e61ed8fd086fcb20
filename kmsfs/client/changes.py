"""Changes of parameters, secrets and keys as they happen; a lost connection is made again and goes on where it was."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from kmsfs.client.lease import Lease
from kmsfs.client.remote import to_exception
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.clock import passed
from kmsfs.errors import Unavailable
from kmsfs.quantity import HEARTBEAT_SECONDS

_RETRY_SECONDS, _RETRY_MAX_SECONDS = 0.25, 4.0
RESET = "reset"
"""Kind of the event that says: what happened meanwhile is not known, so read again whatever you hold."""
HEARD = "heard"
"""Kind of the event that says: the daemon is there, and has told all that it knows."""
LOST = "lost"
"""Kind of the event that says: the connection is gone, and nothing is heard until the next one."""


class ChangeStream:
    """Iterate over it for events: dicts with `kind` `change` (then token, time, source, operation, arn, name), `reset`, `heard` or `lost`.

    `heard` comes when a connection was made and at least every three seconds from then on, as long as the daemon is there.
    """

    def __init__(
        self,
        session: ClientSession,
        *,
        sources: Sequence[str] | None = None,
        path: str | None = None,
        after: str | None = None,
    ) -> None:
        """Follow `sources` of `kms`, `secretsmanager` and `ssm` (all by default), of parameters those below `path`.

        `after` is the token of the last event that was seen, perhaps by another process; what happened since comes first.
        """
        self.token = after
        self.lease = Lease()
        """Holds while what was read may be used: the connection is there, the daemon speaks, and all that was missed has been told."""
        self._session = session.patient()
        self._request: dict[str, Any] = {}
        if sources:
            self._request["Sources"] = list(sources)
        if path is not None:
            self._request["Path"] = path
        self._closed = threading.Event()
        self._transport: Transport | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield events until `close`.

        Raises:
            KmsfsError: if the daemon refuses, or cannot be reached at the first try; later it is tried again.
        """
        pause = _RETRY_SECONDS
        begun = False
        while not self._closed.is_set():
            try:
                for event in self._follow():
                    begun, pause = True, _RETRY_SECONDS
                    yield event
            except Unavailable:
                if self._closed.is_set():
                    return
                if not begun:
                    raise
                yield {"kind": LOST}
            self._closed.wait(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    def close(self) -> None:
        """End the iteration, from any thread."""
        self._closed.set()
        if self._transport is not None:
            self._transport.close()

    def _follow(self) -> Iterator[dict[str, Any]]:
        self._transport = transport = self._session.open_transport()
        try:
            request = {**self._request, "After": self.token} if self.token is not None else self._request
            asked = passed()
            answer = transport.call("WatchChanges", request)
            if "e" in answer:
                raise to_exception(answer["e"])
            if not answer["r"]["Complete"]:
                self.token = answer["r"]["Token"]
                yield {"kind": RESET}
            self.token = self.token or answer["r"]["Token"]
            missed = answer["r"]["Missed"]
            if not missed:
                self.lease.asked(asked, answer["r"])
                yield {"kind": HEARD}
            while not self._closed.is_set():
                event = transport.receive(timeout=HEARTBEAT_SECONDS * 3).get("ev", {})
                if event.get("kind") == "change":
                    self.token = event["token"]
                    yield event
                    missed -= 1
                    if not missed:
                        self.lease.asked(asked, answer["r"])
                        yield {"kind": HEARD}
                elif event.get("kind") == "heartbeat":
                    self.lease.heartbeat(event)
                    yield {"kind": HEARD}
        finally:
            self.lease.lost()
            with contextlib.suppress(OSError):
                transport.close()


def following(stream: ChangeStream) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream that are news: changes, and resets.

    Raises:
        KmsfsError: as iterating over the stream.
    """
    for event in stream:
        if event["kind"] not in (HEARD, LOST):
            yield event
