"""Tell the kernel to drop cached pages, attributes and names."""

import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kmsfs.mount.kernel.wire import (
    EXPIRE_ONLY,
    INVAL_ENTRY,
    INVAL_INODE,
    NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_INODE,
    NOTIFY_PRUNE,
    OUT_HEADER,
    PRUNE,
)


class KernelNotifier:
    """Writes notifications to the FUSE descriptor.

    Never call it with the vfs lock held: the kernel may wait for a request that waits for that lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._prunes = True
        self._state = threading.Condition()
        self._under_way = 0
        self._held = False

    def drop_inode(self, node_id: int) -> None:
        """Drop cached attributes and pages of an inode; writes dirty ones back first."""
        self._send(NOTIFY_INVAL_INODE, INVAL_INODE.pack(node_id, 0, 0))

    def drop_attributes(self, node_id: int) -> None:
        """Drop cached attributes only."""
        self._send(NOTIFY_INVAL_INODE, INVAL_INODE.pack(node_id, -1, 0))

    def drop_entry(self, parent_id: int, name: bytes) -> None:
        """Drop a cached name, positive or negative, and with it what is mounted there."""
        self._send(NOTIFY_INVAL_ENTRY, INVAL_ENTRY.pack(parent_id, len(name), 0) + name + b"\0")

    def expire_entry(self, parent_id: int, name: bytes) -> None:
        """Let a cached name be looked up again: what is mounted there stays if it still is what it was. Before Linux 6.2 as `drop_entry`."""
        self._send(NOTIFY_INVAL_ENTRY, INVAL_ENTRY.pack(parent_id, len(name), EXPIRE_ONLY) + name + b"\0")

    def prune(self, node_ids: Sequence[int]) -> bool:
        """Let the kernel forget nodes that nothing uses now; those that something uses stay. Returns whether it can: since Linux 6.18."""
        if self._prunes:
            ids = b"".join(node_id.to_bytes(8, sys.byteorder) for node_id in node_ids)
            self._prunes = self._send(NOTIFY_PRUNE, PRUNE.pack(len(node_ids), 0) + ids) != errno.EINVAL
        return self._prunes

    @contextmanager
    def held_back(self, seconds: float) -> Iterator[bool]:
        """Keep notifications back; tells whether all that were under way have ended within this time.

        One that is under way may wait for a request that only this process answers, and its thread does not end before:
        who is going to execute something else waits for none.
        """
        with self._state:
            self._held = True
            ended = self._state.wait_for(lambda: not self._under_way, seconds)
        try:
            yield ended
        finally:
            with self._state:
                self._held = False
                self._state.notify_all()

    def _send(self, code: int, body: bytes) -> int:
        """Write a notification; return the error, 0 for none."""
        with self._state:
            self._state.wait_for(lambda: not self._held)
            self._under_way += 1
        try:
            os.writev(self._descriptor, [OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0), body])
        except OSError as error:
            # ENOENT: the kernel does not have it. ENODEV: the mount is gone. Either way nothing is cached.
            return error.errno or errno.EIO
        finally:
            with self._state:
                self._under_way -= 1
                self._state.notify_all()
        return 0
