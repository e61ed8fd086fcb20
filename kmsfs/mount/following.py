"""A volume that another mount writes meanwhile, on this machine or on another one that has the same cipher directory.

Nothing is trusted that the writer may be changing: every header of a session that has not ended is verified, as after a crash,
and what was read while it changed is read again. What a file holds is what the writer had stored when it was opened, or later.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.recovery import SessionRules
from kmsfs.envelope.slots import read_slots
from kmsfs.errors import CorruptFile, CorruptVolume
from kmsfs.mount.attributes import Stat
from kmsfs.mount.durability import Vfs
from kmsfs.mount.nodes import Node

T = TypeVar("T")
_PAUSES = (0.002, 0.01, 0.05, 0.1, 0.2)
"""Before what did not fit together is read again: a commit of the writer is some writes long."""
_LOOK_SECONDS = 1.0
"""An open file is compared with what is stored so often, when somebody asks for its size."""


@dataclass(slots=True)
class FollowerRules(SessionRules):
    """`current` is the first session that had not begun when kmsd was asked: neither it nor any later one is trusted."""

    def trusts(self, session: int) -> bool:
        """Whether a session had ended, and cleanly."""
        return session < self.current and session not in self.unclean

    @property
    def clean(self) -> bool:
        """Somebody writes, or may begin to."""
        return False


class _SeenFile(PosixFile):
    """A file that is only read: what the writer has not made durable is the writer's to make."""

    __slots__ = ()

    def datasync(self) -> None:
        """Do nothing."""


class FollowingVfs(Vfs):
    """The file system of who only reads, and follows."""

    shows_damaged = False
    """Its writer may be at what does not verify, and nothing is removed here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_attributes = False
        self._looked: dict[Node, float] = {}

    def open_backing(self, *args: Any, **kwargs: Any) -> PosixFile:
        """As the writer's."""
        return _SeenFile(super().open_backing(*args, **kwargs).descriptor)

    def open(self, node: Node, *, truncate: bool = False) -> bool:
        """Open a file as it is stored now; nothing that was cached of it counts."""
        self._look_again(node)
        self._again(node, lambda: super(FollowingVfs, self).open(node, truncate=truncate))
        return False

    def read(self, node: Node, size: int, offset: int) -> bytes | memoryview:
        """Read from an open file."""
        return self._again(node, lambda: super(FollowingVfs, self).read(node, size, offset))

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Stat]:
        """Find an entry."""
        return self._again(None, lambda: super(FollowingVfs, self).lookup(parent, name))

    def list_entry(self, *args: Any, **kwargs: Any) -> Any:
        """Find an entry of a listing."""
        return self._again(None, lambda: super(FollowingVfs, self).list_entry(*args, **kwargs))

    def enter(
        self, parent: Node, name: bytes, disk_name: str, facts: os.stat_result, *, listed: bool = False
    ) -> tuple[Node, Stat]:
        """Adopt an entry; an inode whose number another file had is another node."""
        file_id = self._file_id(parent, disk_name) if stat.S_ISREG(facts.st_mode) else b""
        known = self.nodes.of_inode((facts.st_dev, facts.st_ino))
        if known is not None and known.file is None and known.file_id and known.file_id != file_id:
            self.nodes.disown_key(known)
        node, answer = super().enter(parent, name, disk_name, facts, listed=listed)
        node.file_id = file_id
        return node, answer

    def acquire(self, node: Node, *, at_home: bool = True) -> Kf1File:
        """Return the node's open file.

        Raises:
            OSError: ESTALE, if neither name nor number are that file's any more; the kernel looks again.
        """
        if node.file is not None:
            return super().acquire(node, at_home=at_home)
        self._drop_old_names(node)
        file = super().acquire(node, at_home=at_home)
        facts = os.fstat(node.descriptor)
        if (facts.st_dev, facts.st_ino) != node.key or node.file_id not in (b"", file.attributes.file_id):
            self.give_back(node)
            raise OSError(errno.ESTALE, "the name has become another file's meanwhile")
        return file

    def getattr(self, node: Node) -> Stat:
        """Return attributes; of an open file too as they are stored, give or take a second."""
        if node.file is None:
            self._drop_old_names(node)
        if node.file is not None and time.monotonic() - self._looked.get(node, 0.0) > _LOOK_SECONDS:
            self._again(node, lambda: self._look_again(node))
        return self._again(node, lambda: super(FollowingVfs, self).getattr(node))

    def close_file(self, node: Node) -> None:
        """Close a node's file."""
        self._looked.pop(node, None)
        super().close_file(node)

    def _check_dir_place(self, node: Node, parent: Node, name: bytes, disk_name: str) -> None:
        before = node.dir_id
        self._load_dir_id(node, parent, name, disk_name)
        if before and before != node.dir_id:
            self._sealed_names.clear()

    def _file_id(self, parent: Node, disk_name: str) -> bytes:
        """Return which file an entry is; nothing if it has no header yet, or is gone."""
        try:
            descriptor = os.open(disk_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.nodes.descriptor(parent))
        except OSError:
            return b""
        try:
            pair = read_slots(self.keys, PosixFile(descriptor))
            return pair.valid[0].clear.file_id if pair.valid else b""
        except CorruptFile:
            return b""
        finally:
            os.close(descriptor)

    def _drop_old_names(self, node: Node) -> None:
        for (parent_id, name), disk_name in list(node.names.items()):
            parent = node.parents[parent_id]
            try:
                facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
            except OSError:
                facts = None
            if facts is None or (facts.st_dev, facts.st_ino) != node.key:
                self.nodes.unlink(parent, name)

    def _look_again(self, node: Node) -> None:
        """Go on from what is stored of an open file now."""
        if node.file is None:
            return
        backing = _SeenFile(node.descriptor)
        pair = read_slots(self.keys, backing)
        if not pair.valid or pair.valid[0].clear.generation != node.file.committed_generation:
            node.file = Kf1File.open_pair(self.tools, backing, pair, None, known=False)
        self._looked[node] = time.monotonic()

    def _again(self, node: Node | None, work: Callable[[], T]) -> T:
        for pause in _PAUSES:
            try:
                return work()
            except (CorruptFile, CorruptVolume):
                time.sleep(pause)
            if node is not None:
                try:
                    self._look_again(node)
                except CorruptFile:
                    continue
        return work()
