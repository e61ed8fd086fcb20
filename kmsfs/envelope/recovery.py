"""Which of a file's two headers counts: the newest if its session ended cleanly, the newest that verifies if not."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kmsfs.envelope.blockfile import BlockFile
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.maptree import NODE_BODY_BYTES, Identity, MapTree
from kmsfs.envelope.slots import Slot, SlotPair
from kmsfs.errors import AuthenticationFailed, CorruptFile, IntegrityReason, KeyLease
from kmsfs.formats.fileheader import (
    ENTRY,
    ENTRY_BYTES,
    HOLE,
    MAP_DIRECT,
    MAP_INLINE,
    NODE_ENTRIES,
    ROOT_ENTRIES,
    chunk_aad,
    parse_map,
    split_location,
)
from kmsfs.quantity import BLOCK_BYTES


@dataclass(slots=True)
class SessionRules:
    """What the daemon told this mount: its own session, and those that did not end cleanly."""

    current: int
    unclean: set[int] = field(default_factory=set)
    tolerate_other_slot: bool = False
    may_store: Callable[[], bool] = field(default=lambda: True)
    """Whether nobody else can have begun to write the volume."""

    def require_ours(self) -> None:
        """Refuse to store what is in memory after another host may have taken the volume over.

        Raises:
            KeyLease: if it may have.
        """
        if not self.may_store():
            raise KeyLease(
                "the key daemon has been silent for so long that another host may write this volume now",
                hint="what was not stored stays in memory until the daemon is back",
            )

    def trusts(self, session: int) -> bool:
        """Whether headers of this session are as they were written: it is ours, or it ended cleanly."""
        return session == self.current or (session < self.current and session not in self.unclean)

    @property
    def clean(self) -> bool:
        """Whether the whole volume ended cleanly: then every oddity is an attack or a failing disk."""
        return not self.unclean


@dataclass(slots=True)
class Choice:
    """The header to go on from; `verified` if it had to be, `fell_back` if a newer one was rejected."""

    slot: Slot
    verified: bool
    fell_back: bool


def needs_verification(pair: SlotPair, rules: SessionRules) -> bool:
    """Tell whether choosing needs the data key: the newest header is of a session that did not end cleanly."""
    return bool(pair.valid) and not rules.trusts(pair.valid[0].clear.session)


def check_pair(pair: SlotPair, rules: SessionRules) -> None:
    """Refuse what cannot happen by a crash.

    Raises:
        CorruptFile: if no header is valid, or on a clean volume one is damaged.
    """
    if not pair.valid:
        raise pair.damaged or CorruptFile("file has no header", IntegrityReason.EMPTY)
    if pair.damaged is not None and rules.clean and not rules.tolerate_other_slot:
        raise CorruptFile(
            f"one of the two file headers is damaged: {pair.damaged}", IntegrityReason.OTHER_SLOT
        )


def choose(pair: SlotPair, rules: SessionRules, keys: FileKeys | None, file: BlockFile) -> Choice:
    """Return the header to go on from; `keys` may be None only where `needs_verification` says no.

    Raises:
        CorruptFile: if no header can be trusted.
    """
    check_pair(pair, rules)
    newest = pair.valid[0]
    if keys is None or rules.trusts(newest.clear.session):
        return Choice(newest, verified=False, fell_back=False)
    older = pair.valid[1] if len(pair.valid) > 1 else None
    try:
        verify(newest, older, keys, file)
    except CorruptFile:
        if older is None:
            raise
        return Choice(older, verified=True, fell_back=True)
    return Choice(newest, verified=True, fell_back=False)


def verify(slot: Slot, older: Slot | None, keys: FileKeys, file: BlockFile) -> int:
    """Open everything of `slot` that `older` does not pin too; return the number of chunks opened.

    Raises:
        CorruptFile: at the first part that is not as written.
    """
    walk = _Walk(slot, keys, file)
    height, root = walk.root(slot)
    other_root = b""
    if older is not None and older.clear.file_id == slot.clear.file_id:
        try:
            other_height, other = walk.root(older)
            other_root = other if other_height == height else b""
        except CorruptFile:
            other_root = b""
    if height >= 0:
        walk.entries(height, 0, root, other_root, ROOT_ENTRIES)
    return walk.chunks


class _Walk:
    def __init__(self, slot: Slot, keys: FileKeys, file: BlockFile) -> None:
        self._keys = keys
        self._file = file
        self._file_id = slot.clear.file_id
        self._tree = MapTree(Identity(slot.clear.volume_id, slot.clear.file_id), 0, b"")
        self._chunk_bytes = 1 << slot.clear.chunk_log2
        self.chunks = 0

    def root(self, slot: Slot) -> tuple[int, bytes]:
        """Return (height, root entries); height is -1 for an inline file."""
        self._keys.check_commitment(slot.clear.commitment)
        _size, content = open_map(slot, self._keys)
        return slot.clear.map_kind - MAP_DIRECT, content if slot.clear.map_kind != MAP_INLINE else b""

    def entries(
        self, level: int, first: int, body: bytes | bytearray, other: bytes | bytearray, count: int
    ) -> None:
        """Verify what `count` entries of a node name, where the other commit's node does not name the same.

        Raises:
            CorruptFile: if something of it is not what was written.
        """
        for place in range(count):
            at = place * ENTRY_BYTES
            entry = bytes(body[at : at + ENTRY_BYTES])
            if entry == HOLE or entry == other[at : at + ENTRY_BYTES]:
                continue
            if level == 0:
                self.chunk(first + place, entry)
            else:
                self.node(level, first + place, entry, bytes(other[at : at + ENTRY_BYTES]))

    def node(self, level: int, index: int, entry: bytes, other: bytes) -> None:
        """Verify a node of the map and what is below it, as `entries`.

        Raises:
            CorruptFile: if something of it is not what was written.
        """
        key = self._keys.map
        body = self._tree.read_node(level, index, entry, self._file, key)
        other_body = bytearray(NODE_BODY_BYTES)
        if other and other != HOLE:
            try:
                other_body = self._tree.read_node(level, index, other, self._file, key)
            except CorruptFile:
                other_body = bytearray(NODE_BODY_BYTES)
        self.entries(level - 1, index * NODE_ENTRIES, body, other_body, NODE_ENTRIES)

    def chunk(self, index: int, entry: bytes) -> None:
        """Verify a chunk.

        Raises:
            CorruptFile: if it is not what was written.
        """
        open_chunk(index, entry, self._file_id, self._chunk_bytes, self._keys, self._file)
        self.chunks += 1


def open_map(slot: Slot, keys: FileKeys) -> tuple[int, bytes]:
    """Return (size, inline data or root entries) of a slot's map box.

    Raises:
        CorruptFile: if the box is not this header's.
    """
    try:
        plain = keys.map.open_detached(slot.clear.map_pin, slot.map_box, slot.clear.map_aad())
    except AuthenticationFailed as error:
        raise CorruptFile("file map does not authenticate", IntegrityReason.MAP) from error
    size, content = parse_map(plain, slot.clear.map_kind)
    if size != slot.attributes.size:
        raise CorruptFile("the two recorded sizes differ", IntegrityReason.LENGTH)
    return size, content


def open_chunk(
    index: int, entry: bytes, file_id: bytes, chunk_bytes: int, keys: FileKeys, file: BlockFile
) -> bytes:
    """Return a chunk's plaintext; it may be shorter than the chunk size, the rest reads as zeros.

    Raises:
        CorruptFile: if it is not what the entry pins.
    """
    word, epoch, pin = ENTRY.unpack(entry)
    block, plain_bytes = split_location(word)
    if not 0 < plain_bytes <= chunk_bytes:
        raise CorruptFile("chunk entry has an impossible length", IntegrityReason.MAP, chunk_index=index)
    cipher = file.read(plain_bytes, block * BLOCK_BYTES)
    if len(cipher) != plain_bytes:
        raise CorruptFile(f"chunk {index} is cut off", IntegrityReason.LENGTH, chunk_index=index)
    try:
        return keys.chunk(epoch).open_detached(pin, cipher, chunk_aad(file_id, index, plain_bytes, epoch))
    except AuthenticationFailed as error:
        raise CorruptFile(
            f"chunk {index} does not authenticate", IntegrityReason.CHUNK_TAG, chunk_index=index
        ) from error
