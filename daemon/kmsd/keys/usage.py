"""When and for what each KMS key was last used (AWS KMS API reference, GetKeyLastUsage).

Noted in memory with each successful call and written once a minute, so what a killed daemon noted in its last minute is
in the audit log alone.
"""

from dataclasses import dataclass

from kmsd.keys.registry import KmsKey
from kmsd.store.database import Changes, SealedStore
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
        self.since: float = now
        """When this daemon's state began to note uses."""
        self._since_unwritten = True
        self.take({Table.KEY_USAGE: {row.get("key", _TRACKING): row for row in store.scan(Table.KEY_USAGE)}})

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
        if not due and not self._since_unwritten:
            return
        with self._store.transaction() as work:
            if self._since_unwritten:
                work.put(Table.KEY_USAGE, _TRACKING, {"since": self.since})
            for key_id in due:
                operation, at, call_id = self._last[key_id]
                row = {"key": key_id, "operation": operation, "at": at, "call": call_id}
                work.put(Table.KEY_USAGE, key_id, row)
        self._since_unwritten = False
        for key_id in due:
            del self._unwritten[key_id]

    def forget(self, key: KmsKey, event: str) -> None:
        """Drop what is known of a key that is gone; its row went with it."""
        if event == "deleted" and self._last.pop(key.key_id, None) is not None:
            self._unwritten.pop(key.key_id, None)

    def take(self, changes: Changes) -> None:
        """Let uses that are in the store count, where none is known that was later."""
        for place, row in changes.get(Table.KEY_USAGE, {}).items():
            if row is None:
                continue
            if place == _TRACKING:
                self.since, self._since_unwritten = row["since"], False
            elif place not in self._last or self._last[place][1] <= row["at"]:
                self._last[place] = row["operation"], row["at"], row["call"]
                self._unwritten.pop(place, None)
