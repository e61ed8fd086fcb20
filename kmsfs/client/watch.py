"""The watch stream: a thread that follows key changes and knows whether the lease holds."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from kmsfs.client.lease import Lease
from kmsfs.client.remote import to_exception
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.clock import passed
from kmsfs.errors import DaemonUnreachable, DeadlineExceeded, KmsfsError, VolumeBusy
from kmsfs.quantity import HEARTBEAT_SECONDS

EventListener = Callable[[dict[str, Any]], None]
LOST, RESUMED = "lost", "resumed"
"""Kinds of events that the daemon does not send: the stream broke; it is back, and what happened meanwhile is unknown."""
_RETRY_SECONDS, _RETRY_MAX_SECONDS = 0.5, 8.0
_COUNTING = threading.Lock()


class KeyWatcher:
    """Watches keys. `on_event` runs in the watcher's thread for each change, and with the kinds `LOST` and `RESUMED`.

    Whoever holds something that a key allowed has to give it up at `RESUMED`: a change in between is told to nobody. `guard` is called when the
    stream has begun, and with each heartbeat, before that counts: what it raises ends the stream, which begins again. Where it was refused, but for
    what another holds, `RESUMED` comes all the same: the daemon is back, and whoever asks it learns why.
    """

    def __init__(
        self,
        session: ClientSession,
        key_ids: list[str],
        on_event: EventListener,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._key_ids = key_ids
        self._on_event = on_event
        self._guard = guard
        self._lease = Lease()
        self._closed = threading.Event()
        self._ready = threading.Event()
        self._tried = threading.Event()
        """Set when `start` knows enough."""
        self._patient = True
        self._failure: KmsfsError | None = None
        self._transport: Transport | None = None
        self._thread = threading.Thread(target=self._run, name="kmsfs-watch", daemon=True)

    def start(self, timeout: float = 15.0, *, patient: bool = True) -> None:
        """Connect, and return when the stream has begun. Who is not patient gives up at the first refusal.

        Raises:
            KmsfsError: why it could not begin; it is closed then.
        """
        self._patient = patient
        self._thread.start()
        self._tried.wait(timeout)
        if not self._ready.is_set():
            self._closed.set()
            raise self._failure or DeadlineExceeded("the watch stream did not begin")

    @property
    def alive(self) -> bool:
        """Whether the lease holds: something was heard within its time."""
        return self._lease.holds

    @property
    def silent(self) -> float:
        """For how many seconds nothing has been heard of the daemon."""
        return self._lease.silent

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._transport is not None:
            self._transport.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        with _COUNTING:
            Transport.waiting_threads += 1
        try:
            self._keep_following()
        finally:
            with _COUNTING:
                Transport.waiting_threads -= 1

    def _keep_following(self) -> None:
        pause = _RETRY_SECONDS
        while not self._closed.is_set():
            try:
                self._follow()
            except KmsfsError as error:
                self._failure = error
                # A daemon that is away may be back at once; a refusal is a record in the audit log each time.
                away = isinstance(error, (DaemonUnreachable, DeadlineExceeded))
                pause = _RETRY_SECONDS if away else min(2 * pause, _RETRY_MAX_SECONDS)
                if not self._patient:
                    self._tried.set()
            if self._closed.is_set():
                return
            if self._ready.is_set():
                self._on_event({"kind": LOST})
            self._closed.wait(pause)

    def _follow(self) -> None:
        transport = self._session.open_transport()
        self._transport = transport
        try:
            asked = passed()
            answer = transport.call("Watch", {"KeyIds": self._key_ids})
            if "e" in answer:
                raise to_exception(answer["e"])
            # After the answer: a daemon that knows by now that somebody else has what is held here has said so before it.
            self._begin()
            self._lease.asked(asked, answer["r"])
            if self._ready.is_set():
                self._on_event({"kind": RESUMED})
            self._ready.set()
            self._tried.set()
            while not self._closed.is_set():
                message = transport.receive(timeout=HEARTBEAT_SECONDS * 3)
                event = message.get("ev")
                if event and event["kind"] == "heartbeat":
                    self._guard()
                    self._lease.heartbeat(event)
                elif event:
                    self._on_event(event)
        finally:
            with contextlib.suppress(OSError):
                transport.close()

    def _begin(self) -> None:
        try:
            self._guard()
        except (DaemonUnreachable, DeadlineExceeded, VolumeBusy):
            raise
        except KmsfsError:
            if self._ready.is_set():
                self._on_event({"kind": RESUMED})
            raise
