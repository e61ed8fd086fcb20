"""A backing file that counts its calls: what tests/cost pins."""

from collections import Counter

from kmsfs.envelope.blockfile import BlockFile


class TrackingFile:
    """Wraps a BlockFile; `calls` counts by method, `bytes_written` adds up."""

    def __init__(self, inner: BlockFile) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        self.bytes_written = 0

    def read(self, length: int, offset: int) -> bytes:
        """See BlockFile."""
        self.calls["read"] += 1
        return self.inner.read(length, offset)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """See BlockFile."""
        self.calls["read"] += 1
        return self.inner.read_into(buffer, offset)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """See BlockFile."""
        self.calls["write"] += 1
        self.bytes_written += len(data)
        self.inner.write(data, offset)

    def datasync(self) -> None:
        """See BlockFile."""
        self.calls["barrier"] += 1
        self.inner.datasync()

    def sync(self) -> None:
        """See BlockFile."""
        self.calls["barrier"] += 1
        self.inner.sync()

    def size(self) -> int:
        """See BlockFile."""
        return self.inner.size()

    def truncate(self, size: int) -> None:
        """See BlockFile."""
        self.calls["truncate"] += 1
        self.inner.truncate(size)

    def punch(self, offset: int, length: int) -> None:
        """See BlockFile."""
        self.calls["punch"] += 1
        self.inner.punch(offset, length)

    def close(self) -> None:
        """See BlockFile."""
        self.inner.close()
