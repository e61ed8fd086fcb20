"""INIT and the request loop: read a request, call the vfs, write the answer. One thread; measured, threads only wait."""

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from kmsfs.errors import KmsfsError
from kmsfs.mount.attributes import Changes, Requester, Stat
from kmsfs.mount.durability import Vfs
from kmsfs.mount.errno_map import errno_of
from kmsfs.mount.kernel import wire
from kmsfs.mount.kernel.directories import OpenDirectories
from kmsfs.mount.kernel.quirks import zeroes_tails
from kmsfs.mount.kernel.wakeups import WakeUps
from kmsfs.mount.kernel.wire import InitFlag, Opcode
from kmsfs.mount.nodes import Node

_LOG = logging.getLogger("kmsfs.mount")
_WANTED = (
    InitFlag.ASYNC_READ | InitFlag.ATOMIC_O_TRUNC | InitFlag.BIG_WRITES | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO | InitFlag.ASYNC_DIO | InitFlag.WRITEBACK_CACHE | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR | InitFlag.MAX_PAGES | InitFlag.CACHE_SYMLINKS | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.DONT_MASK | InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.SETXATTR_EXT
)  # fmt: skip
_OF_WRITERS = InitFlag.WRITEBACK_CACHE | InitFlag.EXPLICIT_INVAL_DATA
_UNCACHED = InitFlag.INIT_EXT | InitFlag.DIRECT_IO_ALLOW_MMAP
_SEEK_DATA, _SEEK_HOLE = 3, 4
_SPIN_NS = 200_000
"""Look for the next request this long before sleeping: waking a sleeping thread costs more than most requests."""

_FILL_BYTES = 64 << 10
"""Files up to this size are whole in one READ; their pages come with the first open instead (ADR 0021)."""
_NOT_FOR_CACHED_READS = os.O_ACCMODE | os.O_TRUNC | os.O_DIRECT

_LOOKS = frozenset(
    {Opcode.READDIRPLUS, Opcode.LOOKUP, Opcode.GETATTR, Opcode.STATX, Opcode.READLINK, Opcode.GETXATTR, Opcode.LISTXATTR}
)
"""Requests that change nothing that a listing tells."""

Answer = bytes | memoryview | None


@dataclass(slots=True)
class Lifetimes:
    """How long the kernel may keep names and attributes, in seconds; the watcher shortens them if it must."""

    positive: int = 3600
    negative: int = 60


