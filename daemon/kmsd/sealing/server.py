"""The socket of a sealed daemon: it takes what unseals it, and answers everything else with one error."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop

from kmsd.root.keyring import SealType
from kmsd.sealing.unsealing import Unsealing
from kmsd.server.frames import FrameBuffer
from kmsd.server.listen import BACKLOG
from kmsd.server.notify import notify, watchdog_seconds
from kmsd.server.peer import peer_ids
from kmsd.server.session import FRAME_SECONDS, error_frame
from kmsd.server.throttle import Buckets
from kmsfs.api.registry import find
from kmsfs.api.shapes.admin import SealStatus, UnsealRequest
from kmsfs.api.validation import decode
from kmsfs.errors import AccessDenied, DaemonSealed, InvariantBroken, KmsfsError, ProtocolError
from kmsfs.formats.frame import Request, decode_request, encode_error, encode_result

_LOG = logging.getLogger("kmsd")
ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a daemon."""
_LAST_ANSWER_SECONDS = 0.05


class SealedState:
    """What all connections of a sealed daemon share."""

    def __init__(self, unsealing: Unsealing, keepers: frozenset[int]) -> None:
        """`keepers` are the uids that may unseal without a share."""
        self.unsealing = unsealing
        self.keepers = keepers
        self.buckets = Buckets()
        self.helpers: list[int] = []
        """Who gave what counted, as uids."""
        self.on_unsealed: Callable[[], None] = lambda: None

    def status(self) -> SealStatus:
        """Return how far it is."""
        unsealing = self.unsealing
        return SealStatus(
            sealed=unsealing.root_key is None,
            root_key_source=unsealing.seal_type.name.lower(),
            pid=os.getpid(),
            shares_given=unsealing.given,
            shares_needed=unsealing.needed,
        )

    def run(self, uid: int, frame: Request) -> SealStatus:
        """Answer one request.

        Raises:
            DaemonSealed: for all but GetSealStatus and Unseal.
            KmsfsError: as Unseal.
        """
        if frame.operation == "GetSealStatus":
            return self.status()
        if frame.operation != "Unseal":
            raise DaemonSealed("The key daemon is sealed: it has no root key.", hint=self._way_out())
        request = decode(find(frame.operation), frame.parameters)
        if not isinstance(request, UnsealRequest):
            raise InvariantBroken("Unseal has another request")
        self._unseal(uid, request)
        return self.status()

    def _unseal(self, uid: int, request: UnsealRequest) -> None:
        unsealing = self.unsealing
        if unsealing.root_key is not None:
            return
        if request.share is not None:
            # Whoever has one: that is what shares are for.
            unsealing.take_share(request.share)
        elif uid not in self.keepers:
            raise AccessDenied("Only root, the daemon's user and its administrators may unseal it without a share.")
        elif request.passphrase is not None:
            unsealing.take_passphrase(request.passphrase)
        else:
            unsealing.take_source()
        self.helpers.append(uid)
        if unsealing.root_key is not None:
            self.on_unsealed()

    def _way_out(self) -> str:
        unsealing = self.unsealing
        if unsealing.seal_type is SealType.SHARES:
            needed = f" of {unsealing.needed}" if unsealing.needed else ""
            return f"kmsd unseal, by each who has a share; {unsealing.given}{needed} given so far"
        return "kmsd unseal"


class SealedSession(asyncio.Protocol):
    """One connection to a sealed daemon."""

    def __init__(self, state: SealedState) -> None:
        self._state = state
        self._buffer = FrameBuffer()
        self._timer: asyncio.TimerHandle | None = None
        self._uid = -1
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who connects; turn away a uid with too many connections."""
        self._transport = transport
        try:
            _, uid, _ = peer_ids(transport.get_extra_info("socket"))
        except OSError:
            self._transport.abort()
            return
        if self._state.buckets.connect(uid):
            self._uid = uid
        else:
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        if self._uid >= 0:
            self._state.buckets.disconnect(self._uid)

    def data_received(self, data: bytes) -> None:
        """Answer every complete frame."""
        if self._uid < 0:
            return
        self._buffer.add(data)
        try:
            for body in self._buffer.bodies():
                self._stop_timer()
                self._transport.write(self._answer(body))
        except ProtocolError as error:
            self._transport.write(encode_error(0, error.code, error.detail, error.hint, retryable=False))
            self._transport.close()
            return
        if self._buffer and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FRAME_SECONDS, self._transport.abort)

    def _answer(self, body: bytes) -> bytes:
        frame = decode_request(body)
        try:
            answer = self._state.run(self._uid, frame)
            return encode_result(frame.request_id, msgspec.to_builtins(answer, builtin_types=(bytes,)))
        except KmsfsError as error:
            return error_frame(frame.request_id, error)
        except Exception:
            _LOG.exception("a frame failed")
            return error_frame(frame.request_id, InvariantBroken("internal error"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def serve_sealed(state: SealedState, listener: socket.socket) -> bool:
    """Serve until the daemon is unsealed, or until SIGTERM or SIGINT; return whether it is unsealed."""
    return uvloop.run(_serve(state, listener))


async def _serve(state: SealedState, listener: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    stop, ended = asyncio.Event(), asyncio.Event()
    state.on_unsealed = stop.set

    def end() -> None:
        ended.set()
        stop.set()

    for number in ENDING:
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    server = await loop.create_unix_server(lambda: SealedSession(state), sock=listener.dup(), backlog=BACKLOG)
    notify("READY=1\nSTATUS=sealed: it waits for `kmsd unseal`")
    _LOG.warning("sealed: every operation is refused until `kmsd unseal`")
    beat = watchdog_seconds()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), beat)
        notify("WATCHDOG=1")
    server.close()
    # The last answer is on its way; who is connected comes again.
    await asyncio.sleep(_LAST_ANSWER_SECONDS)
    # What comes before the daemon listens for signals itself waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    return state.unsealing.root_key is not None and not ended.is_set()


def keepers(administrators: tuple[int, ...]) -> frozenset[int]:
    """Return the uids that may seal and unseal: root, the daemon's own user, its administrators."""
    return frozenset({0, os.getuid(), *administrators})
