"""Handlers of volume sessions: strictly increasing numbers, an exclusive writer lease, the unclean list.

This state lives with the daemon, out of reach of whoever can write the cipher directory (security.md, 6.6).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kmsd.dispatch.call import Call
from kmsd.store.database import Changes, SealedStore
from kmsd.store.schema import Table
from kmsfs.aead.nonces import Rng
from kmsfs.api.keyspecs import ENCRYPT, SYMMETRIC, require_algorithm
from kmsfs.api.shapes import admin as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import IncorrectKey, LimitExceeded, VolumeBusy
from kmsfs.quantity import RECONNECT_SECONDS, STORE_SECONDS, TAKEOVER_SECONDS

_MARK_BYTES = 32
_SESSIONS_PASSED = 1 << 20
_UNKNOWN_SESSIONS = 256
_DIRECTORIES_MAX = 1024
_DIRECTORY_KEYS_MAX = 32
"""A mount watches each of them."""


@dataclass(slots=True)
class Volume:
    """A volume's sessions; `holder` is the connection with the lease, `released` when it was lost."""

    volume_id: str
    key_id: str
    session: int = 0
    unclean: list[int] = field(default_factory=list)
    boot: str = ""
    holder: int | None = None
    released: float = 0.0
    next_key: str | None = None
    """The KMS key that the volume moves to: the first session under it ends the move."""
    freshness_head: bytes = b""
    """Digest of the freshness records that the last clean session left, or a mark that no records have."""
    freshness_may_begin: bool = True
    directory_keys: dict[str, str] = field(default_factory=dict)
    """The KMS keys of directories that have one of their own, by directory id."""
    host: str = ""
    """The host whose daemon gave the lease, where several share a database; empty when it ended."""
    account: str = ""
    """Whose volume it is, where that is not the managing account: each account that received a snapshot has its own."""

    @property
    def place(self) -> str:
        """Its natural key."""
        return place_of(self.account, self.volume_id)

    @property
    def keys(self) -> set[str | None]:
        """The ids of all KMS keys that it needs."""
        return {self.key_id, self.next_key, *self.directory_keys.values()}

    def row(self) -> dict[str, Any]:
        """The sealed row of this volume."""
        return {
            "id": self.volume_id,
            "key": self.key_id,
            "session": self.session,
            "unclean": self.unclean,
            "boot": self.boot,
            "next_key": self.next_key,
            "freshness_head": self.freshness_head,
            "freshness_may_begin": self.freshness_may_begin,
            "directory_keys": self.directory_keys,
            "account": self.account,
            **({"host": self.host} if self.host else {}),
        }


def place_of(account: str, volume_id: str) -> str:
    """Return the natural key of a volume; `account` is empty for the managing one, as it was before there were others."""
    return f"{account}/{volume_id}" if account else volume_id


