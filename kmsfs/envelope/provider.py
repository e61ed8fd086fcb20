"""Where data keys come from: the seam between the file format and the key service."""

from dataclasses import dataclass
from typing import Protocol

from kmsfs.envelope.filekeys import FileKeys


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A new file's identity and its data key, usable and wrapped. The context named exactly this file id."""

    file_id: bytes
    keys: FileKeys
    wrapped: bytes


class DataKeyProvider(Protocol):
    """Makes and opens the data keys of one volume's files."""

    def fresh(self, key_id: str = "") -> FreshKey:
        """Return a data key for a new file, under a KMS key; no id means the volume's own.

        Raises:
            KmsfsError: as GenerateDataKey.
        """
        ...

    def open(self, file_id: bytes, wrapped: bytes) -> FileKeys:
        """Return the usable data key of an existing file. Secret.

        Raises:
            KmsfsError: as Decrypt.
        """
        ...


def file_context(volume_id: bytes, file_id: bytes) -> dict[str, str]:
    """The encryption context of a file's data key."""
    return {"kmsfs:volume": volume_id.hex(), "kmsfs:file": file_id.hex()}


def volume_context(volume_id: bytes) -> dict[str, str]:
    """The encryption context of a volume's own key."""
    return {"kmsfs:volume": volume_id.hex(), "kmsfs:purpose": "volume-root"}
