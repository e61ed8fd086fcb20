"""Key material that does not leak by accident: it does not print, pickle, hash or compare with ==."""

import hmac
from typing import NoReturn


class KeyMaterial:
    """Secret bytes in a buffer that `wipe` overwrites.

    The bytes that a caller obtains with `reveal`, and the key schedules that OpenSSL makes from them, are
    copies that Python cannot wipe; docs/limitations.md says so.
    """

    __slots__ = ("_buffer",)

    def __init__(self, secret: bytes | bytearray | memoryview) -> None:
        self._buffer = bytearray(secret)

    def reveal(self) -> bytes:
        """Return the secret bytes. The name is meant to be searched for in reviews."""
        return bytes(self._buffer)

    def matches(self, other: "KeyMaterial") -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self._buffer, other._buffer)

    def wipe(self) -> None:
        """Overwrite the buffer with zeros and empty it; a later `reveal` returns no bytes."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{len(self._buffer)} secret bytes>)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("key material does not pickle")


class DataKey(KeyMaterial):
    """A 32-byte key that encrypts data, made for one file or one value."""

    __slots__ = ()
