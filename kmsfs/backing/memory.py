"""A backing file in memory: for tests and for counting what the format asks of a store."""


class MemoryFile:
    """A BlockFile over a bytearray; holes are zeros."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)

    def read(self, length: int, offset: int) -> bytes:
        """See BlockFile."""
        return bytes(self.content[offset : offset + length])

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """See BlockFile."""
        piece = self.content[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """See BlockFile."""
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def datasync(self) -> None:
        """See BlockFile."""

    def sync(self) -> None:
        """See BlockFile."""

    def size(self) -> int:
        """See BlockFile."""
        return len(self.content)

    def truncate(self, size: int) -> None:
        """See BlockFile."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def punch(self, offset: int, length: int) -> None:
        """See BlockFile."""
        end = min(offset + length, len(self.content))
        if offset < end:
            self.content[offset:end] = bytes(end - offset)

    def close(self) -> None:
        """See BlockFile."""
