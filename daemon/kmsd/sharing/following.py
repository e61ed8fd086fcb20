"""Keeps a daemon's memory at what all daemons that share its database have written."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from kmsd.store.database import Changes
from kmsd.store.news import News
from kmsd.store.postgres import PostgresStore
from kmsfs.errors import DatabaseUnreachable, KmsfsError, StateMoved

_LOG = logging.getLogger("kmsd")
Taker = Callable[[Changes], object]


class Sharing:
    """Lets each room take what others wrote, before anything is decided on it and soon after it was written."""

    def __init__(self, store: PostgresStore, takers: Sequence[Taker], on_broken: Callable[[], None]) -> None:
        """Tell `takers` in their order; `on_broken` is called where this daemon's memory and the database part for good."""
        self._store = store
        self._takers = takers
        self._on_broken = on_broken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = News(store.url, store.host, store.own_process, self._from_thread, self._told)
        store.on_changes = self._take

    def begin(self) -> None:
        """Listen from now on; to be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._news.start()

    def close(self) -> None:
        """Stop listening; what was heard and waits is not looked at any more."""
        self._loop = None
        self._news.close()

    def _told(self, text: str) -> None:
        _LOG.warning("%s", text)

    def _from_thread(self, number: int, asked: float) -> None:
        loop = self._loop
        if loop is not None:
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._heard, number, asked)

    def _heard(self, number: int, asked: float) -> None:
        if self._loop is None:
            return
        try:
            self._store.heard(number, asked)
        except (DatabaseUnreachable, StateMoved) as error:
            _LOG.warning("what others wrote is not known yet: %s", error.detail)
        except KmsfsError as error:
            _LOG.critical("this daemon cannot go on with its shared database: %s", error.detail)
            self._on_broken()

    def _take(self, changes: Changes) -> None:
        try:
            for take in self._takers:
                take(changes)
        except Exception:
            # Half of it may be seen now: only a new start knows all of it again.
            _LOG.critical("what other daemons wrote could not be taken over", exc_info=True)
            self._on_broken()
            raise
