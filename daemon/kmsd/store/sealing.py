"""Seal rows under the domain keyring, and keep the accumulator that notices removed or reverted rows."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import Label, derive, hmac_sha256
from kmsfs.aead.nonces import Rng, UsageCounter
from kmsfs.errors import AuthenticationFailed, BadFrame, CorruptStore, LimitExceeded
from kmsfs.formats.packing import pack, unpack_own
from kmsfs.quantity import STATE_SEALS_LIMIT
from kmsfs.secret import KeyMaterial

_PREFIX = struct.Struct("<BI")
_ROW_VERSION = 1
_ZERO_ID = bytes(16)
NEW_KEY_HINT = "stop kmsd, give the state a new key with `kmsd renew-state-key --state FOLDER`, and start it"


class RowSealer:
    """Seals and opens rows. Index and accumulator keys come from the oldest domain key, so they never change."""

    def __init__(self, domain_keys: dict[int, KeyMaterial], rng: Rng) -> None:
        oldest = domain_keys[min(domain_keys)].reveal()
        self._newest = max(domain_keys)
        self._state = {
            number: GcmKey(derive(key.reveal(), Label.DOMAIN_STATE)) for number, key in domain_keys.items()
        }
        self._index = derive(oldest, Label.DOMAIN_INDEX)
        self._accumulator = derive(oldest, Label.DOMAIN_ACCUMULATOR)
        self._rng = rng
        self.usage = UsageCounter(STATE_SEALS_LIMIT)

    def row_id(self, table: int, natural_key: str) -> bytes:
        """Return the 16-byte id of a row."""
        return hmac_sha256(self._index, bytes([table]) + natural_key.encode())[:16]

    def parent_id(self, table: int, natural_key: str) -> bytes:
        """Return the 16-byte parent mark of the rows below a natural key; zeros for none."""
        if not natural_key:
            return _ZERO_ID
        return hmac_sha256(self._index, bytes([table, 0]) + natural_key.encode())[:16]

    def seal(self, table: int, row_id: bytes, parent: bytes, version: int, value: dict[str, Any]) -> bytes:
        """Return the sealed blob of a row.

        Raises:
            LimitExceeded: if the domain key has reached its bound (security.md section 14).
        """
        try:
            self.usage.spend()
        except LimitExceeded as error:
            raise LimitExceeded("the key that seals the state has reached its usage limit", hint=NEW_KEY_HINT) from error
        sealed = self._state[self._newest].seal(self._rng, pack(value), _aad(table, row_id, parent, version))
        return _PREFIX.pack(_ROW_VERSION, self._newest) + sealed

    def take_count(self, head: bytes, seals: int) -> None:
        """Go on counting from what a head record says, if the present domain key sealed it; a newer one has sealed nothing yet."""
        _, number = _PREFIX.unpack_from(head)
        self.usage.used = seals if number == self._newest else 0

    @property
    def nearly_spent(self) -> bool:
        """Whether the domain key has a tenth of its bound left, or less."""
        return self.usage.used >= self.usage.limit * 9 // 10

    def open(self, table: int, row_id: bytes, parent: bytes, version: int, blob: bytes) -> dict[str, Any]:
        """Return the value of a sealed row.

        Raises:
            CorruptStore: if the row was changed, moved or belongs to another keyring.
        """
        try:
            row_version, number = _PREFIX.unpack_from(blob)
            if row_version != _ROW_VERSION:
                raise CorruptStore(f"a state row has unknown version {row_version}")
            plain = self._state[number].open(blob[_PREFIX.size :], _aad(table, row_id, parent, version))
            value = unpack_own(plain)
        except (struct.error, KeyError, AuthenticationFailed, BadFrame) as error:
            raise CorruptStore(
                "a row of the key daemon's state is damaged or was changed",
                hint="restore a backup of the state",
            ) from error
        if type(value) is not dict:
            raise CorruptStore("a state row does not hold a map")
        return value

    def mark(self, table: int, row_id: bytes, version: int, blob: bytes) -> int:
        """Return the row's share of the accumulator."""
        return self.marks(((table, row_id, version, blob),))

    def marks(self, rows: Iterable[Sequence[Any]]) -> int:
        """Return the share of many rows: (table, row id, version, blob) each."""
        key, shares = self._accumulator, 0
        for table, row_id, version, blob in rows:
            message = b"%c%b%b%b" % (table, row_id, version.to_bytes(8, "little"), blob[-16:])
            shares ^= int.from_bytes(hmac_sha256(key, message), "big")
        return shares


def _aad(table: int, row_id: bytes, parent: bytes, version: int) -> bytes:
    return b"kmsfs/row" + bytes([table]) + row_id + parent + version.to_bytes(8, "little")
