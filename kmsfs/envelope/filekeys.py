"""Sub-keys of one file's data key: the map, the commitment, and one chunk key per epoch."""

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import Label, derive, equal
from kmsfs.errors import CorruptFile, IntegrityReason
from kmsfs.quantity import CHUNK_WRITES_PER_EPOCH_LOG2
from kmsfs.secret import DataKey


class FileKeys:
    """Derived when first needed; held while a file is open and its key's lease holds."""

    __slots__ = ("_chunks", "_commitment", "_map", "_root")

    def __init__(self, key: DataKey) -> None:
        self._root = key.reveal()
        self._map: GcmKey | None = None
        self._commitment = b""
        self._chunks: dict[int, GcmKey] = {}

    @property
    def map(self) -> GcmKey:
        """The key of the file's map."""
        if self._map is None:
            self._map = GcmKey(derive(self._root, Label.FILE_MAP))
        return self._map

    def prepare(self) -> None:
        """Derive now what a new file needs at once."""
        self.commitment()
        _ = self.map

    def commitment(self) -> bytes:
        """Return the 32 bytes that name this data key and no other."""
        if not self._commitment:
            self._commitment = derive(self._root, Label.FILE_COMMIT)
        return self._commitment

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
