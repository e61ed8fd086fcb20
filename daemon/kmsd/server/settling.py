"""Nothing is answered before what was done is durable: one sync of the state and one of the audit log for all who wait."""

import asyncio
import logging
from collections.abc import Callable

from kmsd.dispatch.pipeline import Pipeline
from kmsd.store.database import SealedStore
from kmsfs.errors import AuditUnavailable, StorageError

_LOG = logging.getLogger("kmsd")
Unsettled = AuditUnavailable | StorageError
Answer = Callable[[Unsettled | None], None]
"""Told that what was done is durable, or why it is not."""


class Settlement:
    """Holds answers back until then. Those that became ready in one turn of the event loop are settled together."""

    def __init__(self, pipeline: Pipeline, store: SealedStore, on_broken: Callable[[], None]) -> None:
        """Settle what `pipeline` did in `store`; `on_broken` is told when the state cannot be stored."""
        self._pipeline = pipeline
        self._store = store
        self._on_broken = on_broken
        self._held: list[Answer] = []

    def after(self, answer: Answer) -> None:
        """Call `answer` when all that was done so far is durable: at once if nothing was changed and nobody waits."""
        if self._held:
            self._held.append(answer)
        elif self._wanted():
            self._held.append(answer)
            asyncio.get_running_loop().call_soon(self._release)
        else:
            answer(self._settle())

    def now(self) -> None:
        """Make durable what was done so far.

        Raises:
            AuditUnavailable: if the audit log cannot be written.
            StorageError: if the state cannot be stored.
        """
        error = self._release(always=True)
        if error is not None:
            raise error

    def _wanted(self) -> bool:
        pipeline = self._pipeline
        return pipeline.sync_wanted or pipeline.journal.overdue

    def _release(self, *, always: bool = False) -> Unsettled | None:
        if not self._held and not always:
            # Somebody could not wait, and settled for all.
            return None
        held, self._held = self._held, []
        error = self._settle()
        for answer in held:
            try:
                answer(error)
            except Exception:
                # One connection's trouble is not the others'.
                _LOG.exception("an answer could not be sent")
        return error

    def _settle(self) -> Unsettled | None:
        pipeline = self._pipeline
        try:
            self._store.sync()
        except StorageError as error:
            _LOG.critical("%s", error)
            self._on_broken()
            return error
        try:
            if pipeline.sync_wanted or pipeline.journal.overdue:
                pipeline.sync_wanted = False
                pipeline.journal.sync()
            else:
                pipeline.journal.flush()
        except AuditUnavailable as error:
            _LOG.critical("%s", error)
            return error
        return None
