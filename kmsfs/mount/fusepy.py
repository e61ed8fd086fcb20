"""The fusepy adapter: the same vfs under libfuse 3's high-level API, by mfusepy.

It has no inodes, no writeback cache and no invalidation, and an unlinked open file lives on as .fuse_hidden…; it is for systems where the kernel transport cannot run.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from kmsfs.errors import KmsfsError
from kmsfs.mount.attributes import Changes, Requester, Stat
from kmsfs.mount.durability import Vfs
from kmsfs.mount.errno_map import errno_of
from kmsfs.mount.kernel.attach import MountOptions
from kmsfs.mount.nodes import Node

_NODES_KEPT = 50_000
_T = TypeVar("_T")


class VfsOperations(mfusepy.Operations):  # type: ignore[misc]
    """Paths to nodes, nothing else."""

    use_ns = True

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs

    # --- helpers ----------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._vfs.lock:
            self._vfs.asked_by = mfusepy.fuse_get_context()[0]
            try:
                yield
            except (KmsfsError, OSError) as error:
                raise mfusepy.FuseOSError(errno_of(error)) from error
            finally:
                self._vfs.asked_by = None
            if len(self._vfs.nodes) > _NODES_KEPT:
                for node in self._vfs.nodes.all_nodes():
                    node.lookups = 0
                    self._vfs.nodes.drop_if_unused(node)

    def _node(self, path: str) -> Node:
        node = self._vfs.nodes.root
        for part in path.split("/"):
            if part:
                node, _ = self._vfs.lookup(node, os.fsencode(part))
                # There is no FORGET here: a node counts as known until the table is trimmed.
                node.lookups = 1
        return node

    def _parent(self, path: str) -> tuple[Node, bytes]:
        head, _, tail = path.rpartition("/")
        return self._node(head), os.fsencode(tail)

    def _who(self) -> Requester:
        uid, gid, pid = mfusepy.fuse_get_context()
        return Requester(uid, gid, pid)

    def _by_handle(self, path: str | None, handle: int | None) -> Node:
        if handle:
            return self._vfs.nodes.get(handle)
        return self._node(path or "/")

    def _run(self, act: Callable[[], _T]) -> _T:
        with self._call():
            return act()

    # --- mfusepy.Operations -----------------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        """See mfusepy.Operations."""
        return self._run(lambda: _attributes(self._vfs.getattr(self._by_handle(path, fh))))

    def opendir(self, path: str) -> int:
        """See mfusepy.Operations."""
        return self._run(lambda: self._node(path).node_id)

    def releasedir(self, path: str | None, fh: int) -> int:
        """See mfusepy.Operations."""
        return 0

    def readdir(self, path: str | None, fh: int) -> list[Any]:
        """See mfusepy.Operations."""

        def act() -> list[Any]:
            """Return the directory's entries, the two dots among them."""
            node = self._vfs.nodes.get(fh)
            here = {"st_mode": node.kind, "st_ino": node.key[1]}
            found = [
                (os.fsdecode(e.name), {"st_mode": e.kind, "st_ino": e.ino}, 0)
                for e in self._vfs.list_directory(node)
            ]
            # Entries without an inode number are left out by readdir(3).
            return [(".", here, 0), ("..", here, 0), *found]

        return self._run(act)

    def readlink(self, path: str) -> str:
        """See mfusepy.Operations."""
        return os.fsdecode(self._run(lambda: self._vfs.readlink(self._node(path))))

    def mknod(self, path: str, mode: int, dev: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.mknod(*self._parent(path), mode, dev, self._who()))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.mkdir(*self._parent(path), mode, self._who()))
        return 0

    def unlink(self, path: str) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.unlink(*self._parent(path)))
        return 0

    def rmdir(self, path: str) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.rmdir(*self._parent(path)))
        return 0

    def symlink(self, target: str, source: str) -> int:
        """See mfusepy.Operations: `target` is the new name, `source` what it points to."""
        self._run(lambda: self._vfs.symlink(*self._parent(target), os.fsencode(source), self._who()))
        return 0

    def rename(self, old: str, new: str) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.rename(*self._parent(old), *self._parent(new)))
        return 0

    def link(self, target: str, source: str) -> int:
        """See mfusepy.Operations: `target` is the new name."""
        self._run(lambda: self._vfs.link(self._node(source), *self._parent(target)))
        return 0

    def chmod(self, path: str | None, mode: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.setattr(self._by_handle(path, None), Changes(mode=mode & 0o7777)))
        return 0

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        """See mfusepy.Operations."""
        changes = Changes(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)
        self._run(lambda: self._vfs.setattr(self._by_handle(path, None), changes))
        return 0

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.setattr(self._by_handle(path, fh), Changes(size=length)))
        return 0

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> int:
        """See mfusepy.Operations."""
        now = time.time_ns()
        atime, mtime = times or (now, now)
        self._run(
            lambda: self._vfs.setattr(
                self._by_handle(path, None), Changes(atime_ns=int(atime), mtime_ns=int(mtime))
            )
        )
        return 0

    def open(self, path: str, flags: int) -> int:
        """See mfusepy.Operations."""

        def act() -> int:
            node = self._node(path)
            self._vfs.open(node, truncate=bool(flags & os.O_TRUNC))
            return node.node_id

        return self._run(act)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """See mfusepy.Operations."""
        return self._run(lambda: self._vfs.create(*self._parent(path), mode, self._who())[0].node_id)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """See mfusepy.Operations."""
        return self._run(lambda: bytes(self._vfs.read(self._vfs.nodes.get(fh), size, offset)))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """See mfusepy.Operations."""
        return self._run(lambda: self._vfs.write(self._vfs.nodes.get(fh), data, offset, cached=False))

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.fsync(self._vfs.nodes.get(fh)))
        return 0

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.fsyncdir(self._vfs.nodes.get(fh)))
        return 0

    def release(self, path: str, fh: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.release(self._vfs.nodes.get(fh)))
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.allocate(self._vfs.nodes.get(fh), mode, offset, size))
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """See mfusepy.Operations."""
        return self._run(lambda: self._vfs.get_xattr(self._node(path), os.fsencode(name)))

    def listxattr(self, path: str) -> list[str]:
        """See mfusepy.Operations."""
        names = self._run(lambda: self._vfs.list_xattrs(self._node(path), self._who()))
        return [os.fsdecode(name) for name in names.split(b"\0") if name]

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.set_xattr(self._node(path), os.fsencode(name), value, options, self._who()))
        return 0

    def removexattr(self, path: str, name: str) -> int:
        """See mfusepy.Operations."""
        self._run(lambda: self._vfs.remove_xattr(self._node(path), os.fsencode(name), self._who()))
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        """See mfusepy.Operations."""
        facts = self._run(self._vfs.statfs)
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {**{name: getattr(facts, name) for name in names}, "f_namemax": 255}


