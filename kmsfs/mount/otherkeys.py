"""The KMS keys of a volume's directories: a data key under one of them is used only while its changes are heard of."""

from collections.abc import Callable
from typing import Any

from kmsfs.client.session import ClientSession
from kmsfs.client.watch import KeyWatcher
from kmsfs.errors import KeyLease
from kmsfs.formats.blob import parse_blob
from kmsfs.ids import owner_of

_PATIENCE_SECONDS = 5.0


class OtherKeys:
    """A KeyGuard: watches each KMS key that is not the volume's own from its first use on. The caller holds the vfs lock."""

    def __init__(self, session: ClientSession, own_key_id: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._session = session
        self._own = owner_of(own_key_id)
        self._on_event = on_event
        self._watchers: dict[bytes, KeyWatcher] = {}

    def require(self, key_id: str) -> None:
        """See KeyGuard.

        Raises:
            KeyLease: if nothing was heard of its changes for too long.
            KmsfsError: why it cannot be watched: it is gone, or neither kms:DescribeKey nor kms:Decrypt is allowed.
        """
        self._require(owner_of(key_id), key_id)

    def require_for(self, wrapped: bytes) -> None:
        """See KeyGuard.

        Raises:
            InvalidCiphertext: if it is no ciphertext blob.
            KeyLease, KmsfsError: as `require`.
        """
        blob = parse_blob(wrapped)
        if blob.owner != self._own:
            self._require(blob.owner, blob.key_id)

    def close(self) -> None:
        """Stop watching."""
        for watcher in self._watchers.values():
            watcher.close()
        self._watchers.clear()

    def _require(self, owner: bytes, key_id: str) -> None:
        if owner == self._own:
            return
        watcher = self._watchers.get(owner)
        if watcher is None:
            watcher = KeyWatcher(self._session, [key_id], self._on_event)
            watcher.start(_PATIENCE_SECONDS, patient=False)
            self._watchers[owner] = watcher
        if not watcher.alive:
            raise KeyLease(
                "the key daemon is silent: data keys are unusable until it is back", hint="start kmsd"
            )
