"""What a clean end promises: all that is there opens, each file with a record of its last commit, whatever failed before."""

import errno
import logging
import os
import random
import tempfile
from pathlib import Path

import pytest

from kmsfs.backing.posix import PosixFile
from kmsfs.errors import KmsfsError, StorageError
from kmsfs.mount import durability, vfs_dirs
from kmsfs.mount.attributes import Requester
from kmsfs.mount.durability import Vfs
from kmsfs.mount.vfs import VfsOptions

from support.fakes import MemoryRecords, make_tools, volume_keys
from support.treecut import TreeProvider

WHO = Requester(0, 0)
# `KMSFS_CLEAN_ENDS=20000 pytest tests/faults/test_clean_ends.py` is the campaign.
HISTORIES = int(os.environ.get("KMSFS_CLEAN_ENDS", "200"))
NAMES = (b"a", b"b", b"c", b"d")
DIR_ID = b"r" * 16


class History:
    """Sessions of one volume, whose calls fail at times, and whose kernel forgets what it likes."""

    def __init__(self, folder, seed):
        self.rng = random.Random(seed)
        self.folder = folder
        self.keys, self.provider, self.records = volume_keys(), TreeProvider(), MemoryRecords()
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.session, self.unclean = 0, set()
        self.rate = 0.0
        self.within = self.ending = False
        self.known = {}
        """Nodes that the kernel knows, by how often each is open."""
        self.mount()

    def mount(self):
        self.session += 1
        tools = make_tools(self.keys, self.provider, self.session, set(self.unclean), 12, self.records)
        self.vfs = Vfs(tools, self.provider, os.dup(self.root), DIR_ID, VfsOptions(put_off=self.rng.random() < 0.5))
        self.vfs.keep_attributes = self.rng.random() < 0.7
        self.known = {}

    def fails(self):
        return self.rng.random() < self.rate

    def patch(self, monkeypatch):
        for owner, name, wrong in (
            (PosixFile, "write", errno.ENOSPC), (PosixFile, "sync", errno.EIO), (PosixFile, "datasync", errno.EIO), (PosixFile, "rewrite", errno.EIO),
            (durability, "sync_file_system", errno.EIO), (vfs_dirs, "sync_file_system", errno.EIO),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name), StorageError("injected", os_errno=wrong)))
        barrier = durability.sync_file_system
        monkeypatch.setattr(durability, "sync_file_system", lambda descriptor: (self.meanwhile(), barrier(descriptor)))
        for name in ("fsync", "rename", "unlink", "link", "open"):
            monkeypatch.setattr(os, name, self.failing(getattr(os, name), OSError(errno.EIO, "injected")))

    def failing(self, real, error):
        def call(*args, **kwargs):
            if self.fails():
                raise error
            return real(*args, **kwargs)

        return call

    # --- what is done ---------------------------------------------------------------------------------------

    def look(self, name, parent=None):
        node, _ = self.vfs.lookup(parent or self.folder_node(), name)
        node.lookups += 1
        self.known.setdefault(node, 0)
        return node

    def folder_node(self):
        root = self.vfs.nodes.root
        if self.rng.random() < 0.5:
            return root
        folders = [n for n in self.known if n.is_dir and n.names]
        if folders:
            return self.rng.choice(folders)
        node, _ = self.vfs.lookup(root, self.rng.choice((b"D", b"E")))
        node.lookups += 1
        self.known.setdefault(node, 0)
        return node

    def mkdir(self):
        node, _ = self.vfs.mkdir(self.folder_node(), self.rng.choice((b"D", b"E")), 0o700, WHO)
        node.lookups += 1
        self.known.setdefault(node, 0)

    def rmdir(self):
        parent = self.folder_node()
        name = self.rng.choice((b"D", b"E"))
        self.look(name, parent)
        self.vfs.rmdir(parent, name)

    def move_folder(self):
        a, b = self.folder_node(), self.folder_node()
        x, y = self.rng.choice((b"D", b"E")), self.rng.choice((b"D", b"E"))
        chain = self.vfs.with_parents(b)
        source = self.look(x, a)
        if source in chain:
            return
        self.vfs.rename(a, x, b, y, self.rng.choice((0, 0, 1)))

    def symlink(self):
        node, _ = self.vfs.symlink(self.folder_node(), self.rng.choice(NAMES), b"t", WHO)
        node.lookups += 1
        self.known.setdefault(node, 0)

    def make(self):
        node, _ = self.vfs.create(self.folder_node(), self.rng.choice(NAMES), 0o600, WHO)
        node.lookups += 1
        self.known[node] = 1
        self.vfs.write(node, b"x" * self.rng.choice((10, 5000, 90_000)), 0, cached=False)

    def open(self):
        node = self.look(self.rng.choice(NAMES))
        self.vfs.open(node, truncate=self.rng.random() < 0.2)
        self.known[node] += 1

    def opened(self):
        return self.rng.choice([node for node, count in self.known.items() if count])

    def write(self):
        self.vfs.write(self.opened(), b"y" * self.rng.choice((1, 4096, 30_000)), self.rng.choice((0, 4096, 70_000)), cached=False)

    def read(self):
        self.vfs.read(self.opened(), 1 << 20, 0)

    def sync(self):
        self.vfs.fsync(self.opened())

    def sync_folder(self):
        self.vfs.fsyncdir(self.vfs.nodes.root)

    def close(self):
        node = self.opened()
        self.known[node] -= 1
        self.vfs.release(node)

    def forget(self):
        node = self.rng.choice([node for node, count in self.known.items() if not count and not node.kids])
        del self.known[node]
        self.vfs.forget(node, node.lookups)

    def rename(self):
        self.vfs.rename(self.folder_node(), self.rng.choice(NAMES), self.folder_node(), self.rng.choice(NAMES), self.rng.choice((0, 0, 0, 1, 2)))

    def link(self):
        self.vfs.link(self.look(self.rng.choice(NAMES)), self.folder_node(), self.rng.choice(NAMES))

    def unlink(self):
        # The kernel has always looked a name up before it removes it.
        name = self.rng.choice(NAMES)
        parent = self.folder_node()
        self.look(name, parent)
        self.vfs.unlink(parent, name)

    def attribute(self):
        self.vfs.set_xattr(self.look(self.rng.choice(NAMES)), b"user.a", os.urandom(self.rng.choice((3, 600))), 0, WHO)

    def list(self):
        folder = self.folder_node()
        for entry in self.vfs.list_directory(folder):
            self.vfs.list_entry(folder, entry.name, entry.disk_name, entry.listed)

    def idle(self):
        for _ in range(self.rng.randrange(20)):
            self.vfs.idle_step()

    def tick(self):
        self.vfs.tick()

    def quiet(self):
        self.vfs.quiet_step()

    STEPS = (mkdir, mkdir, rmdir, move_folder, symlink, make, make, make, open, open, write, write, read, sync, sync_folder, close, close, close, forget, forget, forget, rename, link, unlink, attribute, list, idle, tick, quiet)

    def meanwhile(self):
        """The barrier runs without the lock: others go on."""
        if self.within is False and self.ending is False:
            self.within = True
            for _ in range(self.rng.choice((0, 0, 1, 3))):
                self.step()
            self.within = False

    def step(self):
        step = self.rng.choice(self.STEPS)
        if self.within and step is History.tick:
            return
        try:
            step(self)
        except (KmsfsError, OSError, IndexError):
            # IndexError: nothing is open, or known.
            return

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self):
        """End the session as an unmount does; return whether it ended cleanly."""
        self.ending = True
        for node, count in list(self.known.items()):
            for _ in range(count):
                self.vfs.release(node)
        for node in self.known if self.rng.random() < 0.5 else ():
            self.vfs.forget(node, node.lookups)
        try:
            clean = self.vfs.finish()
        except (KmsfsError, OSError):
            clean = False
        if not clean:
            self.unclean.add(self.session)
        self.leave()
        self.ending = False
        return clean

    def leave(self):
        """Close what the session has open, as its process does when it ends."""
        self.vfs.empty_trash()
        for node in self.vfs.open_files:
            node.file.close()
        for node in self.vfs.nodes.all_nodes():
            if node.is_dir and node.descriptor >= 0:
                os.close(node.descriptor)
        self.vfs.extras.close()

    def use(self, folder=None, there=None):
        """Open and read everything, but what somebody has open since the disk failed to store it; return the ids of all files."""
        there = set() if folder is None else there
        folder = folder or self.vfs.nodes.root
        for entry in self.vfs.list_directory(folder):
            node = self.look(entry.name, folder)
            if node.is_dir:
                self.use(node, there)
                continue
            if not node.is_file:
                self.vfs.readlink(node)
                continue
            if node.handles and node.file.failed:
                continue
            self.vfs.open(node)
            self.vfs.read(node, 1 << 20, 0)
            for name in filter(None, self.vfs.list_xattrs(node, WHO).split(b"\0")):
                self.vfs.get_xattr(node, name)
            there.add(node.file.attributes.file_id)
            self.vfs.release(node)
        return there

    def verify(self):
        """Mount again: everything opens and reads, and only what is there has a record."""
        there = self.use()
        recorded = {file_id for file_id in {**self.records.stored, **self.records.changed} if self.records.find(file_id)}
        if not self.unclean:
            assert recorded <= there or self.records.doubtful
            assert there <= recorded
        self.ending = True
        assert self.vfs.finish()
        self.leave()


