"""Loaded key pairs of KMS keys."""

from kmsd.keys.registry import KmsKey
from kmsfs.aead.asymmetric import KeyPair

_PAIRS_HELD = 1024


class PairStore:
    """Loaded key pairs of KMS keys: loading costs more than most uses."""

    def __init__(self) -> None:
        self._held: dict[str, KeyPair] = {}

    def of(self, key: KmsKey) -> KeyPair:
        """Return a key's loaded pair."""
        pair = self._held.get(key.key_id)
        if pair is None:
            if len(self._held) >= _PAIRS_HELD:
                self._held.clear()
            pair = self._held[key.key_id] = KeyPair(key.spec, key.current_material.reveal())
        return pair

    def forget(self, key: KmsKey, event: str) -> None:
        """Drop what is loaded of a key that is gone."""
        if event in ("deleted", "disabled"):
            self._held.pop(key.key_id, None)
