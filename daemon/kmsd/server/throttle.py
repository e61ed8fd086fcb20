"""Token buckets per uid: a caller that floods waits, the others do not."""

from kmsfs.errors import Throttled

OPERATIONS_PER_SECOND = 50_000.0
BURST = 100_000.0
CONNECTIONS_PER_UID = 128


class Buckets:
    """One bucket per uid, refilled by time; and the number of its open connections."""

    def __init__(self) -> None:
        self._levels: dict[int, tuple[float, float]] = {}
        self._connections: dict[int, int] = {}

    def spend(self, uid: int, now: float) -> None:
        """Take one token.

        Raises:
            Throttled: if none is left.
        """
        level, since = self._levels.get(uid, (BURST, now))
        level = min(BURST, level + max(0.0, now - since) * OPERATIONS_PER_SECOND)
        if level < 1:
            self._levels[uid] = (level, now)
            raise Throttled(
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
            )
        self._levels[uid] = (level - 1, now)

    def connect(self, uid: int) -> bool:
        """Count a connection; False if the uid has too many."""
        if self._connections.get(uid, 0) >= CONNECTIONS_PER_UID:
            return False
        self._connections[uid] = self._connections.get(uid, 0) + 1
        return True

    def disconnect(self, uid: int) -> None:
        """Forget a connection."""
        left = self._connections.get(uid, 1) - 1
        if left:
            self._connections[uid] = left
        else:
            self._connections.pop(uid, None)
