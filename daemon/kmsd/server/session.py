"""One connection: cut frames, run them, make durable what they did, then answer."""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.dispatch.pipeline import ALWAYS_ANSWERED, Pipeline
from kmsd.dispatch.status import WATCHED_KEYS
from kmsd.events.changes import Change, Following
from kmsd.events.service import FOLLOWED
from kmsd.keys.spares import SpareKeys
from kmsd.server.frames import FrameBuffer
from kmsd.server.linger import Linger
from kmsd.server.peer import identify
from kmsd.server.settling import Settlement, Unsettled
from kmsd.server.throttle import Buckets
from kmsfs.api.registry import OPERATIONS
from kmsfs.errors import (
    AuditUnavailable,
    DeadlineExceeded,
    InvariantBroken,
    KmsfsError,
    LimitExceeded,
    ProtocolError,
    Throttled,
)
from kmsfs.formats.frame import Request, decode_request, encode_error, encode_event, encode_result

_LOG = logging.getLogger("kmsd")
FRAME_SECONDS = 5.0
"""A frame that is not complete after this long closes its connection."""
_STREAMS_MAX = 16
_UNREAD_MAX_BYTES = 1 << 20
"""Who leaves more events than this unread is cut off: a stream can be begun again where it was."""


@dataclass(slots=True)
class ServerState:
    """What all connections of a server share."""

    pipeline: Pipeline
    settlement: Settlement
    account: str
    clock: Callable[[], float]
    account_of: Callable[[int], str]
    """Tells the account of a local user."""
    administrators: frozenset[str] = frozenset()
    buckets: Buckets = field(default_factory=Buckets)
    spares: SpareKeys = field(default_factory=SpareKeys)
    makers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "kmsd-rsa"))
    """Makes keys that are slow to make, while others are served."""
    linger: Linger = field(default_factory=Linger)
    sessions: set["Session"] = field(default_factory=set)
    on_lost: Callable[[int, float], None] = lambda _connection, _now: None
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def spend(self, principal: str, frame: Request) -> None:
        """Let a principal pay for a call.

        Raises:
            Throttled: if it has called too often; nothing was done then, and nothing is recorded but in the counts.
        """
        try:
            self.buckets.spend(principal, frame.operation, frame.parameters, self.clock())
        except Throttled as error:
            name = frame.operation if frame.operation in OPERATIONS else "Unknown"
            self.pipeline.note_call(name, error.code, 0.0)
            raise


