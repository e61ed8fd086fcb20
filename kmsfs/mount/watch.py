"""Changes made behind the mount: watchdog follows the cipher directories that the kernel knows.

What a sync tool or a restore changed there is dropped from the kernel's caches; that is what allows long lifetimes.
"""

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyFD, Mask, WatchDescriptor

from kmsfs.errors import InvalidName
from kmsfs.mount.durability import Vfs
from kmsfs.mount.kernel.notify import KernelNotifier
from kmsfs.mount.kernel.session import Lifetimes
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import GONE, MADE, MOVED_IN, MOVED_OUT, WRITTEN

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyEvent

_LOG = logging.getLogger("kmsfs.mount")
_IN_EXCL_UNLINK = 0x04000000
_KINDS = MADE | GONE | MOVED_IN | MOVED_OUT | WRITTEN
# What is closed after its name went says nothing of who has the name by then.
_MASK = _KINDS | InotifyConstants.IN_ONLYDIR | _IN_EXCL_UNLINK
_WAKING_SECONDS = 0.1
_BATCH_SECONDS = 0.25
"""Events are read in batches: one wake-up for hundreds of them, where the mount itself makes most."""
_UNWATCHABLE = {0x6969: "NFS", 0x65735546: "FUSE", 0xFF534D42: "CIFS", 0x517B: "SMB", 0x01021997: "9p"}
_STATFS_BYTES = 256


class _BatchedInotify(InotifyFD):
    """watchdog's inotify reader, waking at most four times a second."""

    def __init__(self) -> None:
        super().__init__()
        self.pause = threading.Event()
        self.after_batch: Callable[[], None] = lambda: None
        self.since = time.monotonic()
        """The events of this batch happened after this."""

    def run(self) -> None:
        """Read events until it is stopped, a batch at a time."""
        read_at = self.since
        while self.should_keep_running():
            begun, before = time.monotonic(), read_at
            events = self.read_events(event_buffer_size=1 << 20)
            read_at = time.monotonic()
            # Where it had to wait, there were none before: a thread is woken within this time, or all is late.
            self.since = before if read_at - begun < _WAKING_SECONDS else max(begun, read_at - _WAKING_SECONDS)
            for event in events:
                self.handle_event(event)
            self.after_batch()
            self.pause.wait(_BATCH_SECONDS)


class _DirectoryWatch:
    """The callback of one watched directory."""

    def __init__(self, watcher: "CipherWatcher", node: Node) -> None:
        self._watcher = watcher
        self._node = node

    def on_event(self, event: "InotifyEvent") -> None:
        self._watcher.changed(self._node, os.fsdecode(event.name), event.mask & _KINDS)

    def on_watch_deleted(self, wd: int) -> None:
        self._watcher.deleted(wd)

    def on_queue_overflow(self) -> None:
        self._watcher.overflowed()


