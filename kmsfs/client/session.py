"""A session calls any registered operation; thread-safe, reconnecting, with deadlines and safe retries."""

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from kmsfs.api.registry import find
from kmsfs.client.locate import locate
from kmsfs.client.remote import to_exception
from kmsfs.client.transport import Transport
from kmsfs.errors import DaemonUnreachable, Throttled

_IDLE_TRANSPORTS_MAX = 8
_THROTTLED_TRIES = 8
_PAUSE_SECONDS = 0.02
_PAUSE_MAX_SECONDS = 1.0


class PendingCall:
    """An operation that was asked for, on a connection of its own."""

    def __init__(self, transport: Transport, request_id: int, give_back: Callable[[Transport], None]) -> None:
        self._transport = transport
        self._request_id = request_id
        self._give_back = give_back

    def ready(self) -> bool:
        """Whether its answer, or the end of the connection, has come."""
        return not self._transport.idle()

    def finish(self) -> Any:
        """Wait for the answer and return the plain result.

        Raises:
            KmsfsError: the operation's error, or DaemonUnreachable, DeadlineExceeded.
        """
        try:
            answer = self._transport.answer_to(self._request_id)
        except BaseException:
            self._transport.close()
            raise
        self._give_back(self._transport)
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]

    def cancel(self) -> None:
        """Take no answer any more."""
        self._transport.close()


class ClientSession:
    """Calls over a small pool of connections: each call has one to itself, so threads do not wait in line."""

    def __init__(
        self,
        *,
        socket: str | None = None,
        autostart: bool = True,
        timeout: float = 30.0,
        polling: bool = True,
    ) -> None:
        self._named = socket
        self._polling = polling
        self._autostart = autostart
        self._timeout = timeout
        self._idle: list[Transport] = []
        self._lock = threading.Lock()

    def call(self, operation_name: str, parameters: dict[str, Any], *, context_uid: int | None = None) -> Any:
        """Run an operation and return its plain result.

        One that is throttled was not begun: it is tried again, after a while at random that doubles each time ("Exponential
        backoff and jitter", AWS architecture blog). A connection that turns out dead is replaced once for operations that change nothing; for the others
        the caller learns of it, as the change may have happened.

        Raises:
            KmsfsError: the operation's error, or DaemonUnreachable, DeadlineExceeded.
        """
        for tries in range(_THROTTLED_TRIES):
            try:
                return self._call(operation_name, parameters, context_uid)
            except Throttled:
                time.sleep(random.uniform(0, min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2**tries)))  # noqa: S311
        return self._call(operation_name, parameters, context_uid)

    def _call(self, operation_name: str, parameters: dict[str, Any], context_uid: int | None) -> Any:
        operation = find(operation_name)
        for attempt in (1, 2):
            transport = None if attempt == 2 else self._take_idle()
            transport = transport or self.open_transport()
            try:
                answer = transport.call(operation_name, parameters, context_uid)
            except DaemonUnreachable:
                transport.close()
                if operation.mutates or attempt == 2:
                    raise
            except BaseException:
                transport.close()
                raise
            else:
                self._put_idle(transport)
                break
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]

    def begin(self, operation_name: str, parameters: dict[str, Any], *, context_uid: int | None = None) -> "PendingCall":
        """Ask for an operation and return at once; its answer is taken later.

        Raises:
            DaemonUnreachable, FrameTooLarge: if it cannot be asked.
        """
        transport = self._take_idle() or self.open_transport()
        try:
            return PendingCall(transport, transport.send(operation_name, parameters, context_uid), self._put_idle)
        except BaseException:
            transport.close()
            raise

    def pages(
        self, operation_name: str, field: str, parameters: dict[str, Any], markers: tuple[str, str] = ("NextToken", "NextToken")
    ) -> list[Any]:
        """Run a paged operation to its end and return all entries of `field`; `markers` name the next page in request and answer.

        Raises:
            KmsfsError: as `call`.
        """
        asked, answered = markers
        given = dict(parameters)
        found: list[Any] = []
        while True:
            page = self.call(operation_name, given)
            found += page[field]
            if not page.get(answered):
                return found
            given[asked] = page[answered]

    def open_transport(self) -> Transport:
        """Return a new connection that the caller owns: for watch streams and leases.

        Raises:
            DaemonUnreachable: if no daemon answers.
        """
        path = locate(self._named, autostart=self._autostart)
        return Transport(path, self._timeout, polling=self._polling)

    def patient(self) -> "ClientSession":
        """Return a session with the same daemon whose waiting costs no CPU: for threads behind the scenes."""
        return ClientSession(
            socket=self._named, autostart=self._autostart, timeout=self._timeout, polling=False
        )

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for transport in idle:
            transport.close()

    def _put_idle(self, transport: Transport) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_TRANSPORTS_MAX:
                self._idle.append(transport)
                return
        transport.close()

    def _take_idle(self) -> Transport | None:
        with self._lock:
            while self._idle:
                transport = self._idle.pop()
                if transport.pid != os.getpid():
                    continue
                if transport.fresh or transport.idle():
                    return transport
                transport.close()
        return None
