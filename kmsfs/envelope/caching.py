"""Data keys of a volume's files: a pool made ahead, a bounded cache of opened ones, both dropped on revocation."""

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kmsfs.aead.nonces import Rng
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.provider import FreshKey, file_context
from kmsfs.errors import DaemonUnreachable, KeyLease, KmsfsError, Throttled
from kmsfs.quantity import CACHE_AGE_SECONDS, CACHE_ENTRIES, CACHE_IDLE_SECONDS
from kmsfs.secret import DataKey

POOL_KEYS = 128
POOL_SECONDS = 60.0
"""Unused pool keys are dropped after this long."""
AHEAD_SECONDS = 10.0
"""A key that was fetched before its file was opened is not used after this long: the key service is asked anew."""


class KeysUnderWay(Protocol):
    """Data keys that were asked for."""

    def ready(self) -> bool:
        """Whether `finish` would not wait."""
        ...

    def finish(self) -> list[bytes | None]:
        """Return the plain data keys in the order asked; None of those that were refused.

        Raises:
            KmsfsError: if nothing was answered.
        """
        ...

    def cancel(self) -> None:
        """Let the answer be lost."""
        ...


class KeySource(Protocol):
    """The key service, as far as the cache needs it. Errors are the operations' own."""

    def generate(self, contexts: list[dict[str, str]], key_id: str) -> list[tuple[bytes, bytes]]:
        """Return (plain, wrapped) for each context, under a KMS key; no id means the volume's own."""
        ...

    def decrypt(self, wrapped: bytes, context: dict[str, str]) -> bytes:
        """Return the plain data key."""
        ...

    def begin_decrypts(self, items: list[tuple[bytes, dict[str, str]]]) -> KeysUnderWay:
        """Ask for the plain data keys of wrapped ones with their encryption contexts, and return at once."""
        ...


class KeyGuard(Protocol):
    """Knows whether a KMS key that is not the volume's own may be used: its changes must be heard of first."""

    def require(self, key_id: str) -> None:
        """Let keys under this KMS key be made.

        Raises:
            KmsfsError: why they may not.
        """
        ...

    def require_for(self, wrapped: bytes) -> None:
        """Let a wrapped key be used, whichever KMS key it names.

        Raises:
            KmsfsError: why it may not.
        """
        ...


class NoGuard:
    """For who watches nothing: tools on a volume that is not mounted, whose keys live for one file each."""

    def require(self, key_id: str) -> None:
        """See KeyGuard."""

    def require_for(self, wrapped: bytes) -> None:
        """See KeyGuard."""


