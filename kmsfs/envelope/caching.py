"""Data keys of a volume's files: a pool made ahead, a bounded cache of opened ones, both dropped on revocation."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kmsfs.aead.nonces import Rng
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
class _Opened:
    key: DataKey
    born: float
    used: float


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
        self._pool: list[FreshKey] = []
        self._pool_born = 0.0
        self._pool_goal = 1
        self._opened: OrderedDict[bytes, _Opened] = OrderedDict()

    def fresh(self) -> FreshKey:
        """See DataKeyProvider. The pool doubles with demand up to 128 keys, so one file costs one key.

        Raises:
            KeyLease: if the watch stream is silent past its lease.
        """
        self._require_lease()
        now = self._clock()
        if now - self._pool_born > POOL_SECONDS:
            self._drop_pool()
            self._pool_goal = 1
        if not self._pool:
            self._fill(now)
        taken = self._pool.pop()
        self._remember(taken.file_id, taken.key, now)
        return taken

    def open(self, file_id: bytes, wrapped: bytes) -> DataKey:
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
                return held.key
            self._forget(file_id)
        key = DataKey(self._source.decrypt(wrapped, file_context(self._volume_id, file_id)))
        self._remember(file_id, key, now)
        return key

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

    def _fill(self, now: float) -> None:
        ids = [self._rng(16) for _ in range(self._pool_goal)]
        made = self._source.generate([file_context(self._volume_id, file_id) for file_id in ids])
        self._pool = [FreshKey(i, DataKey(plain), blob) for i, (plain, blob) in zip(ids, made, strict=True)]
        self._pool_born = now
        self._pool_goal = min(POOL_KEYS, self._pool_goal * 4)

    def _remember(self, file_id: bytes, key: DataKey, now: float) -> None:
        self._opened[file_id] = _Opened(key, now, now)
        if len(self._opened) > CACHE_ENTRIES:
            self._forget(next(iter(self._opened)))

    def _forget(self, file_id: bytes) -> None:
        self._opened.pop(file_id).key.wipe()

    def _drop_pool(self) -> None:
        for entry in self._pool:
            entry.key.wipe()
        self._pool = []
