"""The client's end of one socket: frames out, answers in, deadlines."""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import Any

from kmsfs.errors import DaemonUnreachable, DeadlineExceeded
from kmsfs.formats.frame import LENGTH_BYTES, decode_answer, encode_request, read_length

_TIMEVAL = struct.Struct("@ll")
_SPIN_NS = 400_000
_FRESH_SECONDS = 0.01
_SPINNING_THREADS = 6
"""Programs with more threads than this have other work to do meanwhile."""


class Transport:
    """One connected socket. Not thread-safe; sessions keep one per thread that needs one."""

    waiting_threads = 0
    """Threads that do nothing but wait for events, so that they do not count for `_SPINNING_THREADS`."""

    def __init__(
        self, path: str, timeout: float, *, polling: bool = True, connected: socket.socket | None = None
    ) -> None:
        """Connect to `path`, or go on with a socket that is connected to it."""
        self.path = path
        self._polling = polling
        self._timeout = timeout
        self._next_id = 0
        self._heard = 0.0
        self.pid = os.getpid()
        self._socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._pending = bytearray()
        try:
            if connected is None:
                _connect(self._socket, path, timeout)
        except OSError as error:
            self._socket.close()
            raise DaemonUnreachable(
                f"no key daemon answers on {path}: {error.strerror or error}",
                hint="start one with `kmsfs daemon start`, or name its socket in KMSFS_SOCKET",
            ) from error

    def close(self) -> None:
        """Close the socket; a thread that waits on it learns of it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def send(self, operation: str, parameters: dict[str, Any], context_uid: int | None = None) -> int:
        """Send a request and return its id.

        Raises:
            DaemonUnreachable: if the daemon is gone.
            FrameTooLarge: if the request exceeds 1 MiB.
            InvalidRequest: if a parameter is nothing that a request can hold.
        """
        self._next_id += 1
        frame = encode_request(
            self._next_id,
            operation,
            parameters,
            deadline_ms=max(1, int(self._timeout * 1000)),
            context_uid=context_uid,
        )
        try:
            self._send_whole(frame)
        except OSError as error:
            raise DaemonUnreachable(f"the key daemon on {self.path} went away") from error
        return self._next_id

    def _send_whole(self, frame: bytes) -> None:
        """Send at once where the socket has room, as it nearly always has; a socket with a timeout would be polled first."""
        try:
            sent = os.write(self._socket.fileno(), frame)
        except BlockingIOError:
            sent = 0
        if sent < len(frame):
            self._socket.sendall(memoryview(frame)[sent:])

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the next answer or event.

        Raises:
            DaemonUnreachable: if the daemon is gone.
            DeadlineExceeded: if nothing arrives in time.
            BadFrame, FrameTooLarge, VersionMismatch: if what arrives is no answer.
        """
        self._heard = time.monotonic()
        deadline = self._heard + (self._timeout if timeout is None else timeout)
        while True:
            frame = self._cut()
            if frame is not None:
                return decode_answer(frame)
            self._fill(deadline)

    def call(
        self, operation: str, parameters: dict[str, Any], context_uid: int | None = None
    ) -> dict[str, Any]:
        """Send a request and return its answer; answers to given-up requests are dropped."""
        return self.answer_to(self.send(operation, parameters, context_uid))

    def answer_to(self, request_id: int) -> dict[str, Any]:
        """Return the answer to a request that was sent.

        Raises:
            DaemonUnreachable, DeadlineExceeded, BadFrame, FrameTooLarge, VersionMismatch: as `receive`.
        """
        while True:
            answer = self.receive()
            if answer["id"] in (request_id, 0):
                return answer

    @property
    def fresh(self) -> bool:
        """Whether the daemon answered on it so recently that looking for its goodbye would be in vain."""
        return time.monotonic() - self._heard < _FRESH_SECONDS and not self._pending

    def idle(self) -> bool:
        """Whether nothing has arrived unasked, such as the daemon's goodbye."""
        if self._pending:
            return False
        # Not select(2), which takes no descriptor past 1,023: a mount has thousands of files open.
        waiter = select.poll()
        waiter.register(self._socket.fileno(), select.POLLIN)
        return not waiter.poll(0)

    def _cut(self) -> bytes | None:
        pending = self._pending
        if len(pending) < LENGTH_BYTES:
            return None
        length = read_length(pending[:LENGTH_BYTES])
        end = LENGTH_BYTES + length
        if len(pending) < end:
            return None
        body = bytes(pending[LENGTH_BYTES:end])
        del pending[:end]
        return body

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the key daemon on {self.path} did not answer in time")
        try:
            data = self._receive_soon() or self._receive_within(left)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the key daemon on {self.path} did not answer in time") from error
        except OSError as error:
            raise DaemonUnreachable(f"the key daemon on {self.path} went away") from error
        if not data:
            raise DaemonUnreachable(f"the key daemon on {self.path} closed the connection")
        self._pending += data

    def _receive_soon(self) -> bytes:
        """Look for the answer for as long as one usually takes: cheaper than sleeping and being woken."""
        if not self._polling or threading.active_count() - Transport.waiting_threads > _SPINNING_THREADS:
            return b""
        until = time.perf_counter_ns() + _SPIN_NS
        while time.perf_counter_ns() < until:
            try:
                return os.read(self._socket.fileno(), 1 << 18)
            except BlockingIOError:
                continue
        return b""

    def _receive_within(self, seconds: float) -> bytes:
        self._socket.settimeout(seconds)
        return self._socket.recv(1 << 18)


def _connect(connecting: socket.socket, path: str, timeout: float) -> None:
    """Connect, and wait for as long as that where many others do: connect(2) of a socket with Python's timeout would fail at once then."""
    seconds = int(timeout)
    connecting.settimeout(None)
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(seconds, int((timeout - seconds) * 1_000_000)))
    connecting.connect(path)
    connecting.settimeout(timeout)
