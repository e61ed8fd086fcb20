"""Tell the kernel to drop cached pages, attributes and names."""

import os

from kmsfs.mount.kernel.wire import (
    INVAL_ENTRY,
    INVAL_INODE,
    NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_INODE,
    OUT_HEADER,
)


class KernelNotifier:
    """Writes notifications to the FUSE descriptor.

    Never call it with the vfs lock held: the kernel may wait for a request that waits for that lock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def drop_inode(self, node_id: int) -> None:
        """Drop cached attributes and pages of an inode; writes dirty ones back first."""
        self._send(NOTIFY_INVAL_INODE, INVAL_INODE.pack(node_id, 0, 0))

    def drop_attributes(self, node_id: int) -> None:
        """Drop cached attributes only."""
        self._send(NOTIFY_INVAL_INODE, INVAL_INODE.pack(node_id, -1, 0))

    def drop_entry(self, parent_id: int, name: bytes) -> None:
        """Drop a cached name, positive or negative."""
        self._send(NOTIFY_INVAL_ENTRY, INVAL_ENTRY.pack(parent_id, len(name), 0) + name + b"\0")

    def _send(self, code: int, body: bytes) -> None:
        try:
            os.writev(self._descriptor, [OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0), body])
        except OSError:
            # ENOENT: the kernel does not have it. ENODEV: the mount is gone. Either way nothing is cached.
            return
