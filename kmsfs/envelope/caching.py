"""Data keys of a volume's files: a pool made ahead, a bounded cache of opened ones, both dropped on revocation."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kmsfs.aead.nonces import Rng
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.provider import FreshKey, file_context
from kmsfs.errors import KeyLease
from kmsfs.quantity import CACHE_AGE_SECONDS, CACHE_ENTRIES, CACHE_IDLE_SECONDS
from kmsfs.secret import DataKey

POOL_KEYS = 128
POOL_SECONDS = 60.0
"""Unused pool keys are dropped after this long."""


class KeySource(Protocol):
    """The key service, as far as the cache needs it. Errors are the operations' own."""

    def generate(self, contexts: list[dict[str, str]]) -> list[tuple[bytes, bytes]]:
        """Return (plain, wrapped) for each context."""
        ...

    def decrypt(self, wrapped: bytes, context: dict[str, str]) -> bytes:
        """Return the plain data key."""
        ...


@dataclass(slots=True)
class _Held:
    """A key in memory: `key` is what is wiped, `keys` what is used."""

    key: DataKey
    keys: FileKeys
    born: float
    used: float


@dataclass(frozen=True, slots=True)
class _Pooled:
    key: DataKey
    fresh: FreshKey


@dataclass(frozen=True, slots=True)
class Order:
    """Keys to be made for the pool, and the pool's round: after a revocation an older order is refused."""

    file_ids: list[bytes]
    contexts: list[dict[str, str]]
    round: int


class CachingProvider:
    """A DataKeyProvider over a KeySource.

    A cached key is used for at most 300 s after its last use and 900 s in all, and only while the lease holds:
    `lease_holds` says whether the watch stream was heard within ten seconds.
    """

    def __init__(
        self,
        volume_id: bytes,
        source: KeySource,
        clock: Callable[[], float],
        rng: Rng,
        lease_holds: Callable[[], bool],
    ) -> None:
        self._volume_id = volume_id
        self._source = source
        self._clock = clock
        self._rng = rng
        self._lease_holds = lease_holds
        self._pool: deque[_Pooled] = deque()
        self._unprepared: deque[FileKeys] = deque(maxlen=2 * POOL_KEYS)
        self._pool_born = 0.0
        self._pool_goal = 1
        self._round = 0
        self._opened: OrderedDict[bytes, _Held] = OrderedDict()
        self.on_low: Callable[[], None] | None = None
        """Called when the pool runs low: somebody then gets an `order` made and calls `deliver`."""

    def fresh(self) -> FreshKey:
        """See DataKeyProvider. The pool grows with demand up to 128 keys, so one file costs one key.

        Raises:
            KeyLease: if the watch stream is silent past its lease.
        """
        self._require_lease()
        now = self._clock()
        if now - self._pool_born > POOL_SECONDS:
            self._drop_pool()
            self._pool_goal = 1
        if not self._pool:
            order = self.order()
            self.deliver(order, self._source.generate(order.contexts))
        taken = self._pool.popleft()
        self._remember(taken.fresh.file_id, taken.key, taken.fresh.keys, now)
        if self.on_low is not None and self._pool_goal > 1 and len(self._pool) == self._pool_goal // 4:
            self.on_low()
        return taken.fresh

    def order(self) -> Order:
        """Return what to ask the key service for next; a bigger pool each time."""
        ids = [self._rng(16) for _ in range(self._pool_goal)]
        self._pool_goal = min(POOL_KEYS, self._pool_goal * 4)
        return Order(ids, [file_context(self._volume_id, file_id) for file_id in ids], self._round)

    def deliver(self, order: Order, made: list[tuple[bytes, bytes]]) -> None:
        """Put ordered keys into the pool, unless everything was dropped since the order."""
        if order.round != self._round:
            return
        for file_id, (plain, wrapped) in zip(order.file_ids, made, strict=True):
            key = DataKey(plain)
            keys = FileKeys(key)
            self._pool.append(_Pooled(key, FreshKey(file_id, keys, wrapped)))
            self._unprepared.append(keys)
        self._pool_born = self._clock()

    def prepare(self) -> bool:
        """Derive the sub-keys of one pool key ahead of its use; return whether there was one to do."""
        if not self._unprepared:
            return False
        self._unprepared.popleft().prepare()
        return True

    def open(self, file_id: bytes, wrapped: bytes) -> FileKeys:
        """See DataKeyProvider.

        Raises:
            KeyLease: if the watch stream is silent past its lease.
        """
        self._require_lease()
        now = self._clock()
        held = self._opened.get(file_id)
        if held is not None:
            if now - held.used <= CACHE_IDLE_SECONDS and now - held.born <= CACHE_AGE_SECONDS:
                held.used = now
                self._opened.move_to_end(file_id)
                return held.keys
            self._forget(file_id)
        key = DataKey(self._source.decrypt(wrapped, file_context(self._volume_id, file_id)))
        keys = FileKeys(key)
        self._remember(file_id, key, keys, now)
        return keys

    def drop(self) -> None:
        """Wipe every key: the KMS key, its policy or its grants changed, or the stream broke."""
        self._drop_pool()
        self._pool_goal = 1
        for file_id in list(self._opened):
            self._forget(file_id)

    def _require_lease(self) -> None:
        if not self._lease_holds():
            self.drop()
            raise KeyLease(
                "the key daemon is silent: data keys are unusable until it is back", hint="start kmsd"
            )

    def _remember(self, file_id: bytes, key: DataKey, keys: FileKeys, now: float) -> None:
        self._opened[file_id] = _Held(key, keys, now, now)
        if len(self._opened) > CACHE_ENTRIES:
            self._forget(next(iter(self._opened)))

    def _forget(self, file_id: bytes) -> None:
        self._opened.pop(file_id).key.wipe()

    def _drop_pool(self) -> None:
        for entry in self._pool:
            entry.key.wipe()
        self._pool.clear()
        self._unprepared.clear()
        self._round += 1