class CipherWatcher:
    """Watches the directories that are looked up and not forgotten, inside the inotify limit."""

    def __init__(self, vfs: Vfs, notifier: KernelNotifier, lifetimes: Lifetimes, *, nothing_kept: bool = False) -> None:
        """Watch what the kernel knows of `vfs`; not where `nothing_kept` is by it, as where another writes and closes nothing."""
        self._vfs = vfs
        self._notifier = notifier
        self._lifetimes = lifetimes
        self._watches: dict[int, int] = {}
        self._inotify: _BatchedInotify | None = None
        if nothing_kept:
            # Names neither: what is opened is looked up.
            self._keep_little(0)
            return
        kind = _file_system_kind(vfs.nodes.root.descriptor)
        if kind in _UNWATCHABLE:
            self._shorten(f"{_UNWATCHABLE[kind]} does not tell of changes")
            return
        self._inotify = _BatchedInotify()
        self._inotify.after_batch = vfs.rotate_own_changes
        vfs.watched = True
        self._inotify.start()
        self.add(vfs.nodes.root)

    def add(self, node: Node) -> None:
        """Watch a directory that the kernel has looked up. The caller holds the vfs lock."""
        if self._inotify is None or node.node_id in self._watches:
            return
        path = f"/proc/self/fd/{self._vfs.nodes.descriptor(node)}".encode()
        try:
            wd = self._inotify.add_callback(
                path, Mask(_MASK), _DirectoryWatch(self, node), CallbackId(node.node_id)
            )
        except OSError as error:
            self._shorten(f"no more directories can be watched ({error.strerror})")
            return
        self._watches[node.node_id] = wd

    def add_known(self) -> None:
        """Watch every directory that the kernel knows already."""
        with self._vfs.lock:
            for node in self._vfs.nodes.all_nodes():
                if node.is_dir and node.lookups and node.place() is not None:
                    # One that is not there any more is an entry of one that has changed.
                    with contextlib.suppress(OSError):
                        self.add(node)

    def forget_entries(self, node_ids: list[int]) -> None:
        """Drop what the kernel holds of the entries of some directories."""
        with self._vfs.lock:
            self._vfs.changes_behind += 1
            known = [node for node in self._vfs.nodes.all_nodes() if node.node_id in set(node_ids)]
            entries = [(node.node_id, name) for node in known for name in node.kids]
        for parent_id, name in entries:
            self._notifier.expire_entry(parent_id, name)
        for node_id in node_ids:
            self._notifier.drop_inode(node_id)

    def forget(self, node: Node) -> None:
        """Watch a directory no more. The caller holds the vfs lock."""
        wd = self._watches.pop(node.node_id, None)
        if wd is not None and self._inotify is not None:
            self._inotify.remove_callbacks([(WatchDescriptor(wd), CallbackId(node.node_id))])

    def close(self) -> None:
        """Stop."""
        if self._inotify is not None:
            self._inotify.pause.set()
            self._inotify.stop()
            self._inotify.join(timeout=2)

    def changed(self, node: Node, disk_name: str, kind: int) -> None:
        """Drop what the kernel holds of an entry to which somebody else did something."""
        vfs = self._vfs
        since = self._inotify.since if self._inotify is not None else 0.0
        with vfs.lock:
            if disk_name[:1] in (".", "s", "") or vfs.changed_by_us(disk_name, kind, since):
                return
            vfs.changes_behind += 1
            try:
                sidecar = None
                if disk_name[0] == "l":
                    sidecar = os.readlink("s" + disk_name[1:], dir_fd=vfs.nodes.descriptor(node))
                name = vfs.keys.open_name(vfs.dir_id(node), disk_name, sidecar)
            except (InvalidName, OSError):
                return
            child = node.kids.get(name)
            if child is not None and child.file is not None and not child.handles:
                vfs.close_file(child)
            if child is not None and child.file is not None:
                _LOG.warning("a file that is open was changed behind the mount; the mount's version will win")
                return
            if child is not None:
                child.keep_cache = False
                child.attributes = None
        self._notifier.expire_entry(node.node_id, name)
        self._notifier.drop_inode(node.node_id)
        if child is not None:
            self._notifier.drop_inode(child.node_id)

    def deleted(self, wd: int) -> None:
        """A watched directory is gone."""
        with self._vfs.lock:
            for node_id, known in list(self._watches.items()):
                if known == wd:
                    del self._watches[node_id]

    def overflowed(self) -> None:
        """Events were lost: drop everything that is not open."""
        with self._vfs.lock:
            self._vfs.changes_behind += 1
            for node in list(self._vfs.resting):
                self._vfs.close_file(node)
            nodes = [node for node in self._vfs.nodes.all_nodes() if node.file is None]
            places = [(place[0].node_id, place[1]) for node in nodes if (place := node.place()) is not None]
        for node in nodes:
            node.attributes = None
            self._notifier.drop_inode(node.node_id)
        for parent_id, name in places:
            self._notifier.expire_entry(parent_id, name)

    def _shorten(self, why: str) -> None:
        if self._lifetimes.positive > 1:
            _LOG.warning("%s: the kernel's caches are kept for a second only", why)
        self._keep_little(1)

    def _keep_little(self, seconds: int) -> None:
        self._vfs.keep_attributes = False
        self._vfs.changes_behind += 1
        self._lifetimes.positive = seconds
        self._lifetimes.negative = 0


def _file_system_kind(descriptor: int) -> int:
    buffer = (ctypes.c_long * (_STATFS_BYTES // ctypes.sizeof(ctypes.c_long)))()
    ctypes.CDLL(None).fstatfs(descriptor, ctypes.byref(buffer))
    return int(buffer[0]) & 0xFFFFFFFF