def serve(vfs: Vfs, mountpoint: Path, options: MountOptions, on_ready: Callable[[], None]) -> None:
    """Mount through libfuse and serve until it is unmounted.

    Raises:
        RuntimeError: if libfuse refuses to mount.
    """

    class Ready(VfsOperations):
        def init(self, path: str) -> None:
            """Libfuse is up: the file system answers from here on."""
            on_ready()

    extra: dict[str, Any] = {"allow_other": True} if options.allow_other else {}
    if options.read_only:
        extra["ro"] = True
    mfusepy.FUSE(
        Ready(vfs), os.fspath(mountpoint), foreground=True, nothreads=True, default_permissions=True,
        fsname=options.source, subtype="kmsfs", use_ino=True, attr_timeout=0, **extra,
    )  # fmt: skip


def _attributes(stat: Stat) -> dict[str, Any]:
    return {
        "st_ino": stat.ino, "st_size": stat.size, "st_blocks": stat.blocks, "st_atime": stat.atime_ns,
        "st_mtime": stat.mtime_ns, "st_ctime": stat.ctime_ns, "st_mode": stat.mode, "st_nlink": stat.nlink,
        "st_uid": stat.uid, "st_gid": stat.gid, "st_rdev": stat.rdev, "st_blksize": 4096,
    }  # fmt: skip