@pytest.mark.timeout(7200)
def test_after_a_clean_end_each_file_opens_whatever_failed():
    clean, wrong = 0, []
    logging.disable(logging.CRITICAL)
    # Not beside the other tests' files: they count on inodes that are given out in turn.
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")
    try:
        for seed in range(HISTORIES):
            folder = Path(memory.name, str(seed))
            folder.mkdir()
            with pytest.MonkeyPatch.context() as monkeypatch:
                # The same ids, and so the same names on disk, each time.
                monkeypatch.setattr(os, "urandom", random.Random(seed).randbytes)
                history = History(folder, seed)
                history.patch(monkeypatch)
                try:
                    for _ in range(history.rng.choice((1, 2, 3))):
                        for rate in (0.0, history.rng.choice((0.02, 0.2, 0.5)), 0.0):
                            history.rate = rate
                            for _ in range(history.rng.randrange(40)):
                                history.step()
                        # A place that neither room nor disk let be stored is mended by the next mount.
                        if history.rng.random() < 0.3 and not history.vfs.changes_lost:
                            history.use()
                        history.rate = history.rng.choice((0.0, 0.0, 0.0, 0.1))
                        clean += history.end()
                        history.rate = 0.0
                        history.mount()
                        history.verify()
                        history.mount()
                except Exception as error:
                    wrong.append((seed, repr(error)))
                else:
                    history.leave()
                    os.close(history.root)
    finally:
        logging.disable(logging.NOTSET)
        memory.cleanup()
    assert wrong == [] and clean > HISTORIES / 2
