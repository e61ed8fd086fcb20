"""Listens for what other daemons write into a shared database, and lets them know that this one lives."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from kmsd.store.link import Deadline, connect
from kmsd.store.postgres import CHANNEL
from kmsfs.clock import passed
from kmsfs.quantity import DATABASE_LOOK_SECONDS

_AGAIN_SECONDS = 0.5
_LOOK = "SELECT coalesce(max(seq), 0) FROM change"
_ALIVE = "INSERT INTO host (id, seen) VALUES (%s, now()) ON CONFLICT (id) DO UPDATE SET seen = now()"
_ALIVE_SECONDS = 2.0


class News:
    """A thread with a connection of its own: a daemon that waits for a dead database would otherwise wait in its event loop."""

    def __init__(
        self, url: str, host: str, own: Callable[[], int], heard: Callable[[int, float], None], told: Callable[[str], None]
    ) -> None:
        """Call `heard` with the newest commit number and when it was asked for, `told` with what becomes of the connection.

        `own` tells the server's process of this daemon's other connection: of what that writes nobody needs to be told.
        """
        self._own = own
        self._url, self._host = url, host
        self._heard, self._told = heard, told
        self._stopped = threading.Event()
        self._deadline = Deadline()
        self._thread = threading.Thread(target=self._run, name="kmsd-database-news", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; the thread is gone within a moment."""
        self._stopped.set()
        self._thread.join(5)
        self._deadline.close()

    def _run(self) -> None:
        lost = False
        while not self._stopped.is_set():
            try:
                with contextlib.closing(connect(self._url)) as connection:
                    with self._deadline.on(connection.fileno()):
                        # Nothing of what is written here needs to outlive a crash of the database.
                        connection.execute("SET synchronous_commit = off")
                        connection.execute(f"LISTEN {CHANNEL}")
                    if lost:
                        self._told("the shared database answers again")
                    lost = False
                    self._listen(connection)
            except Exception as error:
                if not lost and not self._stopped.is_set():
                    self._told(f"the shared database does not answer: {str(error).strip() or type(error).__name__}")
                lost = True
                self._stopped.wait(_AGAIN_SECONDS)

    def _listen(self, connection: Any) -> None:
        alive = 0.0
        while not self._stopped.is_set():
            asked = passed()
            with self._deadline.on(connection.fileno()):
                if asked - alive > _ALIVE_SECONDS:
                    connection.execute(_ALIVE, (self._host,))
                    alive = asked
                (number,) = connection.execute(_LOOK).fetchone()
            self._heard(number, asked)
            ends = asked + DATABASE_LOOK_SECONDS
            while (left := ends - passed()) > 0 and not self._stopped.is_set():
                # What a notice says is looked up: only that is known to be newest.
                if any(notice.pid != self._own() for notice in connection.notifies(timeout=left, stop_after=1)):
                    break
