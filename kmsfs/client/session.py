"""A session calls any registered operation; thread-safe, reconnecting, with deadlines and safe retries."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kmsfs.api.registry import find
from kmsfs.client.locate import locate
from kmsfs.client.remote import to_exception
from kmsfs.client.transport import Transport
from kmsfs.errors import DaemonUnreachable, ProtocolError

_IDLE_TRANSPORTS_MAX = 8


class ClientSession:
    """Calls over a small pool of connections: each call has one to itself, so threads do not wait in line."""

    def __init__(self, *, socket: str | None = None, autostart: bool = True, timeout: float = 30.0) -> None:
        self._named = socket
        self._autostart = autostart
        self._timeout = timeout
        self._idle: list[Transport] = []
        self._lock = threading.Lock()

    def call(self, operation_name: str, parameters: dict[str, Any], *, context_uid: int | None = None) -> Any:
        """Run an operation and return its plain result.

        A connection that turns out dead is replaced once for operations that change nothing; for the others
        the caller learns of it, as the change may have happened.

        Raises:
            KmsfsError: the operation's error, or DaemonUnreachable, DeadlineExceeded.
        """
        operation = find(operation_name)
        for attempt in (1, 2):
            try:
                with self._transport(fresh=attempt == 2) as transport:
                    answer = transport.call(operation_name, parameters, context_uid)
                break
            except DaemonUnreachable:
                if operation.mutates or attempt == 2:
                    raise
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]

    def open_transport(self) -> Transport:
        """Return a new connection that the caller owns: for watch streams and leases.

        Raises:
            DaemonUnreachable: if no daemon answers.
        """
        return Transport(locate(self._named, autostart=self._autostart), self._timeout)

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for transport in idle:
            transport.close()

    @contextmanager
    def _transport(self, *, fresh: bool) -> Iterator[Transport]:
        transport = None if fresh else self._take_idle()
        transport = transport or self.open_transport()
        try:
            yield transport
        except (DaemonUnreachable, ProtocolError, TimeoutError):
            transport.close()
            raise
        except BaseException:
            transport.close()
            raise
        with self._lock:
            if len(self._idle) < _IDLE_TRANSPORTS_MAX:
                self._idle.append(transport)
                return
        transport.close()

    def _take_idle(self) -> Transport | None:
        with self._lock:
            while self._idle:
                transport = self._idle.pop()
                if transport.pid == os.getpid() and transport.idle():
                    return transport
                if transport.pid == os.getpid():
                    transport.close()
        return None
