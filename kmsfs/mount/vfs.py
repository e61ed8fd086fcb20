"""The file system's core: lookup, attributes, opening files, home binding, revocation. No FUSE in here.

`Vfs` is put together from families of operations; each family is a mixin over `VfsBase`. Every public method is
called with `lock` held by the transport; background work takes the lock itself.
"""

import errno
import logging
import os
import resource
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.caching import CachingProvider
from kmsfs.envelope.content import truncate
from kmsfs.envelope.kf1file import FileTools, Kf1File
from kmsfs.envelope.slots import read_slots
from kmsfs.errors import AccessDenied, CorruptFile, CorruptVolume, IntegrityReason, KeyLease, KmsfsError
from kmsfs.formats.fileheader import Attributes
from kmsfs.mount.attributes import Changes, Requester, Stat, from_backing
from kmsfs.mount.nodes import Node, NodeTable

_LOG = logging.getLogger("kmsfs.mount")
NAME_MAX = 255
_NAMES_HELD = 8192
_RESTING_MAX = 4096


@dataclass(slots=True)
class VfsOptions:
    """How a volume is mounted."""

    read_only: bool = False
    bind: str = "enforce"
    kernel_times: bool = True
    """The kernel keeps modification times of cached writes and tells them by setattr."""


class VfsBase:
    """State and steps that every family of operations uses."""

    def __init__(
        self,
        tools: FileTools,
        provider: CachingProvider,
        root_descriptor: int,
        root_dir_id: bytes,
        options: VfsOptions,
    ) -> None:
        self.lock = threading.RLock()
        self.tools = tools
        self.keys = tools.keys
        self.provider = provider
        self.options = options
        self.nodes = NodeTable(root_descriptor, root_dir_id)
        self.recent: dict[tuple[int, int], tuple[int | None, int]] = {}
        self.recent_counter = 0
        self.open_files: set[Node] = set()
        self.resting: OrderedDict[Node, None] = OrderedDict()
        """Files that nobody has open, kept without keys so that the next open, rename or utimens is cheap."""
        self.resting_max = min(_RESTING_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self.locked: KmsfsError | None = None
        self.revalidate: Callable[[], None] = lambda: None
        self.forget_directory: Callable[[Node], None] = lambda _node: None
        self.lease_holds: Callable[[], bool] = lambda: True
        self.privileged = os.geteuid() == 0
        self._sealed_names: dict[tuple[int, bytes], tuple[str, str | None]] = {}
        """Names on disk by directory and plain name: deterministic, so never wrong while the directory's node lives."""
        self.keep_attributes = True
        """Whether attributes of closed files are remembered: only where changes behind the mount are noticed."""
        self.own_changes: set[str] = set()
        self.own_changes_before: set[str] = set()

    # --- guards -----------------------------------------------------------------------------------------------

    def require_unlocked(self) -> None:
        """Refuse everything while the volume's own key may not be used.

        Raises:
            KmsfsError: why the key may not be used.
        """
        if not self.lease_holds():
            self.drop_keys()
            raise KeyLease(
                "the key daemon is silent: the volume is unusable until it is back", hint="start kmsd"
            )
        if self.locked is not None:
            self.revalidate()
            if self.locked is not None:
                raise self.locked

    def changed_here(self, disk_name: str) -> None:
        """Remember that we changed an entry ourselves, so that the watcher does not take it for somebody else's."""
        self.own_changes.add(disk_name)

    def rotate_own_changes(self) -> None:
        """Forget our own changes of two rounds ago."""
        self.own_changes_before, self.own_changes = self.own_changes, set()

    def require_writable(self) -> None:
        """Refuse changes on a read-only mount.

        Raises:
            OSError: EROFS.
        """
        if self.options.read_only:
            raise OSError(errno.EROFS, "read-only mount")

    def check_name(self, name: bytes) -> None:
        """Refuse names that are too long.

        Raises:
            OSError: ENAMETOOLONG.
        """
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")

    # --- names ------------------------------------------------------------------------------------------------

    def disk_name(self, parent: Node, name: bytes) -> tuple[str, str | None]:
        """Return (name on disk, sidecar target) of an entry.

        Raises:
            OSError: ENOTDIR, ENAMETOOLONG.
            CorruptVolume: if the directory's id is damaged.
        """
        if not parent.is_dir:
            raise OSError(errno.ENOTDIR, "not a directory")
        self.check_name(name)
        place = (parent.node_id, name)
        sealed = self._sealed_names.get(place)
        if sealed is None:
            sealed = self.keys.seal_name(self.dir_id(parent), name)
            if len(self._sealed_names) >= _NAMES_HELD:
                self._sealed_names.clear()
            self._sealed_names[place] = sealed
        return sealed

    def dir_id(self, node: Node) -> bytes:
        """Return a directory's id, checked against its place."""
        if not node.dir_id:
            place = node.place()
            if place is None:
                raise OSError(errno.ENOENT, "directory was removed")
            self._load_dir_id(node, *place)
        return node.dir_id

    def _load_dir_id(self, node: Node, parent: Node, name: bytes, disk_name: str) -> None:
        try:
            target = os.readlink(f"{disk_name}/.kd", dir_fd=self.nodes.descriptor(parent))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            self._remake_dir_id(node, parent, name)
            return
        dir_id, tags = self.keys.open_dir_id(target)
        if self.keys.dir_tag(self.dir_id(parent), name) not in tags:
            self.misplaced(f"directory {name!r}")
        node.dir_id, node.dir_tags = dir_id, tags

    def _remake_dir_id(self, node: Node, parent: Node, name: bytes) -> None:
        """A crash between mkdir and its id leaves an empty directory: give it one. Anything else is damage."""
        descriptor = self.nodes.descriptor(node)
        if self.tools.rules.clean or os.listdir(descriptor) or self.options.read_only:
            raise CorruptVolume("a directory has lost its id", hint="run `kmsfs check`")
        node.dir_id = self.tools.rng(16)
        node.dir_tags = [self.keys.dir_tag(self.dir_id(parent), name)]
        os.symlink(self.keys.seal_dir_id(node.dir_id, node.dir_tags), ".kd", dir_fd=descriptor)

    def misplaced(self, what: str) -> None:
        """Something is not where it was put: EIO on a clean volume, a warning after a crash.

        Raises:
            CorruptFile: on a clean volume that binds homes.
        """
        if self.options.bind == "enforce" and self.tools.rules.clean:
            raise CorruptFile(f"{what} is not where it was written", IntegrityReason.HOME)
        if self.options.bind != "off":
            _LOG.warning(
                "%s is not where it was written; accepted because the last session ended uncleanly", what
            )

    def check_home(self, attributes: Attributes, parent: Node, name: bytes) -> None:
        """Check that a file's header names this entry as one of its homes.

        Raises:
            CorruptFile: if it does not, on a clean volume.
        """
        dir_id = self.dir_id(parent)
        if attributes.primary_dir == dir_id and attributes.name == name:
            return
        if attributes.extra_homes and self.keys.home_tag(dir_id, name) in attributes.extra_homes:
            return
        self.misplaced(f"file {name!r}")

    # --- lookup and attributes --------------------------------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Stat]:
        """Return the node of an entry and its attributes; the caller counts the lookup.

        Raises:
            OSError: ENOENT and the like.
            CorruptFile: if the file's header is damaged or it is not where it was written.
        """
        self.require_unlocked()
        disk_name, _ = self.disk_name(parent, name)
        facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
        return self.enter(parent, name, disk_name, facts)

    def enter(self, parent: Node, name: bytes, disk_name: str, facts: os.stat_result) -> tuple[Node, Stat]:
        """Adopt an entry whose backing facts are known; verify its home first."""
        node = self.nodes.adopt(parent, name, disk_name, facts)
        try:
            if node.is_dir:
                self._check_dir_place(node, parent, name, disk_name)
            return node, self._stat(node, facts, parent, name)
        except BaseException:
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
            OSError, CorruptFile: as `lookup`.
        """
        self.require_unlocked()
        if node.is_file and node.file is not None and node.descriptor >= 0:
            return self._stat(node, os.fstat(node.descriptor), None, b"")
        if node.is_dir:
            return from_backing(os.fstat(self.nodes.descriptor(node)))
        place = node.place()
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        parent, name, disk_name = place
        facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
        return self._stat(node, facts, parent, name)

    def _stat(self, node: Node, facts: os.stat_result, parent: Node | None, name: bytes) -> Stat:
        answer = from_backing(facts)
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
        backing = self._open_backing(place[0], place[2], facts, write=False)
        try:
            pair = read_slots(self.keys, backing)
            if pair.valid and pair.damaged is None and self.tools.rules.trusts(pair.valid[0].clear.session):
                if self.keep_attributes:
                    node.attributes = pair.valid[0].attributes
                return pair.valid[0].attributes
            return self._peek_recovered(node, backing)
        finally:
            backing.close()

    def _peek_recovered(self, node: Node, backing: PosixFile) -> Attributes:
        try:
            known = node.key in self.recent
            durable = self.recent[node.key][0] if known else None
            return Kf1File.open(self.tools, backing, durable, known=known).attributes
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
        if place is None:
            raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
        return self.keys.open_link(os.readlink(place[2], dir_fd=self.nodes.descriptor(place[0])))

    # --- open files -------------------------------------------------------------------------------------------

    def _open_backing(self, parent: Node, disk_name: str, facts: os.stat_result, *, write: bool) -> PosixFile:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        directory = self.nodes.descriptor(parent)
        try:
            return PosixFile(os.open(disk_name, flags, dir_fd=directory))
        except PermissionError:
            if facts.st_uid != os.geteuid():
                raise
            # The owner's own mode bits bar us, not the owner of the data: the kernel has checked those.
            mode = stat.S_IMODE(facts.st_mode)
            os.chmod(disk_name, mode | 0o600, dir_fd=directory)
            try:
                return PosixFile(os.open(disk_name, flags, dir_fd=directory))
            finally:
                os.chmod(disk_name, mode, dir_fd=directory)

    def acquire(self, node: Node, *, at_home: bool = True) -> Kf1File:
        """Return the node's open file, opening it if needed; every call needs a `give_back`.

        `at_home` is False only while a rename has moved the entry and its header does not know yet.

        Raises:
            CorruptFile, KmsfsError, OSError: if it cannot be opened.
        """
        if node.file is None:
            place = node.place()
            if place is None:
                raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
            parent, name, disk_name = place
            facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
            backing = self._open_backing(parent, disk_name, facts, write=not self.options.read_only)
            try:
                node.file = self._open_file(node, backing, facts)
                if at_home:
                    self.check_home(node.file.attributes, parent, name)
            except BaseException:
                node.file = None
                backing.close()
                raise
            node.descriptor = backing.descriptor
            self.open_files.add(node)
        else:
            self.resting.pop(node, None)
        node.handles += 1
        return node.file

    def _open_file(self, node: Node, backing: PosixFile, facts: os.stat_result) -> Kf1File:
        if not facts.st_size and not self.tools.rules.clean:
            # Created by a session that crashed before its first commit: it is empty.
            made = Kf1File.create(self.tools, backing, self.provider.fresh())
            place = node.place()
            if place is not None:
                made.attributes.primary_dir, made.attributes.name = self.dir_id(place[0]), place[1]
            made.attributes.mtime_ns = made.attributes.btime_ns = facts.st_mtime_ns
            return made
        known = node.key in self.recent
        durable = self.recent[node.key][0] if known else None
        return Kf1File.open(self.tools, backing, durable, known=known)

    def give_back(self, node: Node) -> None:
        """Undo `acquire`. The last one commits; the file rests open for a while, without keys and plaintext.

        A file that cannot commit stays as it is and is tried again.
        """
        node.handles -= 1
        file = node.file
        if node.handles or file is None:
            return
        try:
            if not node.names or file.failed or self.options.read_only:
                self.close_file(node)
                return
            file.commit()
        except (KmsfsError, OSError) as error:
            _LOG.error("a file could not be stored yet: %s; it is kept in memory and tried again", error)
            return
        file.rest()
        self.resting[node] = None
        if len(self.resting) > self.resting_max:
            self.close_file(next(iter(self.resting)))

    def close_file(self, node: Node) -> None:
        """Commit and close a node's file.

        Raises:
            StorageError: if it cannot be committed; it stays open.
        """
        file = node.file
        if file is None:
            return
        if node.names and not file.failed and not self.options.read_only:
            file.commit()
            if file.provisional:
                self.recent_counter += 1
                self.recent[node.key] = (file.durable_slot, self.recent_counter)
            else:
                self.recent.pop(node.key, None)
        node.file = None
        node.descriptor = -1
        self.open_files.discard(node)
        self.resting.pop(node, None)
        self.own_changes.update(node.names.values())
        node.attributes = file.attributes if self.keep_attributes and not file.failed else None
        file.close()
        self.nodes.drop_if_unused(node)

    # --- setattr ----------------------------------------------------------------------------------------------

    def setattr(self, node: Node, changes: Changes) -> Stat:
        """Change attributes and return the new ones.

        Raises:
            OSError, KmsfsError: EROFS, ENOSPC, damage, denial and the like.
        """
        self.require_unlocked()
        self.require_writable()
        if changes.size is not None:
            self._set_size(node, changes.size)
        if changes.uid is not None or changes.gid is not None:
            self._chown(
                node, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid
            )
        if changes.mode is not None:
            self._chmod(node, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, changes)
        return self.getattr(node)

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
        gid = above.st_gid if above.st_mode & stat.S_ISGID else who.gid
        if is_dir and above.st_mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        if (who.uid, gid) != (0, 0) or above.st_mode & stat.S_ISGID:
            directory = self.nodes.descriptor(parent)
            os.chown(disk_name, who.uid, gid, dir_fd=directory, follow_symlinks=False)
            if mode & 0o7000 and not stat.S_ISLNK(mode):
                os.chmod(disk_name, stat.S_IMODE(mode), dir_fd=directory)

    def statfs(self) -> os.statvfs_result:
        """Return the backing store's space."""
        return os.fstatvfs(self.nodes.root.descriptor)

    # --- revocation -------------------------------------------------------------------------------------------

    def drop_keys(self) -> None:
        """Commit what is encrypted already, then forget every data key: the next use asks the daemon again."""
        for node in list(self.open_files):
            file = node.file
            if file is None:
                continue
            if file.dirty and file.file_keys is not None and not self.options.read_only:
                try:
                    file.commit()
                except (KmsfsError, OSError) as error:
                    _LOG.error("a file could not be stored before its key was dropped: %s", error)
            file.lock()
        self.provider.drop()
