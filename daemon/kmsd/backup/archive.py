"""The archive: a stream of sealed pieces under a key of its own, wrapped under the root key (docs/formats/backup-v1.md).

Each piece is bound to its number and to whether it is the last, so none can be left out, moved or cut off (the STREAM
construction of Hoang, Reyhanitabar, Rogaway and Vizár, 2015, with random nonces under a key that seals one archive).
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from kmsd.root.keyring import HEADER_BYTES as KEYRING_HEADER_BYTES
from kmsd.root.keyring import Keyring, parse_header
from kmsfs.aead.gcm import PIN_BYTES, GcmKey
from kmsfs.aead.kdf import Label, derive
from kmsfs.aead.nonces import Rng
from kmsfs.errors import AuthenticationFailed, CorruptStore, RootKeyMissing
from kmsfs.secret import KeyMaterial
from kmsfs.suites import AES_256_BYTES

MAGIC = b"KMSBKUP1"
PIECE_BYTES = 1 << 20
_CLEAR = struct.Struct(f"<8sQ{KEYRING_HEADER_BYTES}s")
_PIECE_AAD = struct.Struct("<12sQB")
HEADER_BYTES = _CLEAR.size + AES_256_BYTES + PIN_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """What an archive says in the clear: when it was made (milliseconds since the epoch), and of which realm."""

    created_ms: int
    keyring_header: bytes

    @property
    def realm(self) -> Keyring:
        """The realm's keyring without its keys: root key source and identity."""
        return parse_header(self.keyring_header + bytes(PIN_BYTES), whole=False)

    def pack(self) -> bytes:
        """Return the clear bytes."""
        return _CLEAR.pack(MAGIC, self.created_ms, self.keyring_header)


def parse_archive_header(raw: bytes) -> Header:
    """Return an archive's clear header.

    Raises:
        CorruptStore: if it is no archive, or cut off.
    """
    if len(raw) < HEADER_BYTES or raw[: len(MAGIC)] != MAGIC:
        raise CorruptStore("this is no backup of a key daemon, or it is cut off")
    _, created_ms, keyring_header = _CLEAR.unpack_from(raw)
    return Header(created_ms, keyring_header)


def _aad(number: int, *, last: bool) -> bytes:
    return _PIECE_AAD.pack(b"kmsfs/backup", number, last)


def _wrapper(root_key: KeyMaterial) -> GcmKey:
    return GcmKey(derive(root_key.reveal(), Label.ROOT_BACKUP))


class ArchiveWriter(io.RawIOBase):
    """Seals what is written to it; `finish` writes the last piece, without which an archive does not open."""

    def __init__(self, target: BinaryIO, header: Header, root_key: KeyMaterial, rng: Rng) -> None:
        key = rng(AES_256_BYTES)
        clear = header.pack()
        self._target = target
        self._key = GcmKey(key)
        self._rng = rng
        self._number = 0
        self._waiting = bytearray()
        target.write(clear + _wrapper(root_key).seal(rng, key, clear))

    def writable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """See io.RawIOBase.

        Raises:
            OSError: if the target cannot take it.
        """
        self._waiting += data
        while len(self._waiting) > PIECE_BYTES:
            self._seal(bytes(self._waiting[:PIECE_BYTES]), last=False)
            del self._waiting[:PIECE_BYTES]
        return len(data)

    def finish(self) -> None:
        """Write the last piece.

        Raises:
            OSError: if the target cannot take it.
        """
        self._seal(bytes(self._waiting), last=True)
        self._waiting.clear()

    def _seal(self, piece: bytes, *, last: bool) -> None:
        self._target.write(self._key.seal(self._rng, piece, _aad(self._number, last=last)))
        self._number += 1


class ArchiveReader(io.RawIOBase):
    """Opens an archive piece by piece; nothing unverified comes out, and a missing end is an error."""

    def __init__(self, source: BinaryIO, root_key: KeyMaterial) -> None:
        """Read the header.

        Raises:
            CorruptStore: if it is no archive.
            RootKeyMissing: if this root key does not open it.
        """
        raw = source.read(HEADER_BYTES)
        self.header = parse_archive_header(raw)
        try:
            key = _wrapper(root_key).open(raw[_CLEAR.size :], raw[: _CLEAR.size])
        except AuthenticationFailed as error:
            raise RootKeyMissing(
                "this root key does not open the backup: it is another realm's, or the backup's head is damaged"
            ) from error
        self._source = source
        self._key = GcmKey(key)
        self._number = 0
        self._next = source.read(PIECE_BYTES + PIN_BYTES)
        self._plain = b""
        self._ended = False

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """See io.RawIOBase.

        Raises:
            CorruptStore: at the first piece that is damaged, missing or in another place.
        """
        while not self._plain and not self._ended:
            self._open_piece()
        piece = self._plain[: len(buffer)]
        buffer[: len(piece)] = piece
        self._plain = self._plain[len(piece) :]
        return len(piece)

    def _open_piece(self) -> None:
        sealed, self._next = self._next, self._source.read(PIECE_BYTES + PIN_BYTES)
        self._ended = not self._next
        try:
            self._plain = self._key.open(sealed, _aad(self._number, last=self._ended))
        except AuthenticationFailed as error:
            raise CorruptStore(
                f"the backup is damaged or cut off at its piece {self._number}", hint="use another backup"
            ) from error
        self._number += 1