class Session(asyncio.Protocol):
    """The daemon's end of one connection."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.number = next(state.numbers)
        """By which the rooms know the connection."""
        self._buffer = FrameBuffer()
        self._watched: dict[int, frozenset[str]] = {}
        self._followed: dict[int, Following] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._admitted = False
        self._waits = False
        """Whether a frame waits for a key that is being made."""
        self._held = 0
        """How many sets of answers wait until what was done is durable."""
        self._arrived = 0.0
        self._caller: Caller | None = None
        self._transport: Any = None

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who connects; turn away a uid with too many connections."""
        self._transport = transport
        try:
            self._caller = identify(
                transport.get_extra_info("socket"), self._state.account_of, self._state.administrators
            )
        except OSError:
            self._transport.abort()
            return
        self._admitted = self._state.buckets.connect(self._caller.uid)
        if not self._admitted:
            self._transport.write(
                encode_error(0, "ThrottlingException", "too many connections", "close some", retryable=True)
            )
            self._transport.close()
            return
        self._state.sessions.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection and let its leases run out."""
        self._stop_timer()
        self._state.sessions.discard(self)
        if self._admitted and self._caller is not None:
            self._state.buckets.disconnect(self._caller.uid)
        self._state.on_lost(self.number, self._state.clock())

    def pause_writing(self) -> None:
        """Stop reading from a peer that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Run every complete frame, then answer them all when what they did is durable."""
        if self._caller is None or not self._admitted:
            return
        self._buffer.add(data)
        self._arrived = self._state.clock()
        if not self._waits:
            self._work(self._caller)

    def _work(self, caller: Caller) -> None:
        """Answer what has arrived, until something needs a key that is slow to make: that one and what follows wait for it."""
        answers: list[tuple[str, int, bytes]] = []
        fatal = False
        try:
            # One by one: answers already made are sent even if a later frame is broken.
            for body in self._buffer.bodies():
                self._stop_timer()
                frame = decode_request(body)
                spec = self._state.spares.lacking(frame.operation, frame.parameters)
                if spec is not None:
                    self._wait_for_key(caller, spec, frame)
                    break
                answers.append(self._answer(caller, frame))
        except ProtocolError as error:
            answers.append(("", 0, encode_error(0, error.code, error.detail, error.hint, retryable=False)))
            fatal = True
        self._send(answers)
        self._state.linger.extend()
        if fatal:
            self._state.settlement.after(lambda _error: self._transport.close())
        elif self._buffer and not self._waits:
            self._start_timer()

    def _wait_for_key(self, caller: Caller, spec: str, frame: Request) -> None:
        """Have a key made in a thread, and then answer the frame that needs it and those behind it."""
        self._waits = True
        self._transport.pause_reading()
        making = asyncio.get_running_loop().run_in_executor(self._state.makers, self._state.spares.make, spec)

        def made(future: "asyncio.Future[None]") -> None:
            """Go on with the requests that waited for the key."""
            self._waits = False
            if future.cancelled() or self._transport.is_closing():
                return
            # A key that could not be made is tried again by who needs it, who then answers why.
            future.exception()
            self._send([self._answer(caller, frame)])
            self._transport.resume_reading()
            self._work(caller)

        making.add_done_callback(made)

    def eof_received(self) -> bool:
        """Half-closed connections are closed, once what waits has been answered."""
        if self._held:
            self._state.settlement.after(lambda _error: self._transport.close())
        return self._held > 0

    def end_streams(self) -> None:
        """Cut a connection that follows changes: it comes back and asks for what it missed."""
        if self._followed:
            self._state.settlement.after(lambda _error: self._transport.close())

    def end(self) -> None:
        """Cut the connection, at once: the loop closes it later, and until then its holder would take what it holds for his."""
        if self._transport.is_closing():
            return
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as held:
            held.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    def end_if(self, concerns: Callable[[Caller], bool]) -> None:
        """Cut the connection if its caller is one of these: who comes back is looked at anew."""
        if self._caller is not None and concerns(self._caller):
            self._state.settlement.after(lambda _error: self._transport.close())

    # --- pushed events --------------------------------------------------------------------------------------

    def push(self, key_id: str | None, event: dict[str, Any]) -> None:
        """Send an event to the streams that watch the key; None reaches all streams."""
        for request_id, keys in self._watched.items():
            if key_id is None or key_id in keys:
                self._push(request_id, event)
        if key_id is None:
            for request_id in self._followed:
                self._push(request_id, event)

    def tell(self, change: Change, event: dict[str, Any]) -> None:
        """Send a change, as `event` says it, to the streams that want it."""
        now = self._state.clock()
        for request_id, following in self._followed.items():
            if following.wants(change, now):
                self._push(request_id, event)

    def _push(self, request_id: int, event: dict[str, Any]) -> None:
        if self._held:
            # It comes after the answers that wait: one of them may begin its stream.
            self._state.settlement.after(lambda _error: self._write_event(request_id, event))
        else:
            self._write_event(request_id, event)

    def _write_event(self, request_id: int, event: dict[str, Any]) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > _UNREAD_MAX_BYTES:
            self._transport.abort()
            return
        self._transport.write(encode_event(request_id, event))

    # --- frames ---------------------------------------------------------------------------------------------

    def _answer(self, caller: Caller, frame: Request) -> tuple[str, int, bytes]:
        try:
            now = self._state.clock()
            if frame.deadline_ms is not None and (now - self._arrived) * 1000 >= frame.deadline_ms:
                raise DeadlineExceeded("the request's deadline passed before it was begun; nothing was done")
            self._state.spend(caller.principal, frame)
            result, call = self._state.pipeline.run(caller, frame, self.number)
            missed = self._begin_stream(frame.request_id, call)
            return frame.operation, frame.request_id, encode_result(frame.request_id, result) + missed
        except KmsfsError as error:
            return frame.operation, frame.request_id, error_frame(frame.request_id, error)
        except Exception:
            _LOG.exception("frame failed")
            return (
                frame.operation,
                frame.request_id,
                error_frame(frame.request_id, InvariantBroken("internal error")),
            )

    def _begin_stream(self, request_id: int, call: Call) -> bytes:
        """Begin the stream that a call asks for, if it does; return the events that come before the first new one.

        Raises:
            LimitExceeded: if the connection has too many streams: each is looked at for each change.
        """
        if not call.operation.streams:
            return b""
        if len(self._watched) + len(self._followed) >= _STREAMS_MAX:
            raise LimitExceeded(f"A connection has at most {_STREAMS_MAX} streams.", hint="open another connection")
        if WATCHED_KEYS in call.notes:
            self._watched[request_id] = call.notes[WATCHED_KEYS]
            return b""
        self._followed[request_id], missed = call.notes[FOLLOWED]
        return b"".join(encode_event(request_id, event) for event in missed)

    def _send(self, answers: list[tuple[str, int, bytes]]) -> None:
        if answers:
            self._held += 1
            self._state.settlement.after(lambda error: self._write(answers, error))

    def _write(self, answers: list[tuple[str, int, bytes]], error: Unsettled | None) -> None:
        """Send answers, or the error that takes their place."""
        self._held -= 1
        if self._transport.is_closing():
            return
        if error is not None:
            spared = ALWAYS_ANSWERED if isinstance(error, AuditUnavailable) else ()
            answers = [
                (name, number, frame if name in spared else error_frame(number, error)) for name, number, frame in answers
            ]
        self._transport.write(b"".join(frame for _, _, frame in answers))

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FRAME_SECONDS, self._transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def error_frame(request_id: int, error: KmsfsError) -> bytes:
    """Return the frame that tells an error; what a bug was stays in the log."""
    message = "internal error; the daemon's log has the details" if error.audience == "bug" else error.detail
    return encode_error(request_id, error.code, message, error.hint, retryable=error.retryable)
