"""What the file format needs of the backing store: positioned reads and writes, sizes and barriers."""

from typing import Protocol


class BlockFile(Protocol):
    """One open backing file. Every method raises StorageError where the store refuses."""

    def read(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes; fewer at the end of the file."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` and return how many bytes there were."""
        ...

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data`."""
        ...

    def datasync(self) -> None:
        """Make content and size durable. After an error the file must be reopened: pages may be lost."""
        ...

    def sync(self) -> None:
        """As `datasync`, with the file's own metadata and, on journaled stores, its directory entry."""
        ...

    def size(self) -> int:
        """Return the file's length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Set the file's length."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Give the range's space back; it reads as zeros. Best effort: a store that cannot does nothing."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...
