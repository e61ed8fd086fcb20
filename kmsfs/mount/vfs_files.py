"""File operations: create, open, read, write, allocate, seek, fsync."""

import contextlib
import errno
import os
import stat
import time

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope import content
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.mount.attributes import Requester, Stat
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import GONE, MADE, Recent
from kmsfs.mount.vfs_xattrs import ExtrasOperations

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16


class FileOperations(ExtrasOperations):
    """What happens to files."""

    def create(self, parent: Node, name: bytes, mode: int, who: Requester) -> tuple[Node, Stat]:
        """Create a regular file and open it; the caller counts the lookup and calls `release`.

        Raises:
            OSError: EEXIST, ENOSPC, EROFS and the like.
            KmsfsError: as GenerateDataKey.
        """
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        fresh = self.provider.fresh(self.key_for(parent))
        self.changed_here(disk_name, MADE)
        directory = self.nodes.descriptor(parent)
        self.put_sidecar(directory, disk_name, sidecar)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = self.made_mode(parent, mode, who)
        backing = PosixFile(os.open(disk_name, flags, stat.S_IMODE(mode), dir_fd=directory))
        try:
            self.own(parent, disk_name, who, mode)
            facts = os.fstat(backing.descriptor)
            file = Kf1File.create(self.tools, backing, fresh)
        except BaseException:
            backing.close()
            self.undo_making(directory, disk_name)
            raise
        node = self.nodes.adopt(parent, name, disk_name, facts)
        file.attributes.primary_dir, file.attributes.name = self.dir_id(parent), name
        self._opened_new(node, file, backing)
        return node, self._stat(node, facts, None, b"")

    def undo_making(self, directory: int, disk_name: str) -> None:
        """Take back an entry that could not be given to its maker, by a quota for instance: he was told that it failed."""
        self.changed_here(disk_name, GONE)
        with contextlib.suppress(OSError):
            os.unlink(disk_name, dir_fd=directory)

    def _opened_new(self, node: Node, file: Kf1File, backing: PosixFile) -> None:
        file.attributes.mtime_ns = file.attributes.btime_ns = time.time_ns()
        node.file, node.descriptor = file, backing.descriptor
        node.handles += 1
        node.synced_entry = False
        self.open_files[node] = None
        self.recent_counter += 1
        self.recent[node.key] = Recent(None, self.recent_counter)

    def create_nameless(self, parent: Node, mode: int, who: Requester) -> tuple[Node, Stat]:
        """Create and open a regular file without a name, which `link` may give it (open(2), O_TMPFILE).

        Raises:
            OSError: EOPNOTSUPP if the backing store cannot; ENOSPC, EROFS and the like.
            KmsfsError: as GenerateDataKey.
        """
        self.require_unlocked()
        self.require_writable()
        fresh = self.provider.fresh(self.key_for(parent))
        mode = stat.S_IMODE(self.made_mode(parent, mode, who))
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        backing = PosixFile(os.open(".", flags, mode, dir_fd=self.nodes.descriptor(parent)))
        try:
            if self.privileged:
                os.fchown(backing.descriptor, *self.new_owner(os.fstat(self.nodes.descriptor(parent)), who))
                os.fchmod(backing.descriptor, mode)
            facts = os.fstat(backing.descriptor)
            node = self.nodes.adopt_nameless(facts)
            file = Kf1File.create(self.tools, backing, fresh)
        except BaseException:
            backing.close()
            raise
        self._opened_new(node, file, backing)
        return node, self._stat(node, facts, None, b"")

    def put_sidecar(self, directory: int, disk_name: str, sidecar: str | None) -> None:
        """Make the sidecar of a long name before the name itself; one that is there says the same."""
        if sidecar is not None:
            try:
                os.symlink(sidecar, "s" + disk_name[1:], dir_fd=directory)
            except FileExistsError:
                return

    def open(self, node: Node, *, truncate: bool = False) -> bool:
        """Open a file: one authorised Decrypt of its data key. Returns whether cached pages are still right.

        Raises:
            OSError, CorruptFile, KmsfsError: damage, denial, a disabled key and the like.
        """
        self.require_unlocked()
        if truncate:
            self.require_writable()
        file = self.acquire(node)
        try:
            self._authorise(node, file)
            if truncate and file.size:
                content.truncate(file, 0)
                file.attributes.mtime_ns = time.time_ns()
            elif self.options.put_off:
                self.warm(node)
            else:
                file.unlock()
        except BaseException:
            self.give_back(node)
            raise
        keep, node.keep_cache = node.keep_cache, True
        return keep

    def _authorise(self, node: Node, file: Kf1File) -> None:
        """Get the file's keys; where kmsd has to be asked, ask for those of files beside it in the same call."""
        file.require_fresh()
        place = node.place()
        if file.file_keys is None and self.ahead is not None and place is not None:
            file_id, wrapped = file.clear.file_id, file.clear.wrapped_key
            if not self.provider.holds(file_id):
                directory = place[0]
                beside = self.ahead.beside(
                    directory.node_id, self.nodes.descriptor(directory), node.key[1], wrapped, self.provider.ahead_used
                )
                self.reading_through = (directory, self.asked_by)
                if beside:
                    self.provider.fetch([(file_id, wrapped), *beside])
        file.authorise()

    def release(self, node: Node) -> None:
        """Close one handle."""
        self.give_back(node)

    def file_of(self, node: Node) -> Kf1File:
        """Return the open file of a node.

        Raises:
            OSError: EBADF if it is not open.
            KmsfsError: if the volume's key may not be used.
        """
        self.require_unlocked()
        if node.file is None:
            raise OSError(errno.EBADF, "file is not open")
        return node.file

    def read(self, node: Node, size: int, offset: int) -> bytes | memoryview:
        """Read from an open file; the result may be a view that the next call reuses."""
        return content.read(self.file_of(node), size, offset)

    def write(self, node: Node, data: bytes | memoryview, offset: int, *, cached: bool) -> int:
        """Write to an open file; `cached` pages bring their modification time by setattr later.

        Raises:
            StorageError: ENOSPC and the like.
        """
        self.require_writable()
        file = self.file_of(node)
        content.write(file, data, offset)
        if not cached or not self.options.kernel_times:
            file.attributes.mtime_ns = time.time_ns()
        if file.inline is not None:
            # A small file is one header: writing it while the disk is nearly full lets close() report that.
            if self.may_put_off():
                self.restless[node] = None
            else:
                file.commit()
        return len(data)

    def allocate(self, node: Node, mode: int, offset: int, length: int) -> None:
        """fallocate(2): reserve, punch, zero.

        Raises:
            OSError: EOPNOTSUPP, ENOSPC, EFBIG.
        """
        self.require_writable()
        file = self.file_of(node)
        end = offset + length
        if mode & _PUNCH_HOLE:
            content.punch(file, offset, length)
        elif mode & ~(_KEEP_SIZE | _ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "this kind of fallocate is not offered")
        else:
            space = self.statfs()
            if end - file.size > space.f_bavail * space.f_frsize:
                raise OSError(errno.ENOSPC, "the backing store has less free space than that")
            if mode & _ZERO_RANGE:
                content.punch(file, offset, length)
            if end > file.size and not mode & _KEEP_SIZE:
                content.truncate(file, end)
        file.attributes.mtime_ns = time.time_ns()
        file.attributes_dirty = True

    def seek(self, node: Node, offset: int, *, data: bool) -> int:
        """SEEK_DATA or SEEK_HOLE.

        Raises:
            StorageError: ENXIO.
        """
        return content.seek(self.file_of(node), offset, data=data)

    def sync_record(self, owner: bytes) -> None:
        """Make what is kept beside the header of a file, or of a directory, durable.

        Raises:
            StorageError: if the disk refuses.
        """
        self.extras.sync(owner)

    def fsync(self, node: Node) -> None:
        """Make a file durable: content, size, times, and the way to it.

        Raises:
            StorageError: if the disk refuses; the file is failed then until it is reopened.
        """
        self.require_unlocked()
        if self.options.read_only:
            return
        file = self.acquire(node)
        try:
            file.commit()
            if self.extras.waits(file.attributes.file_id):
                self.sync_record(file.attributes.file_id)
            # Before the file: its fsync makes its names durable, and a directory's id must not come after them.
            for parent in list(node.parents.values()):
                self.sync_fresh_directories(parent)
            if file.provisional or not node.synced_entry:
                file.make_durable(full=not node.synced_entry)
                node.synced_entry = True
                self.recent.pop(node.key, None)
        finally:
            self.give_back(node)
