"""Directory operations: make, remove, link, rename, list."""

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass

from kmsfs.backing.posix import rename_with_flags, sync_file_system
from kmsfs.envelope.volumekeys import DIR_ID_NAME
from kmsfs.errors import InvalidName, KmsfsError
from kmsfs.formats.listing import ListedFile
from kmsfs.formats.volume import CONFIG_NAME
from kmsfs.mount.attributes import Requester, Stat
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import GONE, MADE, MOVED_IN, MOVED_OUT
from kmsfs.mount.vfs_files import FileOperations

_LOG = logging.getLogger("kmsfs.mount")
_NOREPLACE, _EXCHANGE = 1, 2
_NEW_ID = ".kd~"
_FRESH_EACH_MAX = 64
"""More new directories than this are made durable by one syncfs instead of one by one."""


@dataclass(slots=True)
class Entry:
    """One directory entry of a listing."""

    name: bytes
    disk_name: str
    kind: int
    ino: int
    listed: ListedFile | None = None
    """What is remembered of a file."""


class DirectoryOperations(FileOperations):
    """What happens to names."""

    # --- making -----------------------------------------------------------------------------------------------

    def mkdir(self, parent: Node, name: bytes, mode: int, who: Requester) -> tuple[Node, Stat]:
        """Make a directory with its id.

        Raises:
            OSError, KmsfsError: as mkdir(2).
        """
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, MADE)
        directory = self.nodes.descriptor(parent)
        self.put_sidecar(directory, disk_name, sidecar)
        mode = self.made_mode(parent, mode, who)
        os.mkdir(disk_name, stat.S_IMODE(mode) | 0o700, dir_fd=directory)
        try:
            dir_id = self.tools.rng(16)
            tags = [self.keys.dir_tag(self.dir_id(parent), name)]
            os.symlink(self.keys.seal_dir_id(dir_id, tags), f"{disk_name}/{DIR_ID_NAME}", dir_fd=directory)
            if mode & 0o700 != 0o700:
                made = os.stat(disk_name, dir_fd=directory, follow_symlinks=False).st_mode
                os.chmod(disk_name, stat.S_IMODE(made) & ~0o700 | mode & 0o700, dir_fd=directory)
            self.own(parent, disk_name, who, mode, is_dir=True)
        except BaseException:
            self._undo_mkdir(directory, disk_name)
            raise
        facts = os.stat(disk_name, dir_fd=directory, follow_symlinks=False)
        node = self.nodes.adopt(parent, name, disk_name, facts)
        node.dir_id, node.dir_tags = dir_id, tags
        self.fresh_directories.add(node.key)
        return node, self._stat(node, facts, None, b"")

    def _undo_mkdir(self, directory: int, disk_name: str) -> None:
        self.changed_here(disk_name, GONE)
        with contextlib.suppress(OSError):
            os.unlink(f"{disk_name}/{DIR_ID_NAME}", dir_fd=directory)
        with contextlib.suppress(OSError):
            os.rmdir(disk_name, dir_fd=directory)

    def symlink(self, parent: Node, name: bytes, target: bytes, who: Requester) -> tuple[Node, Stat]:
        """Make a symbolic link.

        Raises:
            OSError, KmsfsError: as symlink(2).
        """
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, MADE)
        directory = self.nodes.descriptor(parent)
        self.put_sidecar(directory, disk_name, sidecar)
        os.symlink(self.keys.seal_link(target, self.tools.rng), disk_name, dir_fd=directory)
        self._own_or_undo(parent, directory, disk_name, who, stat.S_IFLNK)
        return self.enter(
            parent, name, disk_name, os.stat(disk_name, dir_fd=directory, follow_symlinks=False)
        )

    def mknod(self, parent: Node, name: bytes, mode: int, rdev: int, who: Requester) -> tuple[Node, Stat]:
        """Make a FIFO, socket, device node or an empty regular file.

        Raises:
            OSError, KmsfsError: as mknod(2).
        """
        if stat.S_ISREG(mode):
            node, facts = self.create(parent, name, mode, who)
            self.release(node)
            return node, facts
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, MADE)
        directory = self.nodes.descriptor(parent)
        self.put_sidecar(directory, disk_name, sidecar)
        os.mknod(disk_name, self.made_mode(parent, mode, who), rdev, dir_fd=directory)
        self._own_or_undo(parent, directory, disk_name, who, mode)
        return self.enter(
            parent, name, disk_name, os.stat(disk_name, dir_fd=directory, follow_symlinks=False)
        )

    def _own_or_undo(self, parent: Node, directory: int, disk_name: str, who: Requester, mode: int) -> None:
        try:
            self.own(parent, disk_name, who, mode)
        except BaseException:
            self.undo_making(directory, disk_name)
            raise

    def link(self, node: Node, parent: Node, name: bytes) -> Stat:
        """Make a hard link: the file's header learns of its new home first.

        Raises:
            OSError: EMLINK past 4,096 links; else as link(2).
            KmsfsError: damage and the like.
        """
        self.require_unlocked()
        self.require_writable()
        place = node.place()
        if place is None and node.descriptor < 0:
            raise OSError(errno.ENOENT, "no such file")
        if place is not None:
            self.require_same_key(node, place[0], parent)
        else:
            self.require_key_of(node, parent)
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, MADE)
        directory = self.nodes.descriptor(parent)
        if node.is_file:
            self.add_home(node, parent, name)
        self.put_sidecar(directory, disk_name, sidecar)
        target = self.nodes.descriptor(parent)
        if place is None:
            # A file without a name (O_TMPFILE) gets its first one.
            os.link(f"/proc/self/fd/{node.descriptor}", disk_name, dst_dir_fd=target, follow_symlinks=True)
        else:
            source = self.nodes.descriptor(place[0])
            os.link(place[2], disk_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        self.nodes.link(node, parent, name, disk_name)
        node.synced_entry = False
        return self.getattr(node)

    # --- removing ---------------------------------------------------------------------------------------------

    def unlink(self, parent: Node, name: bytes) -> Node | None:
        """Remove a name. Works on damaged entries too. Returns the node if it was known.

        Raises:
            OSError: as unlink(2).
        """
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, GONE)
        known = parent.kids.get(name)
        directory = self.nodes.descriptor(parent)
        if known is not None:
            self._before_name_goes(known, parent, disk_name)
        os.unlink(disk_name, dir_fd=directory)
        self._drop_sidecar(directory, disk_name, sidecar)
        node = self.nodes.unlink(parent, name)
        if node is not None:
            self._name_gone(node, parent, name)
        return node

    def _before_name_goes(self, node: Node, parent: Node, disk_name: str) -> None:
        """Keep what may still be asked of a symlink; learn whether a file's records go with this name.

        Links that are not known here may be left.
        """
        directory = self.nodes.descriptor(parent)
        if not node.is_file and not node.is_dir and node.lookups > 0 and len(node.names) == 1:
            with contextlib.suppress(KmsfsError, OSError):
                self._remember(node, directory, disk_name)
        if not node.is_file or node.file is not None or node.damage is not None:
            return
        node.leaving, facts = node.attributes, None
        if node.leaving is None:
            # Nothing is remembered of it: on a backing store without events, or since this process started anew.
            with contextlib.suppress(KmsfsError, OSError):
                facts = os.stat(disk_name, dir_fd=directory, follow_symlinks=False)
                self.keep_open(node, parent, disk_name, facts)
                if node.file is not None:
                    return
                node.leaving = self._peek(node, facts)
        if node.leaving is not None and node.leaving.extras:
            # An open file's record is removed with it; rm(1) works on one that cannot be opened too.
            try:
                self.acquire(node)
            except (KmsfsError, OSError):
                node.leaving = None
            else:
                self.give_back(node)
        elif node.leaving is not None and self.tools.freshness is not None:
            facts = facts or os.stat(disk_name, dir_fd=directory, follow_symlinks=False)
            node.lone = facts.st_nlink == 1

    def _remember(self, node: Node, directory: int, disk_name: str) -> None:
        """Whoever found a symlink may read it after another took its place, as whoever found a file may open it."""
        answer = self.told(os.stat(disk_name, dir_fd=directory, follow_symlinks=False))
        answer.nlink -= 1
        node.parted = answer, os.readlink(disk_name, dir_fd=directory) if stat.S_ISLNK(answer.mode) else ""

    def _name_gone(self, node: Node, parent: Node, name: bytes) -> None:
        if node.damage is not None:
            if node.is_file and self.tools.freshness is not None:
                self.tools.freshness.doubt()
            self.nodes.drop_if_unused(node)
            return
        if node.names or (node.is_file and node.descriptor >= 0 and os.fstat(node.descriptor).st_nlink):
            if node.is_file and (node.names or node.file is not None):
                self._drop_home(node, parent, name)
            return
        if node.file is not None:
            self.part(node)
        elif node.is_file and node.leaving is None and self.tools.freshness is not None:
            self.tools.freshness.doubt()
        elif node.lone and node.leaving is not None:
            self.file_gone(node.leaving)
        self.recent.pop(node.key, None)
        self.nodes.disown_key(node)
        self.nodes.drop_if_unused(node)

    def _drop_home(self, node: Node, parent: Node, name: bytes) -> None:
        """Take a removed link's home out of the header, so that the file cannot be put back there."""
        try:
            file = self.acquire(node, at_home=False)
        except (KmsfsError, OSError) as error:
            _LOG.warning("a removed link stays named in its file's header: %s", error)
            return
        self.forget_home(node, file, self.dir_id(parent), name)
        self.give_back(node)

    def _drop_sidecar(self, directory: int, disk_name: str, sidecar: str | None) -> None:
        if sidecar is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("s" + disk_name[1:], dir_fd=directory)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove an empty directory and its id.

        Raises:
            OSError: ENOTEMPTY and as rmdir(2).
        """
        self.require_unlocked()
        self.require_writable()
        disk_name, sidecar = self.disk_name(parent, name)
        self.changed_here(disk_name, GONE)
        directory = self.nodes.descriptor(parent)
        self._remove_empty(directory, disk_name, parent.kids.get(name))
        self._drop_sidecar(directory, disk_name, sidecar)
        self._directory_gone(parent, name)

    def _directory_gone(self, parent: Node, name: bytes) -> None:
        node = self.nodes.unlink(parent, name)
        if node is not None:
            self._forget_removed(node)

    def _forget_removed(self, node: Node) -> None:
        self.fresh_directories.discard(node.key)
        self.directory_dropped(node.dir_id)
        self.record_gone(node.dir_id)
        self.nodes.disown_key(node)
        self.forget_directory(node)
        self.nodes.drop_if_unused(node)

    def _remove_empty(self, directory: int, disk_name: str, node: Node | None) -> None:
        """Remove a directory that holds nothing but its id; put the id back if something appears meanwhile.

        Who found it before can ask of it still: its node, if there is one, keeps it open.
        """
        removed = False
        inner = os.open(
            disk_name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
        )
        try:
            if set(os.listdir(inner)) - {DIR_ID_NAME, _NEW_ID}:
                raise OSError(errno.ENOTEMPTY, "directory not empty")
            # What a crash may have left goes first: whatever fails, a directory keeps its id.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_NEW_ID, dir_fd=inner)
            target = None
            with contextlib.suppress(FileNotFoundError):
                # One that is damaged is no link: it goes all the same.
                with contextlib.suppress(OSError):
                    target = os.readlink(DIR_ID_NAME, dir_fd=inner)
                os.unlink(DIR_ID_NAME, dir_fd=inner)
            try:
                os.rmdir(disk_name, dir_fd=directory)
                removed = True
            except OSError:
                if target is not None:
                    os.symlink(target, DIR_ID_NAME, dir_fd=inner)
                    # As with a new one: before a file in it is durable, the id has to be.
                    facts = os.fstat(inner)
                    self.fresh_directories.add((facts.st_dev, facts.st_ino))
                raise
        finally:
            if not (removed and node is not None and self.nodes.take_descriptor(node, inner)):
                os.close(inner)

    # --- renaming ---------------------------------------------------------------------------------------------

    def rename(self, old_parent: Node, old_name: bytes, parent: Node, name: bytes, flags: int = 0) -> None:
        """renameat2(2) with NOREPLACE and EXCHANGE; open files and directories keep working.

        Raises:
            OSError: as renameat2(2).
            KmsfsError: damage and the like.
        """
        self.require_unlocked()
        self.require_writable()
        if flags & ~(_NOREPLACE | _EXCHANGE):
            raise OSError(errno.EINVAL, "unknown rename flags")
        old_disk, old_sidecar = self.disk_name(old_parent, old_name)
        new_disk, new_sidecar = self.disk_name(parent, name)
        if (old_parent, old_name) == (parent, name):
            return
        exchange = (MOVED_IN, MOVED_OUT) if flags & _EXCHANGE else ()
        self.changed_here(old_disk, MOVED_OUT, *exchange)
        self.changed_here(new_disk, MOVED_IN, *exchange)
        source = old_parent.kids.get(old_name) or self.lookup(old_parent, old_name)[0]
        target = self._rename_target(parent, name, new_disk, flags)
        if target is source:
            return
        self.require_same_key(source, old_parent, parent)
        if flags & _EXCHANGE and target is not None:
            self.require_same_key(target, parent, old_parent)
        if target is not None:
            self._before_name_goes(target, parent, new_disk)
        with contextlib.ExitStack() as held:
            # Open before anything has moved: what cannot be read is not renamed, and afterwards nothing has to be read.
            moves = [(source, (old_parent, old_name), (parent, name))]
            if flags & _EXCHANGE and target is not None:
                moves.append((target, (parent, name), (old_parent, old_name)))
            for node, old, new in moves:
                if node.is_file:
                    file = self.acquire(node)
                    held.callback(self.give_back, node)
                    # One that the disk failed to store would lose its new place when it is closed.
                    file.require_sound()
                    self.ready_home(node, file, old, new)
            for node, old, new in moves:
                self._before_rename(node, old, new, replaces=node is source and target is not None)
            self._rename_on_disk(old_parent, old_disk, parent, name, (new_disk, new_sidecar), flags, target)
            self._after_rename(source, (old_parent, old_name), (parent, name), new_disk, target, old_disk, flags)
        if not flags & _EXCHANGE:
            self._drop_sidecar(self.nodes.descriptor(old_parent), old_disk, old_sidecar)

    def _rename_target(self, parent: Node, name: bytes, disk_name: str, flags: int) -> Node | None:
        directory = self.nodes.descriptor(parent)
        if not flags & _EXCHANGE and not os.access(
            disk_name, os.F_OK, dir_fd=directory, follow_symlinks=False
        ):
            return None
        try:
            target, _ = self.lookup(parent, name)
        except KmsfsError:
            # Replacing a file that cannot be read is a way to be rid of it.
            return parent.kids.get(name)
        if flags & _NOREPLACE:
            raise OSError(errno.EEXIST, "name exists")
        if target.is_file and target.file is None and not flags:
            # Whoever has found it may open it still when it has no name any more.
            self.keep_open(target, parent, disk_name, os.stat(disk_name, dir_fd=directory, follow_symlinks=False))
        return target

    def _before_rename(self, node: Node, old: tuple[Node, bytes], new: tuple[Node, bytes], *, replaces: bool) -> None:
        if node.is_dir:
            # Both, and no other: its id may still name a place from which it came before a crash.
            self._write_dir_tags(node, [self.keys.dir_tag(self.dir_id(parent), name) for parent, name in (old, new)])
        elif node.is_file and replaces:
            self._settle_before_replace(node)

    def _settle_before_replace(self, node: Node) -> None:
        """Writing a new file and renaming it over the old one must leave the old or the new: commit the new one first."""
        file = node.file
        if file is None and node.key not in self.recent:
            return
        file = self.acquire(node)
        try:
            file.commit()
            if file.provisional:
                file.make_durable()
                self.recent.pop(node.key, None)
        finally:
            self.give_back(node)

    def _write_dir_tags(self, node: Node, tags: list[bytes]) -> None:
        self.dir_id(node)
        descriptor = self.nodes.descriptor(node)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW_ID, dir_fd=descriptor)
        os.symlink(self.keys.seal_dir_id(node.dir_id, tags), _NEW_ID, dir_fd=descriptor)
        os.rename(_NEW_ID, DIR_ID_NAME, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        node.dir_tags = tags

    def _rename_on_disk(
        self,
        old_parent: Node,
        old_disk: str,
        parent: Node,
        name: bytes,
        new: tuple[str, str | None],
        flags: int,
        target: Node | None,
    ) -> None:
        new_disk, new_sidecar = new
        self.put_sidecar(self.nodes.descriptor(parent), new_disk, new_sidecar)
        replaces = target is not None and target.is_dir and not flags
        if replaces:
            moved = os.stat(old_disk, dir_fd=self.nodes.descriptor(old_parent), follow_symlinks=False)
            if not stat.S_ISDIR(moved.st_mode):
                raise OSError(errno.EISDIR, "target is a directory")
            self._remove_empty(self.nodes.descriptor(parent), new_disk, target)
        old_descriptor = self.nodes.descriptor(old_parent)
        new_descriptor = self.nodes.descriptor(parent)
        try:
            if flags:
                rename_with_flags(old_descriptor, old_disk, new_descriptor, new_disk, flags)
            else:
                os.rename(old_disk, new_disk, src_dir_fd=old_descriptor, dst_dir_fd=new_descriptor)
        except OSError:
            if replaces:
                self._directory_gone(parent, name)
            raise

    def _after_rename(
        self, source: Node, old: tuple[Node, bytes], new: tuple[Node, bytes], new_disk: str,
        target: Node | None, old_disk: str, flags: int,
    ) -> None:  # fmt: skip
        old_parent, old_name = old
        parent, name = new
        self.nodes.unlink(old_parent, old_name)
        if target is not None:
            self.nodes.unlink(parent, name)
        self.nodes.link(source, parent, name, new_disk)
        self._rehome(source, old, new)
        if target is None:
            return
        if flags & _EXCHANGE:
            self.nodes.link(target, old_parent, old_name, old_disk)
            self._rehome(target, new, old)
        elif target.is_dir:
            self._forget_removed(target)
        else:
            self._name_gone(target, parent, name)

    def _rehome(self, node: Node, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """Write a moved entry's new place into what binds it."""
        node.synced_entry = False
        if node.is_dir:
            self._write_dir_tags(node, [self.keys.dir_tag(self.dir_id(new[0]), new[1])])
        elif node.is_file:
            file = self.acquire(node, at_home=False)
            try:
                self.move_home(node, file, old, new)
            finally:
                self.give_back(node)

    # --- listing ----------------------------------------------------------------------------------------------

    def list_directory(self, node: Node) -> list[Entry]:
        """Return the entries of a directory; names that were not made here are left out and logged.

        Raises:
            OSError, KmsfsError: if it cannot be read.
        """
        self.require_unlocked()
        dir_id = self.dir_id(node)
        descriptor = self.nodes.descriptor(node)
        known = self.listings.load(dir_id) if self.listings is not None and self.keep_attributes else {}
        found = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                disk_name = entry.name
                listed = known.get(disk_name)
                if listed is not None:
                    found.append(Entry(listed.name, disk_name, _kind_of(entry), entry.inode(), listed))
                    continue
                if disk_name[0] in ".s" or disk_name == CONFIG_NAME:
                    continue
                try:
                    sidecar = (
                        os.readlink("s" + disk_name[1:], dir_fd=descriptor) if disk_name[0] == "l" else None
                    )
                    name = self.keys.open_name(dir_id, disk_name, sidecar)
                except (InvalidName, OSError):
                    _LOG.warning(
                        "an entry of the cipher directory was not made by this volume; `kmsfs check` names it"
                    )
                    continue
                found.append(Entry(name, disk_name, _kind_of(entry), entry.inode()))
        return found

    def fsyncdir(self, node: Node) -> None:
        """Make a directory's entries durable, and the ids above it.

        Raises:
            StorageError: if the disk refuses.
        """
        self.require_unlocked()
        if self.options.read_only:
            return
        self._sync_every_fresh_directory()
        if self.removed(node):
            return
        if self.extras.waits(self.dir_id(node)):
            self.extras.sync(self.dir_id(node))
        self.sync_directory(node)

    def sync_record(self, owner: bytes) -> None:
        """As for files; where that makes the root's entries durable, and so renames from there, the ids of new directories first."""
        if not self.extras.folder_synced:
            self._sync_every_fresh_directory()
        super().sync_record(owner)

    def _sync_every_fresh_directory(self) -> None:
        """A rename that becomes durable here may have put something into any of them: their ids must not lag."""
        fresh = [self.nodes.of_inode(key) for key in self.fresh_directories]
        known = [node for node in fresh if node is not None]
        if len(known) < len(fresh) or len(known) > _FRESH_EACH_MAX:
            sync_file_system(self.nodes.root.descriptor)
        else:
            # Parents first: a directory's fsync makes its own name durable, and its parent's id must be there before.
            for node in sorted(known, key=lambda node: len(self.with_parents(node))):
                self.sync_directory(node)
        self.fresh_directories.clear()


def _kind_of(entry: "os.DirEntry[str]") -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
