"""Sub-keys of one file's data key: the map, the commitment, and one chunk key per epoch."""

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import Label, derive, equal
from kmsfs.errors import CorruptFile, IntegrityReason
from kmsfs.quantity import CHUNK_WRITES_PER_EPOCH_LOG2
from kmsfs.secret import DataKey


class FileKeys:
    """Derived lazily per epoch; held while a file is open and its key's lease holds."""

    __slots__ = ("_chunks", "_root", "map")

    def __init__(self, key: DataKey) -> None:
        self._root = key.reveal()
        self.map = GcmKey(derive(self._root, Label.FILE_MAP))
        self._chunks: dict[int, GcmKey] = {}

    def commitment(self) -> bytes:
        """Return the 32 bytes that name this data key and no other."""
        return derive(self._root, Label.FILE_COMMIT)

    def check_commitment(self, commitment: bytes) -> None:
        """Check a header's commitment.

        Raises:
            CorruptFile: if the header was made under another data key.
        """
        if not equal(self.commitment(), commitment):
            raise CorruptFile("file header commits to another data key", IntegrityReason.COMMITMENT)

    def chunk(self, epoch: int) -> GcmKey:
        """Return the chunk key of an epoch."""
        key = self._chunks.get(epoch)
        if key is None:
            key = self._chunks[epoch] = GcmKey(
                derive(self._root, Label.FILE_CHUNK, epoch.to_bytes(4, "little"))
            )
        return key


def epoch_of(chunk_writes: int) -> int:
    """Return the epoch of the next chunk write: 2^24 writes each."""
    return chunk_writes >> CHUNK_WRITES_PER_EPOCH_LOG2
