"""The inode table: what the kernel knows, counted exactly, and where each inode lies in the cipher directory."""

import os
import stat
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kmsfs.envelope.kf1file import Kf1File
from kmsfs.errors import CorruptFile, IntegrityReason, KmsfsError
from kmsfs.formats.fileheader import Attributes
from kmsfs.formats.handover import NodeFacts
from kmsfs.mount.attributes import Stat

ROOT_ID = 1
_OPEN_DIRECTORIES_MAX = 512


@dataclass(slots=True, eq=False)
class Node:
    """One inode. `names` are its known links: (parent, plain name) to the name on disk."""

    node_id: int
    kind: int
    key: tuple[int, int]
    names: "dict[tuple[int, bytes], str]" = field(default_factory=dict)
    parents: "dict[int, Node]" = field(default_factory=dict)
    kids: "dict[bytes, Node]" = field(default_factory=dict)
    lookups: int = 0
    handles: int = 0
    dir_id: bytes = b""
    dir_tags: list[bytes] = field(default_factory=list)
    file: Kf1File | None = None
    descriptor: int = -1
    synced_entry: bool = True
    leaving: Attributes | None = None
    """What the header of a closed file says, one of whose names is being removed; None: it cannot be read."""
    lone: bool = False
    """Whether that name is its last."""
    keep_cache: bool = False
    unread: bool = True
    """Whether nobody has opened it since the kernel came to know it: no page of it is cached."""
    default_acl: bool | None = None
    """Whether a directory hands down an access control list; None: not looked at."""
    file_id: bytes = b""
    """Which file it was when it was looked up, for who follows a writer: the store gives numbers of inodes again."""
    attributes: Attributes | None = None
    """What the header of a closed file said, until somebody else may have changed it."""
    parted: tuple[Stat, str] | None = None
    """Of what is neither file nor directory, once its last name is gone: its attributes, and a symlink's target as it was stored."""
    damage: KmsfsError | None = None
    """Why the entry cannot be used but for removing it. Such a node stands for a name alone: the backing inode, mended or under another name, is another node."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind == stat.S_IFREG

    def place(self) -> "tuple[Node, bytes, str] | None":
        """Return (parent, plain name, name on disk) of one link, or None if unlinked."""
        for (parent_id, name), disk_name in self.names.items():
            return self.parents[parent_id], name, disk_name
        return None


class NodeTable:
    """Nodes by id and by backing inode; directory descriptors, least recently used closed first."""

    def __init__(self, root_descriptor: int, root_dir_id: bytes) -> None:
        facts = os.fstat(root_descriptor)
        self.root = Node(ROOT_ID, stat.S_IFDIR, (facts.st_dev, facts.st_ino), lookups=1, dir_id=root_dir_id)
        self.root.descriptor = root_descriptor
        self._by_id = {ROOT_ID: self.root}
        self._by_key = {self.root.key: self.root}
        self._next_id = ROOT_ID + 1
        self._open_dirs: OrderedDict[int, Node] = OrderedDict()
        self._many = sys.maxsize
        self._on_many: Callable[[], None] = _nobody
        self.waits: Callable[[Node], bool] = _never
        """Whether something is to be done yet with a node that the kernel has forgotten, by the names that it has."""

    def __len__(self) -> int:
        return len(self._by_id)

    def tell_when_over(self, count: int, tell: Callable[[], None]) -> None:
        """Call `tell` for each new node while there are more than `count`."""
        self._many, self._on_many = count, tell

    def get(self, node_id: int) -> Node:
        """Return the node with this id.

        Raises:
            OSError: ESTALE, if the kernel names one that it has forgotten.
        """
        node = self._by_id.get(node_id)
        if node is None:
            raise OSError(116, "stale inode")
        return node

    def holds(self, node: Node) -> bool:
        """Whether a node was not dropped."""
        return self._by_id.get(node.node_id) is node

    def of_inode(self, key: tuple[int, int]) -> Node | None:
        """Return the node of a backing inode, if it is known."""
        return self._by_key.get(key)

    def all_nodes(self) -> list[Node]:
        """Return every node."""
        return list(self._by_id.values())

    def adopt(self, parent: Node, name: bytes, disk_name: str, facts: os.stat_result) -> Node:
        """Return the node of a directory entry, the same one for every hard link."""
        key = (facts.st_dev, facts.st_ino)
        kind = stat.S_IFMT(facts.st_mode)
        node = self._by_key.get(key)
        if node is not None and node.kind != kind:
            del self._by_key[key]
            node = None
        if node is None:
            node = self.adopt_nameless(facts)
        self.link(node, parent, name, disk_name)
        return node

    def adopt_nameless(self, facts: os.stat_result) -> Node:
        """Return a new node of a backing inode that no known name leads to."""
        node = self._new(facts)
        self._by_key[node.key] = node
        return node

    def adopt_damaged(
        self, parent: Node, name: bytes, disk_name: str, facts: os.stat_result, before: Node | None, damage: KmsfsError
    ) -> Node:
        """Return a node that stands for a name alone; `before`, if it is one of the same."""
        if before is None or before.damage is None or before.key != (facts.st_dev, facts.st_ino):
            before = self._new(facts)
        before.damage = damage
        self.link(before, parent, name, disk_name)
        return before

    def _new(self, facts: os.stat_result) -> Node:
        node = Node(self._next_id, stat.S_IFMT(facts.st_mode), (facts.st_dev, facts.st_ino))
        self._next_id += 1
        self._by_id[node.node_id] = node
        if len(self._by_id) > self._many:
            self._on_many()
        return node

    def link(self, node: Node, parent: Node, name: bytes, disk_name: str) -> None:
        """Note that an entry names a node."""
        present = parent.kids.get(name)
        if present is not None and present is not node:
            self.unlink(parent, name)
        if node.is_dir and node.names and (parent.node_id, name) not in node.names:
            for parent_id, old_name in list(node.names):
                self.unlink(node.parents[parent_id], old_name)
        node.names[(parent.node_id, name)] = disk_name
        node.parents[parent.node_id] = parent
        parent.kids[name] = node

    def unlink(self, parent: Node, name: bytes) -> Node | None:
        """Note that an entry is gone; return its node if it was known."""
        node = parent.kids.pop(name, None)
        if node is not None:
            node.names.pop((parent.node_id, name), None)
            if not any(parent_id == parent.node_id for parent_id, _ in node.names):
                node.parents.pop(parent.node_id, None)
        return node

    def disown_key(self, node: Node) -> None:
        """Forget the backing inode of a node whose last link is gone: the store may give the number to another."""
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]

    def forget(self, node: Node, lookups: int) -> None:
        """Take back lookups; a node that nobody knows, has open or lives in is dropped."""
        node.lookups -= lookups
        self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        """Drop a node and then its parents, as far as they are unused."""
        while (
            node is not self.root
            and node.lookups <= 0
            and not node.handles
            and not node.kids
            and node.file is None
            and not (node.names and self.waits(node))
        ):
            if self._by_id.pop(node.node_id, None) is None:
                return
            self.disown_key(node)
            self._close_dir(node)
            parents = list(node.parents.values())
            for parent_id, name in list(node.names):
                self.unlink(node.parents[parent_id], name)
            if not parents:
                return
            for extra in parents[1:]:
                self.drop_if_unused(extra)
            node = parents[0]

    # --- handing on -------------------------------------------------------------------------------------------

    def export(self) -> tuple[list[NodeFacts], int]:
        """Return every node and the next id."""
        return [self._facts(node) for node in self._by_id.values()], self._next_id

    def _facts(self, node: Node) -> NodeFacts:
        if node.is_file:
            kept = node.file is not None and bool(node.handles or not node.names)
        else:
            kept = node is not self.root and not node.names
        return NodeFacts(
            node.node_id, node.kind, node.key, self._by_key.get(node.key) is node,
            [(parent, name, disk_name) for (parent, name), disk_name in node.names.items()],
            node.lookups, node.handles, node.dir_id, node.dir_tags, node.synced_entry, node.keep_cache,
            node.descriptor if kept else -1,
        )  # fmt: skip

    def restore(self, nodes: list[NodeFacts], next_id: int) -> None:
        """Make the table what it was when it was exported; files are closed still."""
        self._next_id = next_id
        for facts in nodes:
            node = self.root
            if facts.node_id != ROOT_ID:
                node = Node(facts.node_id, facts.kind, facts.key, dir_id=facts.dir_id, dir_tags=facts.dir_tags)
                self._by_id[node.node_id] = node
                if facts.has_key:
                    self._by_key[node.key] = node
                elif facts.names:
                    node.damage = CorruptFile("the entry was damaged when it was looked up", IntegrityReason.OTHER_SLOT)
                if node.is_dir and facts.descriptor >= 0:
                    node.descriptor = facts.descriptor
                    self._open_dirs[node.node_id] = node
            node.lookups, node.handles = facts.lookups, facts.handles
            node.synced_entry, node.keep_cache = facts.synced_entry, facts.keep_cache and bool(facts.handles)
            node.unread = False
        for facts in nodes:
            for parent_id, name, disk_name in facts.names:
                self.link(self._by_id[facts.node_id], self._by_id[parent_id], name, disk_name)

    # --- directory descriptors --------------------------------------------------------------------------------

    def descriptor(self, node: Node) -> int:
        """Return an open descriptor of a directory; valid until the next call for another one.

        Raises:
            OSError: if it is gone or no directory.
        """
        if node.descriptor < 0:
            place = node.place()
            if place is None:
                raise OSError(2, "directory was removed")
            parent, _, disk_name = place
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._keep_open(node, os.open(disk_name, flags, dir_fd=self.descriptor(parent)))
        elif node is not self.root:
            self._open_dirs.move_to_end(node.node_id)
        return node.descriptor

    def take_descriptor(self, node: Node, descriptor: int) -> bool:
        """Let a directory that the kernel knows have an open descriptor of itself; return whether it wants it."""
        if node.descriptor >= 0 or node.lookups <= 0:
            return False
        self._keep_open(node, descriptor)
        return True

    def _keep_open(self, node: Node, descriptor: int) -> None:
        node.descriptor = descriptor
        while len(self._open_dirs) >= _OPEN_DIRECTORIES_MAX:
            self._close_dir(next(iter(self._open_dirs.values())))
        self._open_dirs[node.node_id] = node

    def _close_dir(self, node: Node) -> None:
        if node.is_dir and node.descriptor >= 0 and node is not self.root:
            os.close(node.descriptor)
            node.descriptor = -1
            self._open_dirs.pop(node.node_id, None)


def _nobody() -> None:
    """Where the table may grow, nobody is told."""


def _never(_node: Node) -> bool:
    """Where nothing is written, nothing waits."""
    return False
