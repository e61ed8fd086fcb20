"""Remembered listings, before they are sealed (docs/formats/listing-v1.md)."""

import msgspec

from kmsfs.errors import UnsupportedFormat
from kmsfs.formats.fileheader import Attributes

LISTING_VERSION = 1
LISTING_AAD = b"kmsfs/listing/directory"
PLACE_AAD = b"kmsfs/listing/place"


class ListedFile(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A file as it was when its directory was last remembered: how it lay on the backing store, and what its header said.

    `ino`, `ctime_ns` and `disk_bytes` are the backing inode's number, change time in nanoseconds and size. The others
    are those of `Attributes`; the directory itself is the file's only home.
    """

    disk_name: str
    name: bytes
    ino: int
    ctime_ns: int
    disk_bytes: int
    file_id: bytes
    size: int
    mtime_ns: int
    btime_ns: int
    high_water: int
    live: int
    chunk_writes: int
    extras: int

    @classmethod
    def of(cls, disk_name: str, facts: tuple[int, int, int], attributes: Attributes) -> "ListedFile":
        """Return the record of a file; `facts` are its backing inode's number, change time and size."""
        return cls(
            disk_name, attributes.name, *facts, attributes.file_id, attributes.size, attributes.mtime_ns, attributes.btime_ns,
            attributes.high_water, attributes.live, attributes.chunk_writes, attributes.extras,
        )  # fmt: skip

    def attributes(self, dir_id: bytes) -> Attributes:
        """Return what the header said, of a file in the directory with this id."""
        return Attributes(
            self.size, self.mtime_ns, self.btime_ns, self.high_water, self.live, self.chunk_writes, 0, dir_id,
            self.name, [], self.extras, self.file_id,
        )  # fmt: skip


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[ListedFile]]).decode


def pack_listing(files: list[ListedFile]) -> bytes:
    """Return the bytes of one directory's files."""
    return _encode((LISTING_VERSION, files))


def parse_listing(raw: bytes) -> list[ListedFile]:
    """Return the files of one directory.

    Raises:
        UnsupportedFormat: if it is of another version or shape.
    """
    try:
        version, files = _decode(raw)
    except msgspec.DecodeError as error:
        raise UnsupportedFormat(f"a remembered listing has another shape: {error}") from error
    if version != LISTING_VERSION:
        raise UnsupportedFormat(f"a remembered listing is of version {version}, which is not known")
    return files