class VolumeService:
    """OpenVolumeSession, CloseVolumeSession, HealVolume, MoveVolume, AcceptVolumeRestore, SetDirectoryKey."""

    def __init__(self, store: SealedStore, management: str, boot: str, now: float, rng: Rng) -> None:
        self._store = store
        self._management = management
        self._rng = rng
        self._boot = boot
        self.on_taken_over: Callable[[int], None] = lambda _connection: None
        """Told of the connection whose lease another host has now."""
        self._volumes: dict[str, Volume] = {}
        for row in store.scan(Table.VOLUME):
            volume = _volume_of(row)
            if volume.host in ("", store.host) and volume.boot == boot and volume.session in volume.unclean:
                # Its mount may still live: the daemon restarted, the machine did not. Let it come back first.
                volume.released = now
            self._volumes[volume.place] = volume

    def under(self, key_id: str) -> list[str]:
        """Return the ids of the volumes that need a KMS key: theirs, the one they move to, or one of their directories'."""
        return sorted(v.volume_id for v in self._volumes.values() if key_id in v.keys)

    def open_session(self, call: Call) -> shapes.OpenVolumeSessionResponse:
        """OpenVolumeSession."""
        request: shapes.OpenVolumeSessionRequest = call.request
        volume = self._volume(call, request.volume_id)
        resumed = (
            request.resume is not None
            and request.resume == volume.session
            and request.resume in volume.unclean
        )
        if request.read_only:
            return self._opened(volume, volume.unclean)
        self._require_free_elsewhere(volume)
        leased = volume.holder is not None or call.now < volume.released + RECONNECT_SECONDS
        if (leased and not resumed) or (volume.holder is not None and volume.holder != call.connection_id):
            raise VolumeBusy(
                "this volume is mounted for writing elsewhere",
                hint="unmount it there; after a crash its lease ends by itself within seconds",
            )
        if request.resume is not None and not resumed:
            raise VolumeBusy("this volume was taken over by another session", hint="unmount and mount again")
        if not resumed:
            session = volume.session + 1
            self._save(
                replace(volume, session=session, unclean=[*volume.unclean, session], boot=self._boot, host=self._store.host)
            )
            volume.session, volume.host = session, self._store.host
            volume.unclean.append(session)
        elif volume.host != self._store.host:
            # Its lease had run out, and the other hosts were told so; nobody took the volume meanwhile.
            self._save(replace(volume, host=self._store.host))
            volume.host = self._store.host
        volume.holder = call.connection_id
        others = [number for number in volume.unclean if number != volume.session]
        return self._opened(volume, others)

    def close_session(self, call: Call) -> Empty:
        """CloseVolumeSession."""
        volume = self._volume(call, call.request.volume_id)
        self._require_session(volume, call)
        ended = replace(volume, unclean=_without(volume, [call.request.session]), boot=self._boot, host="")
        if call.request.freshness_head is not None:
            ended.freshness_head, ended.freshness_may_begin = call.request.freshness_head, False
        self._save(ended)
        self._volumes[volume.place] = volume = ended
        volume.holder = None
        volume.released = 0.0
        return Empty()

    def heal(self, call: Call) -> Empty:
        """HealVolume."""
        volume = self._volume(call, call.request.volume_id)
        self._require_session(volume, call)
        self._drop(volume, [number for number in call.request.healed_sessions if number != volume.session])
        return Empty()

    def move(self, call: Call) -> Empty:
        """MoveVolume: both keys were asked; the old one still opens the volume until the new one has."""
        volume = self._volume(call, call.request.volume_id)
        self._require_session(volume, call)
        target = call.the_target.key_id
        self._save(replace(volume, next_key=target))
        volume.next_key = target
        return Empty()

    def accept_restore(self, call: Call) -> Empty:
        """AcceptVolumeRestore: the head becomes a mark that no records have, so that new ones must begin.

        This state itself may be a restored one, and sessions that it does not know of may have written headers: the
        next number is past all of theirs, and the first of them count as unclean, so that what they wrote is verified.
        """
        volume = self._volume(call, call.request.volume_id)
        self._require_free_elsewhere(volume)
        if volume.holder is not None:
            raise VolumeBusy("this volume is mounted", hint="unmount it first")
        mark = self._rng(_MARK_BYTES)
        unknown = range(volume.session + 1, volume.session + 1 + _UNKNOWN_SESSIONS)
        accepted = replace(
            volume, freshness_head=mark, freshness_may_begin=True, session=volume.session + _SESSIONS_PASSED,
            unclean=[*volume.unclean, *unknown],
        )  # fmt: skip
        self._save(accepted)
        self._volumes[volume.place] = accepted
        return Empty()

    def set_directory_key(self, call: Call) -> shapes.SetDirectoryKeyResponse:
        """SetDirectoryKey: kept here, where nobody who can write the cipher directory can put an older answer back."""
        request: shapes.SetDirectoryKeyRequest = call.request
        volume = self._volume(call, request.volume_id)
        self._require_session(volume, call)
        keys = {name: key for name, key in volume.directory_keys.items() if name != request.directory_id}
        if request.target_key_id is not None:
            require_algorithm(call.the_target.spec, ENCRYPT, SYMMETRIC)
            keys[request.directory_id] = call.the_target.key_id
        if len(keys) > _DIRECTORIES_MAX or len(set(keys.values())) > _DIRECTORY_KEYS_MAX:
            raise LimitExceeded(
                f"A volume has at most {_DIRECTORIES_MAX} directories with a KMS key of their own, and {_DIRECTORY_KEYS_MAX} such keys."
            )
        self._save(replace(volume, directory_keys=keys))
        volume.directory_keys = keys
        return shapes.SetDirectoryKeyResponse(target_key_id=keys.get(request.directory_id))

    def connection_lost(self, connection_id: int, now: float) -> None:
        """Let the lease of a lost connection run out."""
        for volume in self._volumes.values():
            if volume.holder == connection_id:
                volume.holder = None
                volume.released = now

    def end_leases(self, now: float) -> None:
        """Let other hosts know of leases that have run out here."""
        if not self._store.host:
            return
        for volume in self._volumes.values():
            if volume.host == self._store.host and volume.holder is None and now >= volume.released + RECONNECT_SECONDS:
                self._save(replace(volume, host=""))
                volume.host = ""

    def take(self, changes: Changes) -> None:
        """Let what other daemons wrote be seen here; a lease of ours ends where another host has taken the volume over."""
        for place, row in changes.get(Table.VOLUME, {}).items():
            if row is None:
                continue
            volume, present = _volume_of(row), self._volumes.get(place)
            if present is not None and present.session == volume.session:
                volume.holder, volume.released = present.holder, present.released
            elif present is not None and present.holder is not None:
                self.on_taken_over(present.holder)
            self._volumes[place] = volume

    def _require_free_elsewhere(self, volume: Volume) -> None:
        """Refuse a lease that a mount on another host may still have.

        Raises:
            VolumeBusy: if it may.
        """
        if volume.host in ("", self._store.host):
            return
        silent = self._store.seconds_since(volume.host)
        if silent is None or silent < TAKEOVER_SECONDS:
            raise VolumeBusy(
                f"this volume is mounted for writing on {volume.host}",
                hint=f"unmount it there; if that host is gone, its lease ends {TAKEOVER_SECONDS:.0f} s after its daemon was last heard of",
            )

    def _volume(self, call: Call, volume_id: str) -> Volume:
        account = call.caller.account if call.caller.account != self._management else ""
        place = place_of(account, volume_id)
        volume = self._volumes.get(place)
        if volume is None:
            # A volume that is known, and of which nothing can be read, must not begin anew: older states of it could be put back.
            self._store.require_whole(Table.VOLUME, place, f"volume {volume_id}")
            volume = self._volumes[place] = Volume(volume_id, call.the_key.key_id, account=account)
        if volume.next_key is not None and volume.next_key == call.the_key.key_id:
            self._save(replace(volume, key_id=volume.next_key, next_key=None))
            volume.key_id, volume.next_key = volume.next_key, None
        if volume.key_id != call.the_key.key_id:
            raise IncorrectKey("this volume belongs to another KMS key")
        return volume

    def _opened(self, volume: Volume, unclean: list[int]) -> shapes.OpenVolumeSessionResponse:
        return shapes.OpenVolumeSessionResponse(
            session=volume.session,
            unclean_sessions=unclean,
            freshness_head=volume.freshness_head,
            freshness_may_begin=volume.freshness_may_begin,
            directory_keys=volume.directory_keys,
            store_seconds=STORE_SECONDS if self._store.host else None,
        )

    def _require_session(self, volume: Volume, call: Call) -> None:
        if volume.session != call.request.session or volume.holder != call.connection_id:
            raise VolumeBusy("this session does not hold the volume's lease")

    def _drop(self, volume: Volume, sessions: list[int]) -> None:
        left = _without(volume, sessions)
        self._save(replace(volume, unclean=left, boot=self._boot))
        volume.unclean = left

    def _save(self, volume: Volume) -> None:
        with self._store.transaction() as work:
            work.put(Table.VOLUME, volume.place, volume.row())


def _volume_of(row: dict[str, Any]) -> Volume:
    return Volume(
        row["id"], row["key"], row["session"], list(row["unclean"]), row["boot"], next_key=row.get("next_key"),
        freshness_head=row.get("freshness_head", b""), freshness_may_begin=row.get("freshness_may_begin", True),
        directory_keys=dict(row.get("directory_keys", {})), host=row.get("host", ""), account=row.get("account", ""),
    )  # fmt: skip


def _without(volume: Volume, sessions: list[int]) -> list[int]:
    return [number for number in volume.unclean if number not in sessions]
