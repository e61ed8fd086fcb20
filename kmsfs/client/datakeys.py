"""A data-key cache for applications: fewer calls, bounded by age, messages and bytes, dropped when a key changes."""

import threading
from dataclasses import dataclass
from typing import Any

from kmsfs.client.session import ClientSession
from kmsfs.client.watch import KeyWatcher
from kmsfs.clock import passed
from kmsfs.errors import ShapeError
from kmsfs.formats.context import canonical
from kmsfs.secret import DataKey


@dataclass(slots=True)
class CachedKey:
    """A data key in use and what it may still do."""

    key: DataKey
    wrapped: bytes
    born: float
    messages: int = 0
    plain_bytes: int = 0


class DataKeyCache:
    """Hands out data keys per encryption context, as the Encryption SDK's caching materials manager does.

    Args:
        session: how to reach the daemon.
        key_id: the KMS key.
        max_age_seconds: no key is used longer.
        max_messages: nor for more messages.
        max_bytes: nor for more plaintext.
    """

    def __init__(
        self,
        session: ClientSession,
        key_id: str,
        *,
        max_age_seconds: float = 300.0,
        max_messages: int = 1000,
        max_bytes: int = 1 << 30,
    ) -> None:
        if max_age_seconds <= 0 or max_messages < 1 or max_bytes < 1:
            raise ShapeError("cache limits are positive")
        self._session = session
        self._key_id = key_id
        self._limits = (max_age_seconds, max_messages, max_bytes)
        self._lock = threading.Lock()
        self._for_seal: dict[bytes, CachedKey] = {}
        self._for_open: dict[bytes, CachedKey] = {}
        self._watcher = KeyWatcher(session, [key_id], self._on_event)
        self._watcher.start()

    def for_sealing(self, plain_bytes: int, context: dict[str, str] | None = None) -> tuple[DataKey, bytes]:
        """Return a data key to encrypt `plain_bytes` with, and its wrapped form. Secret.

        Raises:
            KmsfsError: as GenerateDataKey.
        """
        context = context or {}
        with self._lock:
            self._drop_if_silent()
            place = canonical(context)
            entry = self._for_seal.get(place)
            if entry is None or self._spent(entry, plain_bytes):
                request: dict[str, Any] = {
                    "KeyId": self._key_id, "KeySpec": "AES_256", "EncryptionContext": context
                }  # fmt: skip
                answer = self._session.call("GenerateDataKey", request)
                entry = CachedKey(DataKey(answer["Plaintext"]), answer["CiphertextBlob"], passed())
                self._for_seal[place] = entry
            entry.messages += 1
            entry.plain_bytes += plain_bytes
            return entry.key, entry.wrapped

    def for_opening(self, wrapped: bytes, context: dict[str, str] | None = None) -> DataKey:
        """Return the data key of a wrapped one. Secret.

        Raises:
            KmsfsError: as Decrypt.
        """
        context = context or {}
        with self._lock:
            self._drop_if_silent()
            place = canonical(context) + wrapped
            entry = self._for_open.get(place)
            if entry is None or passed() - entry.born > self._limits[0]:
                request = {"CiphertextBlob": wrapped, "EncryptionContext": context}
                answer = self._session.call("Decrypt", request)
                entry = CachedKey(DataKey(answer["Plaintext"]), wrapped, passed())
                self._for_open[place] = entry
            return entry.key

    def clear(self) -> None:
        """Wipe and forget every key."""
        with self._lock:
            self._clear()

    def close(self) -> None:
        """Stop watching and wipe."""
        self._watcher.close()
        self.clear()

    def _spent(self, entry: CachedKey, more: int) -> bool:
        age, messages, limit = self._limits
        old = passed() - entry.born > age
        return old or entry.messages >= messages or entry.plain_bytes + more > limit

    def _drop_if_silent(self) -> None:
        if not self._watcher.alive:
            self._clear()

    def _on_event(self, _event: dict[str, Any]) -> None:
        self.clear()

    def _clear(self) -> None:
        for entry in (*self._for_seal.values(), *self._for_open.values()):
            entry.key.wipe()
        self._for_seal.clear()
        self._for_open.clear()
