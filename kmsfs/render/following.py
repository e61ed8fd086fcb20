"""Do something again whenever what it read has changed."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from kmsfs.client.changes import HEARD, LOST, RESET, ChangeStream
from kmsfs.errors import KmsfsError

_GATHER_SECONDS = 0.25
"""Changes that come together are answered together."""
_RETRY_SECONDS = 30.0


def keep_up(
    stream: ChangeStream,
    concerns: Callable[[dict[str, Any]], bool],
    act: Callable[[], None],
    complain: Callable[[KmsfsError], None],
) -> None:
    """Call `act` once the stream has begun, and after each change that `concerns` it, until the stream is closed.

    A failure is told to `complain`, and `act` is called again after the next change or half a minute.

    Raises:
        KmsfsError: if the stream cannot be begun.
    """
    events: queue.SimpleQueue[dict[str, Any] | KmsfsError | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(stream, events), name="kmsfs-events", daemon=True).start()
    failed = False
    while True:
        try:
            event = events.get(timeout=_RETRY_SECONDS if failed else None)
        except queue.Empty:
            event = {}
        if event is None:
            return
        if isinstance(event, KmsfsError):
            raise event
        if event and not concerns(event):
            continue
        _gather(events)
        try:
            act()
            failed = False
        except KmsfsError as error:
            complain(error)
            failed = True


def _gather(events: "queue.SimpleQueue[dict[str, Any] | KmsfsError | None]") -> None:
    """Wait until nothing has come for a moment, or the stream's end, which is left there."""
    while True:
        try:
            event = events.get(timeout=_GATHER_SECONDS)
        except queue.Empty:
            return
        if not isinstance(event, dict):
            events.put(event)
            return


def _read(stream: ChangeStream, events: "queue.SimpleQueue[dict[str, Any] | KmsfsError | None]") -> None:
    begun = False
    try:
        for event in stream:
            if event["kind"] not in (HEARD, LOST):
                events.put(event)
            elif not begun:
                begun = True
                events.put({"kind": RESET})
        events.put(None)
    except KmsfsError as error:
        events.put(error)
