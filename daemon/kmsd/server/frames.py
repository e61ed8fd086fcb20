"""Cut what arrives on a connection into frames."""

from collections.abc import Iterator

from kmsfs.formats.frame import LENGTH_BYTES, read_length


class FrameBuffer:
    """What has arrived and is not cut yet."""

    def __init__(self) -> None:
        self._arrived = bytearray()

    def __bool__(self) -> bool:
        return bool(self._arrived)

    def add(self, data: bytes) -> None:
        """Take what arrived."""
        self._arrived += data

    def bodies(self) -> Iterator[bytes]:
        """Yield the body of each frame that is complete.

        Raises:
            FrameTooLarge, BadFrame: if a length is impossible.
        """
        buffer, offset = self._arrived, 0
        try:
            while len(buffer) - offset >= LENGTH_BYTES:
                length = read_length(buffer[offset : offset + LENGTH_BYTES])
                end = offset + LENGTH_BYTES + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[offset + LENGTH_BYTES : end])
                offset = end
                yield body
        finally:
            del buffer[:offset]