class KernelSession:
    """Serves one mounted descriptor until it is unmounted."""

    def __init__(
        self, vfs: Vfs, descriptor: int, wake_ups: WakeUps, *,
        check_permissions: bool = True, follows: bool = False, cache: str = "full",
    ) -> None:  # fmt: skip
        """Serve `descriptor`; `check_permissions` where others may enter: the kernel then enforces ACLs too.

        `follows` where somebody else writes the volume: sizes and times are what we say then, not what the kernel has cached.
        `cache` is one of request.CACHES; the watcher sets how long names and attributes live.
        """
        self.vfs = vfs
        self.descriptor = descriptor
        self._wake_ups = wake_ups
        self.lifetimes = Lifetimes()
        self.requests = 0
        self._direct = cache != "full"
        self._may_fill = zeroes_tails(os.uname()) and not self._direct
        wanted = _WANTED & ~_OF_WRITERS | InitFlag.AUTO_INVAL_DATA if follows else _WANTED
        if self._direct:
            wanted = wanted & ~InitFlag.WRITEBACK_CACHE | _UNCACHED
        if cache == "none":
            wanted &= ~InitFlag.CACHE_SYMLINKS
        self._keeps_listings = cache != "none"
        self._wanted = int(wanted | (InitFlag.POSIX_ACL if check_permissions else 0))
        self._on_directory: Callable[[Node], None] | None = None
        self._leaving = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.directories = OpenDirectories(vfs, self._known)
        self._who = Requester(0, 0)
        self._handlers: dict[int, Callable[[Node, memoryview], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.STATFS: self._statfs,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.STATX: self._statx,
        }

    def watch_directories(self, on_directory: Callable[[Node], None]) -> None:
        """Call `on_directory` for each directory that the kernel comes to know."""
        self._on_directory = on_directory

    # --- the loop ---------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Let `serve` return between two requests. From any thread."""
        # In this order: who sees that he is to leave finds the bell rung.
        os.eventfd_write(self._bell, 1)
        self._leaving = True

    def serve(self) -> bool:
        """Answer requests until the file system is unmounted, or until `leave`; return whether it was that.

        Raises:
            OSError: if the descriptor fails in an unknown way.
        """
        buffer = bytearray(wire.BUFFER_BYTES)
        view = memoryview(buffer)
        buffers = [buffer]
        descriptor, dispatch, wake_ups = self.descriptor, self.dispatch, self._wake_ups
        os.set_blocking(descriptor, False)
        spin_until = 0
        while not self._leaving:
            try:
                length = os.readv(descriptor, buffers)
            except BlockingIOError:
                if (
                    not self._use_the_wait()
                    and (self.vfs.provider.awaits or time.perf_counter_ns() > spin_until)
                    and not self._quiet_step()
                ):
                    wake_ups.wait(descriptor, self._bell)
                continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                if error.errno == errno.ENODEV:
                    return False
                raise
            if not length:
                return False
            self.requests += 1
            wake_ups.served()
            dispatch(view[:length])
            spin_until = time.perf_counter_ns() + _SPIN_NS
        self._leaving = False
        os.eventfd_read(self._bell)
        return True

    def _use_the_wait(self) -> bool:
        """While the kernel has no request, do a piece of work that was put off."""
        try:
            with self.vfs.lock:
                return self.vfs.idle_step() or self.directories.look_ahead(self.lifetimes.positive)
        except Exception:
            _LOG.exception("work that was put off failed")
            return False

    def _quiet_step(self) -> bool:
        try:
            with self.vfs.lock:
                return self.vfs.quiet_step()
        except Exception:
            _LOG.exception("work that was put off failed")
            return False

    def dispatch(self, request: memoryview) -> None:
        """Serve one request."""
        _, opcode, unique, node_id, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(request)
        body = request[wire.IN_HEADER.size :]
        handler = self._handlers.get(opcode)
        if handler is None:
            self._special(opcode, unique, node_id, body)
            return
        self._who = Requester(uid, gid, pid)
        try:
            with self.vfs.lock:
                if opcode not in _LOOKS:
                    self.directories.forget_ahead()
                self.vfs.asked_by = uid
                try:
                    answer = handler(self.vfs.nodes.get(node_id), body)
                finally:
                    self.vfs.asked_by = None
                self._reply(unique, answer)
        except OSError as error:
            self._reply_error(unique, error.errno or errno.EIO)
        except KmsfsError as error:
            if error.audience != "caller":
                hint = f"; {error.hint}" if error.hint else ""
                _LOG.warning("%s: %s%s", Opcode(opcode).name.lower(), error, hint)
            self._reply_error(unique, errno_of(error))
        except Exception:
            _LOG.exception("request %s failed", opcode)
            self._reply_error(unique, errno.EIO)

    def _reply(self, unique: int, answer: Answer) -> None:
        if answer is None:
            self._send([wire.OUT_HEADER.pack(16, 0, unique)])
        else:
            self._send([wire.OUT_HEADER.pack(16 + len(answer), 0, unique), answer])

    def _reply_error(self, unique: int, number: int) -> None:
        self._send([wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -number, unique)])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self.descriptor, parts)
        except OSError as error:
            # ENOENT: the request was interrupted; ENODEV: unmounted meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _special(self, opcode: int, unique: int, node_id: int, body: memoryview) -> None:
        if opcode == Opcode.FORGET:
            self._forget(node_id, wire.FORGET_IN.unpack_from(body)[0])
        elif opcode == Opcode.BATCH_FORGET:
            count = wire.BATCH_FORGET_IN.unpack_from(body)[0]
            for index in range(count):
                at = wire.BATCH_FORGET_IN.size + index * wire.FORGET_ONE.size
                self._forget(*wire.FORGET_ONE.unpack_from(body, at))
        elif opcode == Opcode.INIT:
            self._init(unique, body)
        elif opcode == Opcode.DESTROY:
            self._reply(unique, None)
        elif opcode != Opcode.INTERRUPT:
            self._reply_error(unique, errno.ENOSYS)

    def _init(self, unique: int, body: memoryview) -> None:
        major, minor, readahead, offered = wire.INIT_IN.unpack_from(body)
        if major != wire.MAJOR or minor < wire.MINOR:
            _LOG.error("the kernel speaks FUSE %s.%s, %s.%s is needed", major, minor, wire.MAJOR, wire.MINOR)
            self._reply_error(unique, errno.EPROTO)
            return
        if offered & InitFlag.INIT_EXT:
            offered |= wire.INIT_MORE.unpack_from(body, wire.INIT_IN.size)[0] << 32
        flags = offered & self._wanted
        answer = wire.INIT_OUT.pack(
            wire.MAJOR, wire.MINOR, max(readahead, wire.MAX_WRITE), flags & 0xFFFFFFFF, 64, 48, wire.MAX_WRITE, 1,
            wire.MAX_PAGES, 0, flags >> 32, 0,
        )  # fmt: skip
        self._reply(unique, answer)

    def _forget(self, node_id: int, lookups: int) -> None:
        with self.vfs.lock:
            self.directories.forget_ahead()
            try:
                self.vfs.forget(self.vfs.nodes.get(node_id), lookups)
            except OSError:
                return

    # --- entries and attributes -------------------------------------------------------------------------------

    def _entry(self, node: Node, stat: Stat) -> bytes:
        self._known(node)
        return wire.entry_out(node.node_id, stat, self.lifetimes.positive if node.damage is None else 0)

    def _known(self, node: Node) -> None:
        """Count that the kernel is told of a node."""
        node.lookups += 1
        if node.is_dir and self._on_directory is not None and node.lookups == 1:
            self._on_directory(node)

    def _attr(self, stat: Stat) -> bytes:
        return wire.ATTR_OUT.pack(self.lifetimes.positive, 0, 0, *wire.attr_fields(stat))

    def _lookup(self, node: Node, body: memoryview) -> Answer:
        try:
            return self._entry(*self.vfs.lookup(node, _name(body)))
        except FileNotFoundError:
            # Node 0 lets the kernel remember that there is nothing.
            return wire.ENTRY_OUT.pack(0, 0, self.lifetimes.negative, 0, 0, 0, *([0] * 16))

    def _getattr(self, node: Node, _body: memoryview) -> Answer:
        return self._attr(self.vfs.getattr(node))

    def _setattr(self, node: Node, body: memoryview) -> Answer:
        (
            valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, *_
        ) = wire.SETATTR_IN.unpack_from(body)  # fmt: skip
        changes = Changes(
            mode if valid & wire.SET_MODE else None,
            uid if valid & wire.SET_UID else None,
            gid if valid & wire.SET_GID else None,
            size if valid & wire.SET_SIZE else None,
            _time(atime, atime_ns, now=bool(valid & wire.SET_ATIME_NOW)) if valid & wire.SET_ATIME else None,
            _time(mtime, mtime_ns, now=bool(valid & wire.SET_MTIME_NOW)) if valid & wire.SET_MTIME else None,
        )
        if valid & wire.SET_KILL_SUIDGID:
            self.vfs.kill_privileges(node)
        return self._attr(self.vfs.setattr(node, changes))

    def _statx(self, node: Node, _body: memoryview) -> Answer:
        stat = self.vfs.getattr(node)
        return wire.statx_out(stat, self.lifetimes.positive, self.vfs.birth_ns(node))

    def _readlink(self, node: Node, _body: memoryview) -> Answer:
        return self.vfs.readlink(node)

    # --- making and removing ----------------------------------------------------------------------------------

    def _symlink(self, node: Node, body: memoryview) -> Answer:
        name, target = bytes(body).split(b"\0")[:2]
        return self._entry(*self.vfs.symlink(node, name, target, self._who))

    def _mknod(self, node: Node, body: memoryview) -> Answer:
        mode, rdev, self._who.umask, _ = wire.MKNOD_IN.unpack_from(body)
        return self._entry(*self.vfs.mknod(node, _name(body[wire.MKNOD_IN.size :]), mode, rdev, self._who))

    def _mkdir(self, node: Node, body: memoryview) -> Answer:
        mode, self._who.umask = wire.MKDIR_IN.unpack_from(body)
        return self._entry(*self.vfs.mkdir(node, _name(body[wire.MKDIR_IN.size :]), mode, self._who))

    def _unlink(self, node: Node, body: memoryview) -> Answer:
        self.vfs.unlink(node, _name(body))
        return None

    def _rmdir(self, node: Node, body: memoryview) -> Answer:
        self.vfs.rmdir(node, _name(body))
        return None

    def _rename(self, node: Node, body: memoryview) -> Answer:
        return self._do_rename(node, body, wire.RENAME_IN.unpack_from(body)[0], 0, wire.RENAME_IN.size)

    def _rename2(self, node: Node, body: memoryview) -> Answer:
        new_dir, flags, _ = wire.RENAME2_IN.unpack_from(body)
        return self._do_rename(node, body, new_dir, flags, wire.RENAME2_IN.size)

    def _do_rename(self, node: Node, body: memoryview, new_dir: int, flags: int, at: int) -> Answer:
        old, new = bytes(body[at:]).split(b"\0")[:2]
        self.vfs.rename(node, old, self.vfs.nodes.get(new_dir), new, flags)
        return None

    def _link(self, node: Node, body: memoryview) -> Answer:
        target = self.vfs.nodes.get(wire.LINK_IN.unpack_from(body)[0])
        return self._entry(target, self.vfs.link(target, node, _name(body[wire.LINK_IN.size :])))

    # --- files ------------------------------------------------------------------------------------------------

    def _open(self, node: Node, body: memoryview) -> Answer:
        flags, open_flags = wire.OPEN_IN.unpack_from(body)
        first = self._may_fill and node.unread and not node.handles and flags & _NOT_FOR_CACHED_READS == os.O_RDONLY
        keep = self.vfs.open(node, truncate=bool(flags & os.O_TRUNC))
        node.unread = False
        if first and not keep:
            keep = self._fill(node)
        if open_flags & wire.OPEN_KILL_SUIDGID:
            self.vfs.kill_privileges(node)
        return wire.OPEN_OUT.pack(node.node_id, self._open_flags(keep=keep), 0)

    def _open_flags(self, *, keep: bool) -> int:
        if self._direct:
            return wire.FOPEN_DIRECT_IO
        return wire.FOPEN_KEEP_CACHE if keep else 0

    def _fill(self, node: Node) -> bool:
        """Give the kernel the pages of a small file with its first open, so that it need not ask; return whether it has them."""
        try:
            size = self.vfs.file_of(node).size
            if not 0 < size <= _FILL_BYTES:
                return False
            data = self.vfs.read(node, size, 0)
        except (OSError, KmsfsError):
            # What is wrong is told to who reads.
            return False
        head = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + wire.STORE.size + len(data), wire.NOTIFY_STORE, 0)
        try:
            os.writev(self.descriptor, [head + wire.STORE.pack(node.node_id, 0, len(data)), data])
        except OSError:
            return False
        return True

    def _create(self, node: Node, body: memoryview) -> Answer:
        _flags, mode, self._who.umask, _ = wire.CREATE_IN.unpack_from(body)
        return self._made(*self.vfs.create(node, _name(body[wire.CREATE_IN.size :]), mode, self._who))

    def _tmpfile(self, node: Node, body: memoryview) -> Answer:
        _flags, mode, self._who.umask, _ = wire.CREATE_IN.unpack_from(body)
        return self._made(*self.vfs.create_nameless(node, mode, self._who))

    def _made(self, made: Node, stat: Stat) -> bytes:
        made.keep_cache, made.unread = True, False
        return self._entry(made, stat) + wire.OPEN_OUT.pack(made.node_id, self._open_flags(keep=True), 0)

    def _read(self, node: Node, body: memoryview) -> Answer:
        _, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return self.vfs.read(node, size, offset)

    def _write(self, node: Node, body: memoryview) -> Answer:
        _, offset, size, write_flags, *_ = wire.READ_IN.unpack_from(body)
        data = body[wire.READ_IN.size : wire.READ_IN.size + size]
        cached = bool(write_flags & wire.WRITE_CACHE)
        if write_flags & wire.WRITE_KILL_SUIDGID:
            self.vfs.kill_privileges(node)
        return wire.WRITE_OUT.pack(self.vfs.write(node, data, offset, cached=cached), 0)

    def _release(self, node: Node, _body: memoryview) -> Answer:
        self.vfs.release(node)
        return None

    def _fsync(self, node: Node, _body: memoryview) -> Answer:
        self.vfs.fsync(node)
        return None

    def _fallocate(self, node: Node, body: memoryview) -> Answer:
        _, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        self.vfs.allocate(node, mode, offset, length)
        return None

    def _lseek(self, node: Node, body: memoryview) -> Answer:
        _, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        if whence not in (_SEEK_DATA, _SEEK_HOLE):
            raise OSError(errno.EINVAL, "unknown whence")
        return wire.LSEEK_OUT.pack(self.vfs.seek(node, offset, data=whence == _SEEK_DATA))

    def _statfs(self, _node: Node, _body: memoryview) -> Answer:
        s = self.vfs.statfs()
        return wire.STATFS_OUT.pack(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, 255, s.f_frsize, 0
        )

    # --- extended attributes ----------------------------------------------------------------------------------

    def _setxattr(self, node: Node, body: memoryview) -> Answer:
        size, flags, more_flags, _ = wire.SETXATTR_IN.unpack_from(body)
        name, _, rest = bytes(body[wire.SETXATTR_IN.size :]).partition(b"\0")
        kill = bool(more_flags & wire.SETXATTR_ACL_KILL_SGID)
        self.vfs.set_xattr(node, name, rest[:size], flags, self._who, kill_sgid=kill)
        return None

    def _getxattr(self, node: Node, body: memoryview) -> Answer:
        wanted, _ = wire.GETXATTR_IN.unpack_from(body)
        return _sized(self.vfs.get_xattr(node, _name(body[wire.GETXATTR_IN.size :])), wanted)

    def _listxattr(self, node: Node, body: memoryview) -> Answer:
        wanted, _ = wire.GETXATTR_IN.unpack_from(body)
        return _sized(self.vfs.list_xattrs(node, self._who), wanted)

    def _removexattr(self, node: Node, body: memoryview) -> Answer:
        self.vfs.remove_xattr(node, _name(body), self._who)
        return None

    # --- directories ------------------------------------------------------------------------------------------

    def _opendir(self, node: Node, _body: memoryview) -> Answer:
        flags = wire.FOPEN_KEEP_CACHE | wire.FOPEN_CACHE_DIR if self._keeps_listings else 0
        return wire.OPEN_OUT.pack(self.directories.open(node), flags, 0)

    def _releasedir(self, _node: Node, body: memoryview) -> Answer:
        self.directories.release(wire.RELEASE_IN.unpack_from(body)[0])
        return None

    def _readdir(self, _node: Node, body: memoryview) -> Answer:
        handle, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return self.directories.read(handle, offset, size)

    def _readdirplus(self, _node: Node, body: memoryview) -> Answer:
        handle, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return self.directories.read_plus(handle, offset, size, self.lifetimes.positive)

    def _fsyncdir(self, node: Node, _body: memoryview) -> Answer:
        self.vfs.fsyncdir(node)
        return None


def _time(seconds: int, nanoseconds: int, *, now: bool) -> int:
    if now:
        return time.time_ns()
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * wire.NS + nanoseconds


def _sized(value: bytes, wanted: int) -> bytes:
    """Return a value, or its length to a caller who asks with no room for it."""
    if not wanted:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > wanted:
        raise OSError(errno.ERANGE, "the value is longer than the buffer")
    return value


def _name(body: memoryview) -> bytes:
    return bytes(body).split(b"\0", 1)[0]
