"""Open directories: snapshots that READDIR and READDIRPLUS are answered from, and the next answer made while nobody waits."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kmsfs.errors import KmsfsError
from kmsfs.formats.handover import OpenDirectory
from kmsfs.mount.durability import Vfs
from kmsfs.mount.kernel import wire
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs_dirs import Entry

_DOTS = (b".", b"..")
_DIRECTORY = 0o040000
_AT_ONCE = 8
"""Entries that are looked at ahead between two looks for a request."""
_AHEAD_NS = 20_000_000
"""Attributes that were looked at ahead are told within this time, or looked at again."""

Told = tuple[Node | None, bytes]
"""A node, or None for a damaged entry, and its struct fuse_direntplus."""


@dataclass(slots=True)
class _Listing:
    """An open directory: one snapshot, so that offsets stay right while entries come and go."""

    node: Node
    entries: list[Entry] | None = None

    def dirent(self, position: int) -> bytes:
        """Return the struct fuse_dirent at a position; the first two are the directory and its parent."""
        if position < len(_DOTS) or self.entries is None:
            return wire.dirent(self.node.key[1], position + 1, _DIRECTORY, _DOTS[position])
        entry = self.entries[position - len(_DOTS)]
        return wire.dirent(entry.ino, position + 1, entry.kind, entry.name)

    def plus_bytes(self, position: int) -> int:
        """Return the length of the struct fuse_direntplus at a position."""
        if position < len(_DOTS) or self.entries is None:
            return wire.direntplus_bytes(_DOTS[position])
        return wire.direntplus_bytes(self.entries[position - len(_DOTS)].name)


@dataclass(slots=True)
class _Ahead:
    """What the next READDIRPLUS will likely ask for, as far as it was looked at."""

    listing: _Listing
    position: int
    """Of the first entry."""
    left: int
    """Bytes of the answer that are still free."""
    until_ns: int
    changes: int
    told: deque[Told] = field(default_factory=deque)


class OpenDirectories:
    """The open directories of a mount. Every method is called with the vfs lock held."""

    def __init__(self, vfs: Vfs, known: Callable[[Node], None]) -> None:
        """Answer from `vfs`; `known` is called for each node that the kernel is told of."""
        self._vfs = vfs
        self._known = known
        self._listings: dict[int, _Listing] = {}
        self._next_handle = 1
        self._ahead: _Ahead | None = None

    def open(self, node: Node) -> int:
        """Return a handle of a directory."""
        handle = self._next_handle
        self._next_handle += 1
        self._listings[handle] = _Listing(node)
        node.handles += 1
        return handle

    def release(self, handle: int) -> None:
        """Close a handle."""
        self.forget_ahead()
        listing = self._listings.pop(handle, None)
        if listing is not None:
            listing.node.handles -= 1
            self._vfs.nodes.drop_if_unused(listing.node)

    def export(self) -> tuple[list[OpenDirectory], int]:
        """Return every open directory and the next handle."""
        self.forget_ahead()
        opened = [
            OpenDirectory(
                handle, listing.node.node_id,
                None if listing.entries is None else [(e.name, e.disk_name, e.kind, e.ino) for e in listing.entries],
            )
            for handle, listing in self._listings.items()
        ]  # fmt: skip
        return opened, self._next_handle

    def restore(self, opened: list[OpenDirectory], next_handle: int) -> None:
        """Open what was open when it was exported; the nodes have counted it already."""
        self._next_handle = next_handle
        for facts in opened:
            entries = None if facts.entries is None else [Entry(*entry) for entry in facts.entries]
            self._listings[facts.handle] = _Listing(self._vfs.nodes.get(facts.node_id), entries)

    def _entries(self, handle: int, offset: int) -> tuple[_Listing, int]:
        """Return an open directory and how many entries it has, its own two among them."""
        listing = self._listings[handle]
        if listing.entries is None or offset == 0:
            listing.entries = self._vfs.list_directory(listing.node)
        return listing, len(listing.entries) + len(_DOTS)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Answer READDIR: entries from `offset` on, `size` bytes at most.

        Raises:
            OSError, KmsfsError: if the directory cannot be read.
        """
        listing, count = self._entries(handle, offset)
        parts = []
        for position in range(offset, count):
            piece = listing.dirent(position)
            size -= len(piece)
            if size < 0:
                break
            parts.append(piece)
        return b"".join(parts)

    def read_plus(self, handle: int, offset: int, size: int, valid_seconds: int) -> bytes:
        """Answer READDIRPLUS: as `read`, each entry with its attributes, good for `valid_seconds`.

        Raises:
            OSError, KmsfsError: if the directory cannot be read.
        """
        listing, count = self._entries(handle, offset)
        ready = self._take_ahead(listing, offset)
        parts: list[bytes] = []
        left, position = size, offset
        while position < count:
            left -= listing.plus_bytes(position)
            if left < 0:
                break
            node, piece = ready.popleft() if ready else self._look(listing, position, valid_seconds)
            if node is not None:
                self._known(node)
            parts.append(piece)
            position += 1
        self._drop(ready)
        if offset < position < count:
            until = time.monotonic_ns() + _AHEAD_NS
            self._ahead = _Ahead(listing, position, size, until, self._vfs.changes_behind)
        return b"".join(parts)

    def _look(self, listing: _Listing, position: int, valid_seconds: int) -> Told:
        dirent = listing.dirent(position)
        if position < len(_DOTS) or listing.entries is None:
            return None, bytes(wire.ENTRY_OUT.size) + dirent
        entry = listing.entries[position - len(_DOTS)]
        try:
            node, stat = self._vfs.list_entry(listing.node, entry.name, entry.disk_name, entry.listed)
        except (OSError, KmsfsError):
            # Gone, or not to be read: the name is listed, a later lookup says what is wrong.
            return None, bytes(wire.ENTRY_OUT.size) + dirent
        return node, wire.entry_out(node.node_id, stat, valid_seconds if node.damage is None else 0) + dirent

    # --- looking ahead ----------------------------------------------------------------------------------------

    def look_ahead(self, valid_seconds: int) -> bool:
        """While nobody waits, look at some entries that the next READDIRPLUS will tell; return whether there were any."""
        ahead = self._ahead
        if ahead is None:
            return False
        count = len(ahead.listing.entries or ()) + len(_DOTS)
        for _ in range(_AT_ONCE):
            position = ahead.position + len(ahead.told)
            if position >= count:
                return False
            ahead.left -= ahead.listing.plus_bytes(position)
            if ahead.left < 0:
                return False
            ahead.told.append(self._look(ahead.listing, position, valid_seconds))
        return True

    def forget_ahead(self) -> None:
        """Something may have changed: what was looked at ahead is looked at again when it is asked for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._drop(ahead.told)

    def _take_ahead(self, listing: _Listing, offset: int) -> deque[Told]:
        """Return what was looked at ahead from `offset` on, as far as it is still so."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or not ahead.told:
            return deque()
        nodes = self._vfs.nodes
        if (
            ahead.listing is listing
            and ahead.position == offset
            and ahead.changes == self._vfs.changes_behind
            and time.monotonic_ns() < ahead.until_ns
            and all(node is None or nodes.holds(node) for node, _ in ahead.told)
        ):
            return ahead.told
        self._drop(ahead.told)
        return deque()

    def _drop(self, told: deque[Told]) -> None:
        for node, _ in told:
            if node is not None:
                self._vfs.nodes.drop_if_unused(node)
