"""When and for what each KMS key was last used (AWS KMS API reference, GetKeyLastUsage).

Noted in memory with each successful call and written once a minute, so what a killed daemon noted in its last minute is
in the audit log alone.
"""

from dataclasses import dataclass

from kmsd.keys.registry import KmsKey
from kmsd.store.database import SealedStore
from kmsd.store.schema import Table
from kmsfs.api.shapes.keys import USED_BY

_TRACKING = "tracking"
_ROWS_AT_ONCE = 1000
"""Rows of one write: nobody is answered meanwhile."""


@dataclass(frozen=True, slots=True)
class LastUse:
    """The last successful cryptographic operation under a key."""

    operation: str
    at: float
    call_id: str


class KeyUsage:
    """The last use of every key."""

    def __init__(self, store: SealedStore, now: float) -> None:
        self._store = store
        self._last: dict[str, tuple[str, float, str]] = {}
        self._unwritten: dict[str, None] = {}
        """Keys in the order in which their rows became old."""
        since = None
        for row in store.scan(Table.KEY_USAGE):
            if "since" in row:
                since = row["since"]
            else:
                self._last[row["key"]] = row["operation"], row["at"], row["call"]
        if since is None:
            since = now
            with store.transaction() as work:
                work.put(Table.KEY_USAGE, _TRACKING, {"since": since})
        self.since: float = since
        """When this daemon's state began to note uses."""

    def note(self, key_id: str, operation: str, now: float, call_id: str) -> None:
        """Remember a use, if the operation is one that AWS counts."""
        if operation in USED_BY:
            # This runs on every call: a tuple costs a tenth of what an object does.
            self._last[key_id] = operation, now, call_id
            self._unwritten[key_id] = None

    def of(self, key: KmsKey) -> LastUse | None:
        """Return a key's last use, None if there was none since `since`."""
        last = self._last.get(key.key_id)
        return LastUse(*last) if last is not None else None

    def write(self) -> None:
        """Store what was noted, the oldest first, at most a thousand keys at once.

        Raises:
            StorageError: if it cannot be written; it stays noted.
        """
        due = list(self._unwritten)[:_ROWS_AT_ONCE]
        if not due:
            return
        with self._store.transaction() as work:
            for key_id in due:
                operation, at, call_id = self._last[key_id]
                row = {"key": key_id, "operation": operation, "at": at, "call": call_id}
                work.put(Table.KEY_USAGE, key_id, row)
        for key_id in due:
            del self._unwritten[key_id]

    def forget(self, key: KmsKey, event: str) -> None:
        """Drop what is known of a key that is gone."""
        if event == "deleted" and self._last.pop(key.key_id, None) is not None:
            self._unwritten.pop(key.key_id, None)
            with self._store.transaction() as work:
                work.delete(Table.KEY_USAGE, key.key_id)
