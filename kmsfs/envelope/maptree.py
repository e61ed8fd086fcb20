"""The authenticated map of a file: root entries, nodes, and which of them changed since the last commit.

Entries are kept as raw bytes in bytearrays; there are no objects per chunk. A node at level 1 holds chunk
entries, at level n pointers to nodes of level n-1; the root entries point to nodes of level `height`, or are
chunk entries themselves where the height is 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.nonces import Rng
from kmsfs.envelope.allocator import Allocator
from kmsfs.envelope.blockfile import BlockFile
from kmsfs.errors import AuthenticationFailed, CorruptFile, IntegrityReason
from kmsfs.formats.fileheader import (
    ENTRY,
    ENTRY_BYTES,
    HOLE,
    NODE_ENTRIES,
    NODE_HEAD_BYTES,
    NODE_MAGIC,
    NODE_PREFIX_BYTES,
    ROOT_ENTRIES,
    check_node_prefix,
    node_aad,
    node_prefix,
    pack_location,
    split_location,
)
from kmsfs.formats.filelayout import blocks_for
from kmsfs.quantity import BLOCK_BYTES

NODE_BODY_BYTES = NODE_ENTRIES * ENTRY_BYTES
ROOT_BODY_BYTES = ROOT_ENTRIES * ENTRY_BYTES


@dataclass(slots=True)
class Identity:
    """What binds nodes to their file."""

    volume_id: bytes
    file_id: bytes


class MapTree:
    """The map of one file that has chunks."""

    def __init__(self, identity: Identity, height: int, root: bytes | bytearray) -> None:
        self._identity = identity
        self.height = height
        self.root = bytearray(root)
        self._nodes: dict[tuple[int, int], bytearray] = {}
        self._dirty: set[tuple[int, int]] = set()

    # --- entries --------------------------------------------------------------------------------------------

    def leaf(self, chunk: int, file: BlockFile, key: GcmKey) -> tuple[bytearray, int]:
        """Return (buffer, offset) of a chunk's entry, loading the nodes on its way."""
        if not self.height:
            return self.root, chunk * ENTRY_BYTES
        index, place = divmod(chunk, NODE_ENTRIES)
        return self._node(1, index, file, key), place * ENTRY_BYTES

    def entry(self, chunk: int, file: BlockFile, key: GcmKey) -> bytes:
        """Return a chunk's entry; nodes that are not there stay absent."""
        if not self.height:
            return bytes(self.root[chunk * ENTRY_BYTES : (chunk + 1) * ENTRY_BYTES])
        index, place = divmod(chunk, NODE_ENTRIES)
        node = self._find(1, index, file, key)
        return HOLE if node is None else bytes(node[place * ENTRY_BYTES : (place + 1) * ENTRY_BYTES])

    def swap(self, first: int, entries: bytes, file: BlockFile, key: GcmKey) -> bytes:
        """Replace the entries of consecutive chunks from `first` on; return those that were there.

        Raises:
            CorruptFile: if a node on the way is not the one that its parent names; nothing is replaced then.
        """
        places = []
        done = 0
        while done < len(entries):
            chunk = first + done // ENTRY_BYTES
            buffer, at = self.leaf(chunk, file, key)
            size = min(len(buffer) - at, len(entries) - done)
            places.append((chunk, buffer, at, done, size))
            done += size
        old = []
        for chunk, buffer, at, done, size in places:
            old.append(bytes(buffer[at : at + size]))
            buffer[at : at + size] = entries[done : done + size]
            if self.height:
                self._dirty.add((1, chunk // NODE_ENTRIES))
        return b"".join(old)

    def beside(self, chunk: int) -> int:
        """Return the first chunk after `chunk` whose entry lies in another node."""
        return (chunk // NODE_ENTRIES + 1) * NODE_ENTRIES if self.height else ROOT_ENTRIES

    def capacity(self) -> int:
        """Chunks that the present height can address."""
        return int(ROOT_ENTRIES * NODE_ENTRIES**self.height)

    def grow(self) -> None:
        """Add a level: the old root entries become the first entries of one new node."""
        body = bytearray(NODE_BODY_BYTES)
        body[:ROOT_BODY_BYTES] = self.root
        self.height += 1
        self.root = bytearray(ROOT_BODY_BYTES)
        self._nodes[(self.height, 0)] = body
        self._dirty.add((self.height, 0))

    def absent_until(self, chunk: int, file: BlockFile, key: GcmKey) -> int:
        """Return the first chunk after `chunk` that a present node might hold: jumps over whole absent subtrees."""
        for level in range(self.height, 0, -1):
            span = int(NODE_ENTRIES**level)
            if self._find(level, chunk // span, file, key) is None:
                return (chunk // span + 1) * span
        return chunk + 1

    # --- nodes ----------------------------------------------------------------------------------------------

    def _find(self, level: int, index: int, file: BlockFile, key: GcmKey) -> bytearray | None:
        """Return a node, loading it if needed, or None where there is none."""
        node = self._nodes.get((level, index))
        if node is not None:
            return node
        if level == self.height:
            above, place = self.root, index
        else:
            parent = self._find(level + 1, index // NODE_ENTRIES, file, key)
            if parent is None:
                return None
            above, place = parent, index % NODE_ENTRIES
        entry = bytes(above[place * ENTRY_BYTES : (place + 1) * ENTRY_BYTES])
        if entry == HOLE:
            return None
        node = self._nodes[(level, index)] = self.read_node(level, index, entry, file, key)
        return node

    def _node(self, level: int, index: int, file: BlockFile, key: GcmKey) -> bytearray:
        node = self._nodes.get((level, index))
        if node is None:
            buffer, at = self._parent(level, index, file, key)
            entry = bytes(buffer[at : at + ENTRY_BYTES])
            node = (
                bytearray(NODE_BODY_BYTES)
                if entry == HOLE
                else self.read_node(level, index, entry, file, key)
            )
            self._nodes[(level, index)] = node
        return node

    def _parent(self, level: int, index: int, file: BlockFile, key: GcmKey) -> tuple[bytearray, int]:
        if level == self.height:
            return self.root, index * ENTRY_BYTES
        above, place = divmod(index, NODE_ENTRIES)
        return self._node(level + 1, above, file, key), place * ENTRY_BYTES

    def read_node(self, level: int, index: int, entry: bytes, file: BlockFile, key: GcmKey) -> bytearray:
        """Read and open the node that an entry pins.

        Raises:
            CorruptFile: if it is not that node.
        """
        word, _epoch, pin = ENTRY.unpack(entry)
        block, plain_bytes = split_location(word)
        data = file.read(BLOCK_BYTES, block * BLOCK_BYTES)
        if (
            plain_bytes
            or len(data) != BLOCK_BYTES
            or data[:4] != NODE_MAGIC
            or data[4:NODE_HEAD_BYTES] != pin
        ):
            raise CorruptFile("a map node is not the one its parent names", IntegrityReason.NODE)
        aad = node_aad(self._identity.volume_id, self._identity.file_id, level, index)
        try:
            plain = key.open_detached(pin, data[NODE_HEAD_BYTES:], aad)
        except AuthenticationFailed as error:
            raise CorruptFile("a map node does not authenticate", IntegrityReason.NODE) from error
        check_node_prefix(plain, level, index)
        return bytearray(plain[NODE_PREFIX_BYTES:])

    def write_dirty(
        self, generation: int, allocator: Allocator, file: BlockFile, key: GcmKey, rng: Rng
    ) -> None:
        """Write changed nodes bottom-up into free blocks and pin them in their parents; the root is left to the header."""
        for level in range(1, self.height + 1):
            changed = sorted(index for at, index in self._dirty if at == level)
            writes: list[tuple[int, bytes]] = []
            for index in changed:
                body = self._nodes[(level, index)]
                buffer, at = self._parent(level, index, file, key)
                old = bytes(buffer[at : at + ENTRY_BYTES])
                if old != HOLE:
                    allocator.release(split_location(ENTRY.unpack(old)[0])[0], 1, generation)
                if not any(body):
                    buffer[at : at + ENTRY_BYTES] = HOLE
                else:
                    aad = node_aad(self._identity.volume_id, self._identity.file_id, level, index)
                    pin, cipher = key.seal_detached(rng, node_prefix(level, index, generation) + body, aad)
                    block = allocator.allocate(1)
                    writes.append((block, NODE_MAGIC + pin + cipher))
                    buffer[at : at + ENTRY_BYTES] = ENTRY.pack(pack_location(block, 0), 0, pin)
                if level < self.height:
                    self._dirty.add((level + 1, index // NODE_ENTRIES))
            _write_runs(writes, file)
        self._dirty.clear()

    def used_extents(self, file: BlockFile, key: GcmKey) -> Iterator[tuple[int, int]]:
        """Yield (first block, blocks) of every node and chunk that the map names."""
        yield from self._extents_of(self.root, self.height, 0, file, key)

    def _extents_of(
        self, body: bytearray, level: int, first: int, file: BlockFile, key: GcmKey
    ) -> Iterator[tuple[int, int]]:
        for place in range(len(body) // ENTRY_BYTES):
            entry = bytes(body[place * ENTRY_BYTES : (place + 1) * ENTRY_BYTES])
            if entry == HOLE:
                continue
            block, plain_bytes = split_location(ENTRY.unpack(entry)[0])
            yield block, blocks_for(plain_bytes) if level == 0 else 1
            if level:
                node = self._find(level, first + place, file, key)
                if node is not None:
                    yield from self._extents_of(node, level - 1, (first + place) * NODE_ENTRIES, file, key)

    def forget_clean_nodes(self, keep: int) -> None:
        """Drop loaded nodes that are unchanged, beyond `keep`, so that big files do not fill memory."""
        if len(self._nodes) > keep:
            self._nodes = {place: body for place, body in self._nodes.items() if place in self._dirty}


def _write_runs(writes: list[tuple[int, bytes]], file: BlockFile) -> None:
    start = 0
    while start < len(writes):
        end = start + 1
        while end < len(writes) and writes[end][0] == writes[end - 1][0] + 1:
            end += 1
        file.write(b"".join(data for _, data in writes[start:end]), writes[start][0] * BLOCK_BYTES)
        start = end
