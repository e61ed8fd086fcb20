"""KF1 file header slot, attributes, map and entries as bytes (docs/formats/file-v1.md).

All integers are little-endian. Sealing happens in the envelope room; here are only shapes.
"""

import struct
from dataclasses import dataclass, field

from kmsfs.errors import CorruptFile, IntegrityReason, UnsupportedFormat
from kmsfs.quantity import BLOCK_BYTES
from kmsfs.suites import FileSuite, file_suite

MAGIC = b"KFH1"
NODE_MAGIC = b"KFN1"
CHUNK_MAGIC = b"KFC1"
FORMAT_VERSION = 1
SLOT_BYTES = BLOCK_BYTES
CLEAR_BYTES = 144
WRAPPED_KEY_MAX_BYTES = 512
ATTR_OFFSET = 656
ATTR_PLAIN_BYTES = 432
ATTR_BOX_BYTES = 448
MAP_OFFSET = 1104
MAP_BOX_BYTES = 2992
MAP_PLAIN_BYTES = 2992
MAP_HEAD_BYTES = 24
ENTRY_BYTES = 40
ROOT_ENTRIES = 74
INLINE_MAX_BYTES = 2960
NODE_ENTRIES = 100
NODE_HEAD_BYTES = 32
NODE_PLAIN_BYTES = BLOCK_BYTES - NODE_HEAD_BYTES
NODE_PREFIX_BYTES = 64
EXTRA_HOMES = 6
NAME_MAX_BYTES = 255
MAX_HEIGHT = 4
MIN_CHUNK_LOG2 = 12
MAX_CHUNK_LOG2 = 20

MAP_INLINE = 0
MAP_DIRECT = 1

_CLEAR = struct.Struct("<4sBBBBII16s16sQQQH6s32s12s16s4s")
_ATTR = struct.Struct("<QqqQQQIHH16sQ256s96s")
_MAP_HEAD = struct.Struct("<QHH12s")
_NODE_PREFIX = struct.Struct("<B7sQQ40s")
ENTRY = struct.Struct("<QI28s")
HOLE = bytes(ENTRY_BYTES)
_BLOCK_MASK = (1 << 40) - 1
_PLEN_MASK = (1 << 21) - 1

if (_CLEAR.size, _ATTR.size, _MAP_HEAD.size, _NODE_PREFIX.size, ENTRY.size) != (144, 432, 24, 64, 40):
    raise UnsupportedFormat("struct sizes do not match the format page")


@dataclass(slots=True)
class Clear:
    """The clear fields of a slot (bytes 0…144) and the wrapped key."""

    suite: FileSuite
    chunk_log2: int
    map_kind: int
    volume_id: bytes
    file_id: bytes
    generation: int
    map_generation: int
    session: int
    commitment: bytes
    map_pin: bytes
    wrapped_key: bytes

    def pack(self) -> bytes:
        """Return bytes 0…656 of the slot: what the attribute box authenticates."""
        return _CLEAR.pack(
            MAGIC, FORMAT_VERSION, self.suite, self.chunk_log2, self.map_kind, 0, 0, self.volume_id,
            self.file_id, self.generation, self.map_generation, self.session, len(self.wrapped_key), b"",
            self.commitment, self.map_pin[:12], self.map_pin[12:], b"",
        ) + self.wrapped_key.ljust(WRAPPED_KEY_MAX_BYTES, b"\0")  # fmt: skip

    def map_aad(self) -> bytes:
        """Associated data of the map box: bytes 0…48 ‖ map generation ‖ commitment."""
        return _MAP_AAD.pack(
            MAGIC, FORMAT_VERSION, self.suite, self.chunk_log2, self.map_kind, 0, 0, self.volume_id,
            self.file_id, self.map_generation, self.commitment,
        )  # fmt: skip


_MAP_AAD = struct.Struct("<4sBBBBII16s16sQ32s")


def parse_clear(slot: bytes | memoryview) -> Clear:
    """Read the clear part of a slot.

    Raises:
        CorruptFile: with HEADER_SHAPE if it is no header or a reserved field is set.
        UnsupportedFormat: if it is a header of another version, suite or with an unknown feature flag.
    """
    if len(slot) != SLOT_BYTES or bytes(slot[:4]) != MAGIC:
        raise CorruptFile("not a file header", IntegrityReason.HEADER_SHAPE)
    (
        _, version, suite, chunk_log2, map_kind, features, reserved, volume_id, file_id, generation,
        map_generation, session, wrapped_len, pad1, commitment, nonce, tag, pad2,
    ) = _CLEAR.unpack_from(slot)  # fmt: skip
    if version != FORMAT_VERSION:
        raise UnsupportedFormat(f"file format version {version}", hint="a newer kmsfs may read it")
    if features:
        raise UnsupportedFormat(f"unknown file feature flags {features:#x}", hint="a newer kmsfs may read it")
    known = file_suite(suite)
    shape_ok = (
        MIN_CHUNK_LOG2 <= chunk_log2 <= MAX_CHUNK_LOG2
        and map_kind <= MAX_HEIGHT + 1
        and not reserved
        and pad1 == bytes(6)
        and pad2 == bytes(4)
        and 0 < wrapped_len <= WRAPPED_KEY_MAX_BYTES
        and slot[CLEAR_BYTES + wrapped_len : ATTR_OFFSET] == bytes(WRAPPED_KEY_MAX_BYTES - wrapped_len)
    )
    if not shape_ok:
        raise CorruptFile("file header has an impossible field", IntegrityReason.HEADER_SHAPE)
    wrapped = bytes(slot[CLEAR_BYTES : CLEAR_BYTES + wrapped_len])
    return Clear(
        known, chunk_log2, map_kind, volume_id, file_id, generation, map_generation, session, commitment,
        nonce + tag, wrapped,
    )  # fmt: skip