@dataclass(slots=True)
class _Held:
    """A key in memory: `key` is what is wiped, `keys` what is used."""

    key: DataKey
    keys: FileKeys
    born: float
    used: float
    ahead: bool = False
    """Fetched ahead, and not used so far."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """Keys that were asked for ahead: in which order, when, and the call."""

    file_ids: list[bytes]
    asked: float
    call: KeysUnderWay


@dataclass(frozen=True, slots=True)
class _Pooled:
    key: DataKey
    fresh: FreshKey


@dataclass(slots=True)
class _Pool:
    """Keys made ahead under one KMS key."""

    keys: deque[_Pooled] = field(default_factory=deque)
    born: float = 0.0
    goal: int = 1


@dataclass(frozen=True, slots=True)
class Order:
    """Keys to be made for a pool, and the round: after a revocation an older order is refused."""

    key_id: str
    file_ids: list[bytes]
    contexts: list[dict[str, str]]
    round: int


class CachingProvider:
    """A DataKeyProvider over a KeySource.

    A cached key is used for at most 300 s after its last use and 900 s in all, one that was fetched ahead for at most
    10 s before its first, and only while the lease holds:
    `lease_holds` says whether the watch stream was heard within ten seconds.
    """

    def __init__(
        self,
        volume_id: bytes,
        source: KeySource,
        clock: Callable[[], float],
        rng: Rng,
        lease_holds: Callable[[], bool],
        guard: KeyGuard,
    ) -> None:
        self._volume_id = volume_id
        self._source = source
        self._clock = clock
        self._rng = rng
        self._lease_holds = lease_holds
        self._guard = guard
        self._pools: dict[str, _Pool] = {}
        self._unprepared: deque[FileKeys] = deque(maxlen=2 * POOL_KEYS)
        self._round = 0
        self._opened: OrderedDict[bytes, _Held] = OrderedDict()
        self._coming: _Coming | None = None
        self.ahead_used = 0
        """How many keys that were fetched ahead have been used."""
        self.on_low: Callable[[str], None] | None = None
        """Called with the KMS key whose pool runs low: somebody then gets an `order` made and calls `deliver`."""

    def fresh(self, key_id: str = "") -> FreshKey:
        """See DataKeyProvider. A pool grows with demand up to 128 keys, so one file costs one key.

        Raises:
            KeyLease: if the watch stream is silent past its lease.
        """
        pool = self.stock(key_id)
        taken = pool.keys.popleft()
        self._remember(taken.fresh.file_id, taken.key, taken.fresh.keys, self._clock())
        if self.on_low is not None and pool.goal > 1 and len(pool.keys) == pool.goal // 4:
            self.on_low(key_id)
        return taken.fresh

    def stock(self, key_id: str) -> _Pool:
        """Have at least one data key ready under a KMS key, and so know that it can be used; return its pool.

        Raises:
            KeyLease: as `fresh`.
            KmsfsError: as GenerateDataKey.
        """
        self._require_lease()
        if key_id:
            self._guard.require(key_id)
        pool = self._pools.setdefault(key_id, _Pool())
        if self._clock() - pool.born > POOL_SECONDS:
            _wipe(pool)
            pool.goal = 1
        if not pool.keys:
            order = self.order(key_id)
            self.deliver(order, self._source.generate(order.contexts, key_id))
        return pool

    def order(self, key_id: str) -> Order:
        """Return what to ask the key service for next; a bigger pool each time."""
        pool = self._pools.setdefault(key_id, _Pool())
        ids = [self._rng(16) for _ in range(pool.goal)]
        pool.goal = min(POOL_KEYS, pool.goal * 4)
        contexts = [file_context(self._volume_id, file_id) for file_id in ids]
        return Order(key_id, ids, contexts, self._round)

    def deliver(self, order: Order, made: list[tuple[bytes, bytes]]) -> None:
        """Put ordered keys into their pool, unless everything was dropped since the order."""
        if order.round != self._round:
            return
        pool = self._pools[order.key_id]
        for file_id, (plain, wrapped) in zip(order.file_ids, made, strict=True):
            key = DataKey(plain)
            keys = FileKeys(key)
            pool.keys.append(_Pooled(key, FreshKey(file_id, keys, wrapped)))
            self._unprepared.append(keys)
        pool.born = self._clock()

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
        self._guard.require_for(wrapped)
        now = self._clock()
        held = self._held(file_id, now)
        if held is not None:
            held.used = now
            if held.ahead:
                held.ahead = False
                self.ahead_used += 1
            self._opened.move_to_end(file_id)
            return held.keys
        key = DataKey(self._source.decrypt(wrapped, file_context(self._volume_id, file_id)))
        keys = FileKeys(key)
        self._remember(file_id, key, keys, now)
        return keys

    def holds(self, file_id: bytes) -> bool:
        """Whether `open` would have the key without asking; waits for it if it is under way."""
        if self._coming is not None and file_id in self._coming.file_ids:
            self.take_coming(wait=True)
        return self._held(file_id, self._clock()) is not None

    def fetch(self, wanted: list[tuple[bytes, bytes]]) -> None:
        """Get keys by (file id, wrapped key) in one call, the first for a file that is being opened, the others ahead of that.

        All are wrapped under the same KMS key. What is refused is left out, and all are if the connection turns out dead or the call is throttled:
        `open` asks again and says why.

        Raises:
            KeyLease, KmsfsError: as `open`, where nothing could be asked.
        """
        with contextlib.suppress(DaemonUnreachable, Throttled):
            self._take(self._ask(wanted))
        first = self._opened.get(wanted[0][0])
        if first is not None:
            first.ahead = False

    def fetch_soon(self, wanted: list[tuple[bytes, bytes]]) -> None:
        """As `fetch`, all of them ahead, without waiting: `take_coming` or the need for one of them brings them.

        Raises:
            KeyLease, KmsfsError: if they cannot be asked for.
        """
        self.take_coming(wait=True)
        self._coming = self._ask(wanted)

    @property
    def awaits(self) -> bool:
        """Whether keys are under way."""
        return self._coming is not None

    def take_coming(self, *, wait: bool) -> bool:
        """Take the keys that are under way, if they are there or to be waited for; return whether there were any.

        If nothing was answered, `open` asks again and says why.
        """
        coming = self._coming
        if coming is None or not (wait or coming.call.ready()):
            return False
        self._coming = None
        with contextlib.suppress(KmsfsError):
            self._take(coming)
        return True

    def _ask(self, wanted: list[tuple[bytes, bytes]]) -> _Coming:
        self._require_lease()
        self._guard.require_for(wanted[0][1])
        now = self._clock()
        items = [(wrapped, file_context(self._volume_id, file_id)) for file_id, wrapped in wanted]
        return _Coming([file_id for file_id, _ in wanted], now, self._source.begin_decrypts(items))

    def _take(self, asked: _Coming) -> None:
        for file_id, plain in zip(asked.file_ids, asked.call.finish(), strict=True):
            if plain is None or file_id in self._opened:
                continue
            key = DataKey(plain)
            self._remember(file_id, key, FileKeys(key), asked.asked)
            self._opened[file_id].ahead = True

    def _held(self, file_id: bytes, now: float) -> _Held | None:
        """Return a key that may still be used; one that may not is wiped."""
        held = self._opened.get(file_id)
        if held is None:
            return None
        idle = AHEAD_SECONDS if held.ahead else CACHE_IDLE_SECONDS
        if now - held.used <= idle and now - held.born <= CACHE_AGE_SECONDS:
            return held
        self._forget(file_id)
        return None

    def drop(self) -> None:
        """Wipe every key: the KMS key, its policy or its grants changed, or the stream broke."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.call.cancel()
        for pool in self._pools.values():
            _wipe(pool)
        self._pools.clear()
        self._unprepared.clear()
        self._round += 1
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


def _wipe(pool: _Pool) -> None:
    for entry in pool.keys:
        entry.key.wipe()
    pool.keys.clear()
