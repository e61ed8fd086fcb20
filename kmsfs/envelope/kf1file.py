"""One KF1 file: headers, commits, durability. Content operations are in content.py.

A file has a durable commit D in one slot, possibly a provisional commit P in the other, and changes in memory on
top. A header never overwrites D; chunks and nodes go into free blocks only. See security.md section 6.6.
"""

from dataclasses import dataclass

from kmsfs.aead.nonces import Rng
from kmsfs.envelope.allocator import FIRST_BLOCK, Allocator
from kmsfs.envelope.blockfile import BlockFile
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.freshness import Commit, FreshnessRecords, require_fresh
from kmsfs.envelope.maptree import Identity, MapTree
from kmsfs.envelope.provider import DataKeyProvider, FreshKey
from kmsfs.envelope.recovery import Choice, SessionRules, choose, needs_verification, open_map
from kmsfs.envelope.slots import Slot, SlotPair, header_tag, read_slots, seal_slot
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import CorruptFile, IntegrityReason, InvariantBroken, LimitExceeded, StorageError
from kmsfs.formats.fileheader import (
    MAP_DIRECT,
    MAP_INLINE,
    SLOT_BYTES,
    Attributes,
    Clear,
    pack_map,
)
from kmsfs.quantity import BLOCK_BYTES, MAP_WRITES_LIMIT
from kmsfs.suites import FileSuite

_NODES_KEPT = 4096


@dataclass(slots=True)
class FileTools:
    """What every file of a mounted volume shares."""

    keys: VolumeKeys
    provider: DataKeyProvider
    rules: SessionRules
    rng: Rng
    chunk_log2: int
    scratch: bytearray
    freshness: FreshnessRecords | None = None


