"""Lookup and attributes: what stat answers, where it comes from, and what setattr changes."""

import errno
import os
import stat
import time

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.content import truncate
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.slots import peek_attributes, read_slots
from kmsfs.errors import AccessDenied, IntegrityError
from kmsfs.formats.fileheader import Attributes
from kmsfs.formats.listing import ListedFile
from kmsfs.mount.attributes import Changes, Requester, Stat, gone
from kmsfs.mount.listed import still_as
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs_open import OpenFiles


class AttributeOperations(OpenFiles):
    """What happens to attributes."""

    shows_damaged = True
    """Whether what is damaged can be looked up, to be removed."""

    # --- lookup --------------------------------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Stat]:
        """Return the node of an entry and its attributes; the caller counts the lookup.

        One that is damaged, or not where it was written, has the attributes of its backing inode: it can be removed, and whatever needs its header or its id is refused.

        Raises:
            OSError: ENOENT and the like.
        """
        self.require_unlocked()
        disk_name, _ = self.disk_name(parent, name)
        facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
        return self.enter(parent, name, disk_name, facts)

    def list_entry(
        self, parent: Node, name: bytes, disk_name: str, listed: ListedFile | None
    ) -> tuple[Node, Stat]:
        """As `lookup`, for an entry of a listing just made; `listed` is what is remembered of it, true or not any more.

        Raises:
            OSError: as `lookup`.
        """
        facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
        if listed is not None and still_as(listed, facts):
            node = self.nodes.adopt(parent, name, disk_name, facts)
            if node.file is None and node.attributes is None:
                node.attributes = listed.attributes(parent.dir_id)
                answer = self.told(facts)
                answer.size, answer.mtime_ns = listed.size, listed.mtime_ns
                return node, answer
        return self.enter(parent, name, disk_name, facts, listed=True)

    def enter(
        self, parent: Node, name: bytes, disk_name: str, facts: os.stat_result, *, listed: bool = False
    ) -> tuple[Node, Stat]:
        """Adopt an entry whose backing facts are known; verify its home first.

        A file that is looked up by itself will likely be opened, so its header is kept; not so one of a listing.
        """
        before = parent.kids.get(name)
        node = self.nodes.adopt(parent, name, disk_name, facts)
        try:
            if node.is_dir:
                self._check_dir_place(node, parent, name, disk_name)
            if node.is_file and node.file is None and node.attributes is None and not listed:
                self.keep_open(node, parent, disk_name, facts)
            return node, self._stat(node, facts, parent, name)
        except BaseException as error:
            if node in self.resting:
                self.close_file(node)
            if isinstance(error, IntegrityError) and self.shows_damaged:
                # With the size that lies on the backing store, so that nobody takes it for empty.
                self.complain("an entry is damaged, and can only be removed: %s", error)
                damaged = self.nodes.adopt_damaged(parent, name, disk_name, facts, before, error)
                self.nodes.drop_if_unused(node)
                return damaged, self.told(facts)
            self.nodes.drop_if_unused(node)
            raise

    def _check_dir_place(self, node: Node, parent: Node, name: bytes, disk_name: str) -> None:
        if not node.dir_id:
            self._load_dir_id(node, parent, name, disk_name)
        elif self.keys.dir_tag(self.dir_id(parent), name) not in node.dir_tags:
            self.misplaced(f"directory {name!r}")

    def getattr(self, node: Node) -> Stat:
        """Return a node's attributes.

        Raises:
            OSError: ESTALE if the name is gone, and nobody kept what it was.
            CorruptFile: if it was damaged since it was looked up.
        """
        self.require_unlocked()
        if node.is_file and node.file is not None and node.descriptor >= 0:
            return self._stat(node, os.fstat(node.descriptor), None, b"")
        if node.is_dir:
            return self.told(os.fstat(self.nodes.descriptor(node)))
        place = node.place()
        if place is None and node.parted is not None:
            return self._parted(node.parted)
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        parent, name, disk_name = place
        facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
        return self._stat(node, facts, parent, name)

    def _parted(self, parted: tuple[Stat, str]) -> Stat:
        answer, stored = parted
        if stored:
            answer.size = len(self.keys.open_link(stored))
        return answer

    def birth_ns(self, node: Node) -> int | None:
        """Return when a file was made, in nanoseconds since the epoch; None where nothing says so."""
        attributes = node.file.attributes if node.file is not None else node.attributes
        return attributes.btime_ns if attributes is not None else None

    def _stat(self, node: Node, facts: os.stat_result, parent: Node | None, name: bytes) -> Stat:
        answer = self.told(facts)
        if node.damage is not None:
            return answer
        if node.is_file:
            attributes = node.file.attributes if node.file is not None else node.attributes
            if attributes is None:
                attributes = self._peek(node, facts)
            if attributes is not None:
                if parent is not None:
                    self.check_home(attributes, parent, name)
                answer.size = attributes.size
                answer.mtime_ns = attributes.mtime_ns
            else:
                answer.size = 0
        elif node.kind == stat.S_IFLNK:
            answer.size = len(self.readlink(node))
        return answer

    def _peek(self, node: Node, facts: os.stat_result) -> Attributes | None:
        """Return the attributes of a file that is not open, from its newest trusted header; None if it has none yet."""
        if not facts.st_size and not self.tools.rules.clean:
            return None
        place = node.place()
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        backing = self.open_backing(place[0], place[2], facts, write=False)
        try:
            attributes = peek_attributes(self.keys, backing, self.tools.rules.trusts)
            if attributes is None:
                pair = read_slots(self.keys, backing)
                if not pair.valid or pair.damaged is not None or not self.tools.rules.trusts(pair.valid[0].clear.session):
                    return self._peek_recovered(node, backing)
                attributes = pair.valid[0].attributes
            if self.keep_attributes:
                node.attributes = attributes
            return attributes
        finally:
            backing.close()

    def _peek_recovered(self, node: Node, backing: PosixFile) -> Attributes:
        try:
            return Kf1File.open(self.tools, backing, *self._durability_of(node)).attributes
        except AccessDenied:
            pair = read_slots(self.keys, backing)
            if not pair.valid:
                raise
            return pair.valid[0].attributes

    def readlink(self, node: Node) -> bytes:
        """Return a symlink's target.

        Raises:
            CorruptFile: if it is damaged.
        """
        place = node.place()
        if place is None and node.parted is not None:
            return self.keys.open_link(node.parted[1])
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        return self.keys.open_link(os.readlink(place[2], dir_fd=self.nodes.descriptor(place[0])))

    # --- setattr ----------------------------------------------------------------------------------------------

    def setattr(self, node: Node, changes: Changes) -> Stat:
        """Change attributes and return the new ones.

        Raises:
            OSError, KmsfsError: EROFS, ENOSPC, damage, denial and the like.
        """
        self.require_unlocked()
        self.require_writable()
        self._require_own(changes)
        if node.parted is not None and not node.names:
            return _changed(self._parted(node.parted), changes)
        if not node.is_dir and node.descriptor < 0 and not node.names and changes.only_times:
            # The kernel writes back the times of an inode whose last name is gone: an error would stick to the mount.
            return gone(node.key[1], node.kind)
        if changes.size is not None:
            self._set_size(node, changes.size)
        uid = -1 if changes.uid is None or self.options.uid is not None else changes.uid
        gid = -1 if changes.gid is None or self.options.gid is not None else changes.gid
        if (uid, gid) != (-1, -1):
            self._chown(node, uid, gid)
        if changes.mode is not None:
            self._chmod(node, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, changes)
        return self.getattr(node)

    def _require_own(self, changes: Changes) -> None:
        for wanted, fixed in ((changes.uid, self.options.uid), (changes.gid, self.options.gid)):
            if wanted is not None and fixed is not None and wanted != fixed:
                raise OSError(errno.EPERM, "the mount's options say whose everything is")

    def _set_size(self, node: Node, size: int) -> None:
        if not node.is_file:
            raise OSError(errno.EINVAL, "not a file")
        file = self.acquire(node)
        try:
            truncate(file, size)
            file.attributes.mtime_ns = time.time_ns()
            file.attributes_dirty = True
        finally:
            self.give_back(node)

    def _chmod(self, node: Node, mode: int) -> None:
        place = node.place()
        if node.descriptor >= 0:
            os.fchmod(node.descriptor, mode)
        elif place is not None:
            os.chmod(place[2], mode, dir_fd=self.nodes.descriptor(place[0]))
        else:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")

    def _chown(self, node: Node, uid: int, gid: int) -> None:
        place = node.place()
        if node.descriptor >= 0:
            os.fchown(node.descriptor, uid, gid)
        elif place is not None:
            os.chown(place[2], uid, gid, dir_fd=self.nodes.descriptor(place[0]), follow_symlinks=False)
        else:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")

    def _set_times(self, node: Node, changes: Changes) -> None:
        if node.is_file and changes.mtime_ns is not None:
            known = node.file.attributes if node.file is not None else node.attributes
            if changes.atime_ns is None and known is not None and known.mtime_ns == changes.mtime_ns:
                return
            file = self.acquire(node)
            file.attributes.mtime_ns = changes.mtime_ns
            file.attributes_dirty = True
            self.give_back(node)
            if changes.atime_ns is None:
                return
        facts = self._backing_facts(node)
        times = (
            facts.st_atime_ns if changes.atime_ns is None else changes.atime_ns,
            facts.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        )
        place = node.place()
        if node.descriptor >= 0:
            os.utime(node.descriptor, ns=times)
        elif place is not None:
            os.utime(place[2], ns=times, dir_fd=self.nodes.descriptor(place[0]), follow_symlinks=False)

    def _backing_facts(self, node: Node) -> os.stat_result:
        if node.descriptor >= 0:
            return os.fstat(node.descriptor)
        place = node.place()
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        return os.stat(place[2], dir_fd=self.nodes.descriptor(place[0]), follow_symlinks=False)

    def own(self, parent: Node, disk_name: str, who: Requester, mode: int, *, is_dir: bool = False) -> None:
        """Give a new entry to its maker, as the kernel would: setgid directories hand down their group."""
        if not self.privileged:
            return
        above = os.fstat(self.nodes.descriptor(parent))
        uid, gid = self.new_owner(above, who)
        if is_dir and above.st_mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        if (uid, gid) != (0, 0) or above.st_mode & stat.S_ISGID:
            directory = self.nodes.descriptor(parent)
            os.chown(disk_name, uid, gid, dir_fd=directory, follow_symlinks=False)
            if mode & 0o7000 and not stat.S_ISLNK(mode):
                made = os.stat(disk_name, dir_fd=directory, follow_symlinks=False).st_mode
                os.chmod(disk_name, stat.S_IMODE(made) | mode & 0o7000, dir_fd=directory)

    def statfs(self) -> os.statvfs_result:
        """Return the backing store's space."""
        self.empty_trash()
        return os.fstatvfs(self.nodes.root.descriptor)


def _changed(facts: Stat, changes: Changes) -> Stat:
    """Change what is remembered of a symlink or the like that has no name any more."""
    if changes.size is not None:
        raise OSError(errno.EINVAL, "not a file")
    if changes.mode is not None:
        facts.mode = stat.S_IFMT(facts.mode) | stat.S_IMODE(changes.mode)
    facts.uid = facts.uid if changes.uid is None else changes.uid
    facts.gid = facts.gid if changes.gid is None else changes.gid
    facts.atime_ns = facts.atime_ns if changes.atime_ns is None else changes.atime_ns
    facts.mtime_ns = facts.mtime_ns if changes.mtime_ns is None else changes.mtime_ns
    return facts
