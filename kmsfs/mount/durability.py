"""The whole volume's durability: the five-second tick, the clean end, healing after an unclean one."""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from kmsfs.backing.posix import sync_file_system
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.errors import KmsfsError, StorageError
from kmsfs.mount.listed import remember
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import Recent
from kmsfs.mount.vfs_dirs import DirectoryOperations

_LOG = logging.getLogger("kmsfs.mount")
TICK_SECONDS = 5.0


class Vfs(DirectoryOperations):
    """The whole file system."""

    def tick(self) -> None:
        """Commit what is dirty, put it beyond a power cut with one syncfs, and note what that covered.

        The barrier runs without the lock, so reads and writes go on meanwhile.

        Raises:
            StorageError: if the barrier fails, or the freshness records cannot be written.
            KeyLease: if another host may write the volume by now.
        """
        if self.options.read_only:
            return
        self.tools.rules.require_ours()
        self._barrier()
        if self.tools.freshness is not None:
            self.tools.freshness.flush()

    def _barrier(self, *, always: bool = False) -> None:
        with self.lock:
            self._commit_open_files()
            self._rewrite_doubtful()
            covered = [
                (n, n.file, n.file.clear.generation)
                for n in self.open_files
                if n.file and n.file.provisional and not n.file.failed
            ]
            closed = dict(self.recent)
            records = self.extras.unsynced()
            if not (covered or closed or records or self.names_changed or always):
                return
            self.names_changed = False
            fresh = set(self.fresh_directories)
            dropped = self.dropped_directories
            gone = self.tools.freshness.take_gone() if self.tools.freshness is not None else []
        try:
            sync_file_system(self.nodes.root.descriptor)
        except StorageError:
            self.names_changed = True
            self.extras.barrier_failed(records)
            for file_id in gone:
                self.file_removed(file_id)
            self._after_failed_barrier([(node, file) for node, file, _ in covered], closed)
            raise
        with self.lock:
            self.fresh_directories -= fresh
            self.extras.covered(records)
            for node, file, generation in covered:
                if node.file is file:
                    file.mark_durable(generation)
            for key, mark in closed.items():
                if self.recent.get(key) == mark and not mark.doubtful:
                    del self.recent[key]
                    known = self.nodes.of_inode(key)
                    # Of a file that was opened since, its own commits are covered above: this one may be older.
                    if known is None or known.file is None:
                        self._covered(mark)
                    if known is not None:
                        self.nodes.drop_if_unused(known)
            if self.tools.freshness is not None:
                self.tools.freshness.removed(gone)
            try:
                self.forget_dropped(dropped)
            except KmsfsError as error:
                _LOG.warning("the key daemon could not be told of a removed directory: %s", error)

    def _after_failed_barrier(
        self, opened: list[tuple[Node, Kf1File]], closed: dict[tuple[int, int], Recent]
    ) -> None:
        """Ask for each open file by itself whether it is stored; of closed ones the last durable commit stays the base.

        The kernel reports a failed write once and takes the pages for clean: the next barrier would succeed.
        """
        with self.lock:
            for node, file in opened:
                if node.file is file and file.provisional:
                    with contextlib.suppress(KmsfsError):
                        # What changed meanwhile, such as its place, would go with it if it is lost.
                        file.commit()
                    with contextlib.suppress(StorageError):
                        file.make_durable()
                    if file.failed and not node.handles:
                        # Nobody has it open: the next one who opens it goes on from what is durable.
                        self.close_file(node)
            for key, mark in closed.items():
                if self.recent.get(key) == mark:
                    self.recent[key] = replace(mark, doubtful=True)

    def _rewrite_doubtful(self) -> None:
        """Write once more what a failed barrier may have lost of closed files and of records, so that the next one stores it."""
        try:
            self.extras.write_lost_again()
        except StorageError as error:
            self.complain("extended attributes could not be written again: %s", error)
        for key, mark in list(self.recent.items()):
            node = self.nodes.of_inode(key) if mark.doubtful else None
            if node is None or node.file is not None or node.place() is None:
                continue
            try:
                self.acquire(node, at_home=False)
            except (KmsfsError, OSError) as error:
                self.complain("a file that the disk failed to store could not be written again: %s", error)
            else:
                self.give_back(node)

    def _covered(self, mark: Recent) -> None:
        if mark.commit is not None and self.tools.freshness is not None:
            self.tools.freshness.durable(mark.commit)

    def _commit_open_files(self) -> None:
        for node in list(self.open_files):
            file = node.file
            if file is None or file.failed:
                continue
            try:
                if file.dirty:
                    file.commit()
                if not node.handles and node not in self.resting:
                    self.settling.pop(node, None)
                    self.settle(node)
            except (KmsfsError, OSError) as error:
                self.complain("a file could not be stored yet: %s; it is kept in memory and tried again", error)
                if getattr(error, "os_errno", 0) == errno.ENOSPC and self.nothing_free():
                    # The others would fail as this one did: thousands of tries every five seconds help nobody.
                    return

    def finish(self) -> bool:
        """Commit and sync everything; return whether all of it is stored, so that the session ended cleanly.

        Raises:
            StorageError: if the barrier fails, or the freshness records cannot be written.
            KeyLease: if another host may write the volume by now.
        """
        if self.options.read_only:
            return True
        self.tools.rules.require_ours()
        with self.lock:
            self.close_parted()
            self._commit_open_files()
            stored = True
            for node in list(self.open_files):
                file = node.file
                if file is not None and (file.failed or file.dirty):
                    stored = stored and not self.linked(node)
        self._barrier(always=True)
        if self.tools.freshness is not None:
            self.tools.freshness.flush()
        doubtful = any(mark.doubtful and self._closed(key) for key, mark in self.recent.items())
        stored = stored and not doubtful and not self.changes_lost
        if stored and self.listings is not None:
            with self.lock:
                remember(self.listings, self._known_directories(), self.removed_directories)
        return stored

    def _closed(self, key: tuple[int, int]) -> bool:
        node = self.nodes.of_inode(key)
        return node is None or node.file is None

    def unstored(self) -> bool:
        """Whether anything is in memory alone, not known to be beyond a power cut, or for the next session to look at."""
        if self.options.read_only:
            return False
        files = [node.file for node in self.open_files if node.file is not None]
        return bool(
            self.recent or self.fresh_directories or self.extras.unsynced() or self.changes_lost
            or any(file.failed or file.dirty or file.provisional for file in files)
        )  # fmt: skip

    def _known_directories(self) -> Iterator[tuple[Node, int]]:
        """The directories whose id and some of whose entries are known, with their descriptors."""
        for node in self.nodes.all_nodes():
            if node.is_dir and node.dir_id and node.kids:
                with contextlib.suppress(OSError):
                    yield node, self.nodes.descriptor(node)

    def heal(self) -> int:
        """Open every file that an unclean session may have touched: recovery runs, headers and homes are rewritten.

        Returns the number of entries that could not be recovered, or that were not come to before `healing_ends`. Runs
        in the background; takes the lock per entry.
        """
        return self._heal_directory(self.nodes.root)

    def _heal_directory(self, node: Node) -> int:
        bad = 0
        with self.lock:
            try:
                entries = self.list_directory(node)
            except (KmsfsError, OSError) as error:
                _LOG.error("a directory cannot be healed: %s", error)
                return 1
            node.lookups += 1
        for entry in entries:
            with self.lock:
                if self.healing_ends:
                    bad += 1
                    break
                try:
                    child, _ = self.lookup(node, entry.name)
                    if entry.kind == stat.S_IFREG:
                        self._heal_file(child, node, entry.name)
                        self.nodes.drop_if_unused(child)
                except (KmsfsError, OSError) as error:
                    _LOG.error("an entry cannot be healed: %s", error)
                    bad += 1
                    continue
            if entry.kind == stat.S_IFDIR:
                bad += self._heal_directory(child)
        with self.lock:
            self.nodes.forget(node, 1)
        return bad

    def _heal_file(self, child: Node, parent: Node, name: bytes) -> None:
        file = self.acquire(child)
        try:
            touched = file.leftover or file.clear.session in self.tools.rules.unclean or file.last_slot is None
            if self._heal_home(child, file, parent, name) or touched:
                # Two commits: no slot keeps a header of the unclean session.
                for _ in range(2):
                    file.attributes_dirty = True
                    file.commit()
                    file.make_durable()
            self._heal_extras(file)
        finally:
            self.give_back(child)

    def _heal_home(self, child: Node, file: Kf1File, parent: Node, name: bytes) -> bool:
        """Let a header name the place where a crash left its file; return whether it did not.

        A rename may be durable and its header commit not: the header is of an older session then, and untouched.
        """
        if self.at_home(file.attributes, parent, name):
            return False
        if os.fstat(child.descriptor).st_nlink > 1:
            self.add_home(child, parent, name)
        else:
            self.only_home(child, file, parent, name)
        return True

    def _heal_extras(self, file: Kf1File) -> None:
        """Let the header name the record that the crash left, which may be the one before or after."""
        attributes = file.attributes
        if not attributes.extras:
            return
        found = self.extras.load(attributes.file_id, attributes.extras)
        number = 0 if found.empty else found.number
        if number != attributes.extras:
            attributes.extras = number
            file.attributes_dirty = True
            file.commit()
