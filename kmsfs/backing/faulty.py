"""A backing file whose k-th call fails: fault injection by wrapping."""

import errno

from kmsfs.backing.tracking import TrackingFile
from kmsfs.envelope.blockfile import BlockFile
from kmsfs.errors import StorageError


class FaultyFile(TrackingFile):
    """Raises StorageError on one chosen write or barrier; a failed write may leave half of its bytes."""

    def __init__(
        self, inner: BlockFile, *, fail_write: int = -1, fail_barrier: int = -1, code: int = errno.ENOSPC
    ) -> None:
        super().__init__(inner)
        self.fail_write = fail_write
        self.fail_barrier = fail_barrier
        self.code = code

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """See BlockFile."""
        if self.calls["write"] == self.fail_write:
            self.calls["write"] += 1
            self.inner.write(bytes(data)[: len(data) // 2], offset)
            raise StorageError("injected", os_errno=self.code)
        super().write(data, offset)

    def datasync(self) -> None:
        """See BlockFile."""
        self._maybe_fail()
        super().datasync()

    def sync(self) -> None:
        """See BlockFile."""
        self._maybe_fail()
        super().sync()

    def _maybe_fail(self) -> None:
        if self.calls["barrier"] == self.fail_barrier:
            self.calls["barrier"] += 1
            raise StorageError("injected", os_errno=errno.EIO)