def session_of(slot: bytes) -> int:
    """Return the session of a slot that starts as one of this version; authenticate it before it is believed."""
    return int.from_bytes(slot[64:72], "little")


def file_id_of(slot: bytes) -> bytes:
    """Return the file id of a slot that starts as one of this version; authenticate it before it is believed."""
    return slot[32:48]


@dataclass(slots=True)
class Attributes:
    """The attribute box: what `stat` and home binding need. Times in nanoseconds, blocks of 4 KiB."""

    size: int = 0
    mtime_ns: int = 0
    btime_ns: int = 0
    high_water: int = 2
    live: int = 0
    chunk_writes: int = 0
    flags: int = 0
    primary_dir: bytes = bytes(16)
    name: bytes = b""
    extra_homes: list[bytes] = field(default_factory=list)
    extras: int = 0
    """Number of the extras record that belongs to this header; 0: there is none."""
    file_id: bytes = b""
    """Whose they are, from the clear part of the header; not packed."""

    def pack(self) -> bytes:
        """Return the 432 bytes to seal."""
        return _ATTR.pack(
            self.size, self.mtime_ns, self.btime_ns, self.high_water, self.live, self.chunk_writes, self.flags,
            len(self.name), len(self.extra_homes), self.primary_dir, self.extras, self.name, b"".join(self.extra_homes),
        )  # fmt: skip


def parse_attributes(plain: bytes) -> Attributes:
    """Read an opened attribute box.

    Raises:
        CorruptFile: if a length or reserved field is impossible.
        UnsupportedFormat: if a flag is unknown.
    """
    (
        size, mtime, btime, high_water, live, writes, flags, name_len, links, primary, extras, name, homes,
    ) = _ATTR.unpack(plain)  # fmt: skip
    if flags:
        raise UnsupportedFormat(f"unknown attribute flags {flags:#x}")
    if name_len > NAME_MAX_BYTES or links > EXTRA_HOMES:
        raise CorruptFile("attribute box has an impossible field", IntegrityReason.HEADER_SHAPE)
    extra = [homes[i * 16 : i * 16 + 16] for i in range(links)]
    return Attributes(
        size, mtime, btime, high_water, live, writes, flags, primary, name[:name_len], extra, extras
    )


def pack_map(size: int, kind: int, content: bytes | bytearray) -> bytes:
    """Return the 2,992 bytes of a map box: inline data, or root entries."""
    count, inline_len = (0, len(content)) if kind == MAP_INLINE else (ROOT_ENTRIES, 0)
    head = _MAP_HEAD.pack(size, count, inline_len, b"")
    return (head + content).ljust(MAP_PLAIN_BYTES, b"\0")


def parse_map(plain: bytes, kind: int) -> tuple[int, bytes]:
    """Return (size, content) of an opened map box.

    Raises:
        CorruptFile: if counts do not fit the kind.
    """
    size, count, inline_len, reserved = _MAP_HEAD.unpack_from(plain)
    inline = kind == MAP_INLINE
    expected = 0 if inline else ROOT_ENTRIES
    if (
        count != expected
        or reserved != bytes(12)
        or inline_len > INLINE_MAX_BYTES
        or (inline_len and not inline)
    ):
        raise CorruptFile("map box has an impossible field", IntegrityReason.MAP)
    length = inline_len if inline else ROOT_ENTRIES * ENTRY_BYTES
    return size, plain[MAP_HEAD_BYTES : MAP_HEAD_BYTES + length]


def pack_location(block: int, plain_bytes: int) -> int:
    """Return an entry's location word; `plain_bytes` is 0 for a node."""
    return block | plain_bytes << 40


def split_location(word: int) -> tuple[int, int]:
    """Return (first block, plaintext bytes).

    Raises:
        CorruptFile: if a reserved flag bit is set.
    """
    if word >> 61:
        raise CorruptFile("map entry has unknown flags", IntegrityReason.MAP)
    return word & _BLOCK_MASK, word >> 40 & _PLEN_MASK


def node_prefix(level: int, index: int, generation: int) -> bytes:
    """Return the 64 bytes before a node's entries."""
    return _NODE_PREFIX.pack(level, b"", index, generation, b"")


def check_node_prefix(plain: bytes, level: int, index: int) -> None:
    """Check an opened node's prefix.

    Raises:
        CorruptFile: if it says another place.
    """
    got_level, pad, got_index, _generation, reserved = _NODE_PREFIX.unpack_from(plain)
    if (got_level, got_index) != (level, index) or pad != bytes(7) or reserved != bytes(40):
        raise CorruptFile("map node is at a wrong place", IntegrityReason.NODE)


_NODE_AAD = struct.Struct("<4s16s16sBQ")
_CHUNK_AAD = struct.Struct("<4s16sQII")


def node_aad(volume_id: bytes, file_id: bytes, level: int, index: int) -> bytes:
    """Associated data of a node."""
    return _NODE_AAD.pack(NODE_MAGIC, volume_id, file_id, level, index)


def chunk_aad(file_id: bytes, chunk_index: int, plain_bytes: int, epoch: int) -> bytes:
    """Associated data of a chunk."""
    return _CHUNK_AAD.pack(CHUNK_MAGIC, file_id, chunk_index, plain_bytes, epoch)