class Kf1File:
    """An open file. The caller serialises calls; every method may raise StorageError."""

    def __init__(self, tools: FileTools, file: BlockFile, clear: Clear, attributes: Attributes) -> None:
        self.tools = tools
        self.file = file
        self.clear = clear
        self.attributes = attributes
        self.allocator = Allocator(attributes.high_water, attributes.live)
        self.file_keys: FileKeys | None = None
        self.inline: bytearray | None = bytearray()
        self.tree: MapTree | None = None
        self.keys_fit = False
        """Whether the keys were checked against the header's commitment."""
        self.map_box = b""
        self.map_loaded = False
        self.content_dirty = False
        self.attributes_dirty = False
        self.durable_slot: int | None = None
        self.last_slot: int | None = None
        self.synced_generation = 0
        self.header_lost = False
        """Whether a header that could not be written has taken the place of the last commit's: no barrier covers that then."""
        self.failed = False
        self.leftover = False
        """Whether the slot that is not in use holds something that only a crash explains: a later session must not find it."""
        self.reclaimed = False
        self.stale_check: Commit | None = None
        """What the disk had when the file was opened, until it was compared with the freshness records."""
        self.tag = b""
        """The tag of the last commit."""
        self.committed_generation = 0
        """The generation of the last commit; `clear` has the highest seen, which recovery may have passed over."""

    # --- making and opening ---------------------------------------------------------------------------------

    @classmethod
    def create(cls, tools: FileTools, file: BlockFile, fresh: FreshKey) -> "Kf1File":
        """Return a new empty file; its first commit writes the first header."""
        keys = fresh.keys
        clear = Clear(
            FileSuite.AES_256_GCM_HKDF_SHA512, tools.chunk_log2, MAP_INLINE, tools.keys.volume_id, fresh.file_id,
            0, 0, tools.rules.current, keys.commitment(), bytes(28), fresh.wrapped,
        )  # fmt: skip
        made = cls(tools, file, clear, Attributes(file_id=fresh.file_id))
        made.file_keys = keys
        made.keys_fit = True
        made.map_loaded = made.reclaimed = True
        made.content_dirty = made.attributes_dirty = True
        return made

    @classmethod
    def open(
        cls, tools: FileTools, file: BlockFile, durable_slot: int | None = None, known: bool = False
    ) -> "Kf1File":
        """Open an existing file by its headers, recovering it if its session did not end cleanly.

        Args:
            tools: the volume's.
            file: the backing file.
            durable_slot: the slot of the last durable commit, where `known`: this mount committed the file
                since, and nothing has made that commit durable yet.
            known: see `durable_slot`.

        Raises:
            CorruptFile: if no header can be trusted.
            UnsupportedFormat: if it is of a newer format.
            KmsfsError: as the provider's Decrypt, where recovery needs the data key.
        """
        return cls.open_pair(tools, file, read_slots(tools.keys, file), durable_slot, known)

    @classmethod
    def open_pair(
        cls, tools: FileTools, file: BlockFile, pair: SlotPair, durable_slot: int | None, known: bool
    ) -> "Kf1File":
        """As `open`, with the headers read already."""
        file_keys: FileKeys | None = None
        if needs_verification(pair, tools.rules):
            newest = pair.valid[0].clear
            file_keys = tools.provider.open(newest.file_id, newest.wrapped_key)
        choice = choose(pair, tools.rules, file_keys, file)
        if file_keys is not None and choice.fell_back:
            # Which may be under another data key than the newest.
            file_keys = tools.provider.open(choice.slot.clear.file_id, choice.slot.clear.wrapped_key)
        opened = cls(tools, file, choice.slot.clear, choice.slot.attributes)
        opened.map_box = choice.slot.map_box
        opened.last_slot = choice.slot.number
        opened.tag = choice.slot.tag
        opened.committed_generation = choice.slot.clear.generation
        if not known and tools.freshness is not None:
            opened.stale_check = opened.last_commit()
        opened._settle(choice, pair, durable_slot, known=known)
        if file_keys is not None:
            opened.require_fresh()
            file_keys.check_commitment(opened.clear.commitment)
            opened.file_keys = file_keys
            opened.keys_fit = True
        return opened

    def _settle(self, choice: Choice, pair: SlotPair, durable_slot: int | None, *, known: bool) -> None:
        if choice.verified:
            # What was accepted must be durable before anything that it does not refer to is reused.
            self.file.datasync()
        trusts = self.tools.rules.trusts
        self.leftover = pair.damaged is not None or not all(trusts(slot.clear.session) for slot in pair.valid)
        self.durable_slot = durable_slot if known else choice.slot.number
        self.clear.generation = max(slot.clear.generation for slot in pair.valid)
        self.synced_generation = 0 if known else self.clear.generation

    def authorise(self) -> None:
        """Get the file's keys, asking the provider if needed; nothing is opened with them yet.

        Raises:
            CorruptFile: if the file was put back from the past.
            KmsfsError: as the provider's Decrypt.
        """
        self.require_fresh()
        if self.file_keys is None:
            self.file_keys = self.tools.provider.open(self.clear.file_id, self.clear.wrapped_key)

    def last_commit(self) -> Commit:
        """Return what identifies the last commit."""
        return Commit(self.clear.file_id, self.committed_generation, self.clear.session, self.tag)

    def require_fresh(self) -> None:
        """Compare what was opened with the freshness records, once.

        Raises:
            CorruptFile: if the file was put back from the past.
        """
        if self.stale_check is not None and self.tools.freshness is not None:
            require_fresh(self.tools.freshness, self.tools.rules, self.stale_check)
            self.stale_check = None

    def unlock(self) -> FileKeys:
        """Return the file's keys, asking the provider if needed, with the map loaded.

        Raises:
            CorruptFile: if header and data key do not belong together.
            KmsfsError: as the provider's Decrypt.
        """
        keys = self.file_keys
        if keys is None or not self.keys_fit:
            self.authorise()
            keys = self.file_keys
            if keys is None:
                raise InvariantBroken("authorised without keys")
            keys.check_commitment(self.clear.commitment)
            self.keys_fit = True
        if not self.map_loaded:
            self._load_map(keys)
        return keys

    def lock(self) -> None:
        """Forget the file's keys; the next use asks the provider again."""
        self.file_keys = None
        self.keys_fit = False

    def rest(self) -> None:
        """Forget keys and plaintext of a committed file; the sealed map stays, so waking up reads nothing."""
        self.lock()
        if not self.dirty:
            self.inline, self.tree, self.map_loaded = None, None, False

    @property
    def dirty(self) -> bool:
        """Whether anything waits for a commit."""
        return self.content_dirty or self.attributes_dirty

    @property
    def provisional(self) -> bool:
        """Whether the last commit is not known to be durable."""
        return self.clear.generation != self.synced_generation

    @property
    def size(self) -> int:
        """Plaintext bytes."""
        return self.attributes.size

    @property
    def identity(self) -> Identity:
        """What binds this file's nodes."""
        return Identity(self.clear.volume_id, self.clear.file_id)

    def require_sound(self) -> None:
        """Refuse to go on after a failed fsync: what the disk holds is unknown until the file is reopened.

        Raises:
            CorruptFile: then.
        """
        if self.failed:
            raise StorageError("the disk failed to store this file earlier; close and open it again")

    # --- committing -----------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write what changed: nodes, then one header into the slot that does not hold the durable commit.

        Raises:
            StorageError: if the store refuses; the file stays dirty and the last commit stays whole.
            CorruptFile: if the file was put back from the past: a commit would make it the present.
            KeyLease: if another host may write the volume by now.
        """
        self.require_sound()
        if not self.dirty:
            return
        self.tools.rules.require_ours()
        self.require_fresh()
        generation = self.clear.generation + 1
        if self.content_dirty:
            self._seal_map(generation)
        self.attributes.high_water = self.allocator.high_water
        self.attributes.live = self.allocator.live
        self.clear.session = self.tools.rules.current
        target = 1 - self.durable_slot if self.durable_slot is not None else (self.last_slot or 0)
        self.clear.generation = generation
        try:
            slot = seal_slot(self.tools.keys.attr, self.clear, self.attributes, self.map_box)
            self.file.write(slot, target * SLOT_BYTES)
        except BaseException:
            self.clear.generation = generation - 1
            self.header_lost = self.header_lost or target == self.last_slot
            raise
        self.header_lost = self.leftover = False
        self.last_slot = target
        self.tag = header_tag(slot)
        self.committed_generation = generation
        self.allocator.header_written()
        self.content_dirty = self.attributes_dirty = False

    def make_durable(self, *, full: bool = False) -> None:
        """Put the last commit beyond a power cut with one barrier; `full` covers the directory entry too.

        Raises:
            StorageError: if the barrier fails; the file is failed then, as its pages may be lost.
        """
        self.require_sound()
        try:
            if full:
                self.file.sync()
            else:
                self.file.datasync()
        except StorageError:
            self.failed = True
            raise
        self.mark_durable(self.clear.generation)

    def mark_durable(self, generation: int) -> None:
        """Note that a barrier covered the commit of `generation`; later commits do not profit from it."""
        if generation != self.clear.generation or self.last_slot is None or self.header_lost:
            return
        self.synced_generation = generation
        self.durable_slot = self.last_slot
        if self.tools.freshness is not None:
            self.tools.freshness.durable(self.last_commit())
        shrink_to = self.allocator.durable(generation)
        if shrink_to:
            self.file.truncate(max(shrink_to, FIRST_BLOCK * BLOCK_BYTES))

    def _seal_map(self, generation: int) -> None:
        keys = self.unlock()
        if self.inline is not None:
            kind, content = MAP_INLINE, self.inline
        elif self.tree is not None:
            self.tree.write_dirty(generation, self.allocator, self.file, keys.map, self.tools.rng)
            kind, content = MAP_DIRECT + self.tree.height, self.tree.root
            self.tree.forget_clean_nodes(_NODES_KEPT)
        else:
            raise CorruptFile("file has neither data nor map", IntegrityReason.MAP)
        if generation > MAP_WRITES_LIMIT:
            raise LimitExceeded(
                "this file's key has reached its usage limit", hint="copy the file: a copy has a new key"
            )
        self.clear.map_kind = kind
        self.clear.map_generation = generation
        plain = pack_map(self.attributes.size, kind, content)
        self.clear.map_pin, self.map_box = keys.map.seal_detached(self.tools.rng, plain, self.clear.map_aad())

    def _load_map(self, keys: FileKeys) -> None:
        _size, content = open_map(Slot(0, self.clear, self.attributes, self.map_box, self.tag), keys)
        if self.clear.map_kind == MAP_INLINE:
            self.inline, self.tree = bytearray(content), None
        else:
            self.inline = None
            self.tree = MapTree(self.identity, self.clear.map_kind - MAP_DIRECT, content)
        self.map_loaded = True

    def close(self) -> None:
        """Close the backing file; uncommitted changes are lost, so commit first."""
        self.file.close()
