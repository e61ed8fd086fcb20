"""Random system calls by several users under two roots; answers, error numbers and attributes must agree.

Each user is a child process with its own uid, gid, groups and umask that runs calls sent to it as tuples. What a call
answers is compared, then the attributes of everything it named.
"""

import contextlib
import errno
import multiprocessing
import os
import random
import stat

from kmsfs.backing.posix import rename_with_flags

USERS = [(0, 0, (0,)), (65534, 65533, (65533,)), (1001, 1002, (1002, 65533)), (1003, 1002, (1002,))]
NAMES = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "s", "t", "t/a", "t/b", "l" * 200, "n" * 256]
MODES = [0o644, 0o600, 0o000, 0o755, 0o777, 0o4755, 0o2755, 0o2711, 0o1777, 0o6777, 0o222, 0o444, 0o711]
SIZES = [0, 1, 100, 5000, 70_000]
XATTRS = ["user.a", "user.b", "trusted.c", "security.d", "system.e", "nonsense"]


def call(root, user, step):
    """Run one step in a child; return its plain outcome."""
    name, *arguments = step
    try:
        return _ACTS[name](root, user, *arguments)
    except OSError as error:
        return f"E{errno.errorcode.get(error.errno, error.errno)}"


def _open(root, user, path, flags, mode, data):
    descriptor = os.open(f"{root}/{path}", flags, mode)
    try:
        if data and flags & (os.O_WRONLY | os.O_RDWR):
            os.write(descriptor, data)
        return len(os.read(descriptor, 100_000)) if flags & os.O_RDWR or not flags & os.O_WRONLY else "ok"
    finally:
        os.close(descriptor)


_LINKS = ["link", "link", "unlink", "rename", "open", "hold", "hold", "held_write", "held_write", "held_truncate", "held_read", "held_sync",
          "held_facts", "release", "release"]  # fmt: skip
_HELD = {}
"""Descriptors that a child keeps open over steps, by root and place."""


def _hold(root, user, path, place, flags, mode):
    descriptor = os.open(f"{root}/{path}", flags | os.O_NONBLOCK, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return "no file"
    if (root, place) in _HELD:
        os.close(_HELD[root, place])
    _HELD[root, place] = descriptor
    return "ok"


def _held(function):
    def act(root, user, place, *arguments):
        descriptor = _HELD.get((root, place))
        if descriptor is None:
            return "nothing held"
        return function(descriptor, *arguments)

    return act


def _release(root, user, place):
    descriptor = _HELD.pop((root, place), None)
    if descriptor is not None:
        os.close(descriptor)
    return "ok"


def _held_facts(descriptor):
    found = os.fstat(descriptor)
    return found.st_size, found.st_nlink, oct(found.st_mode)


def _set_acl(root, user, path, kind, uid, bits):
    import struct

    entries = [(1, 6, -1), (2, bits, uid), (4, 4, -1), (0x10, 7, -1), (0x20, 4, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, p, i & 0xFFFFFFFF) for t, p, i in entries)
    os.setxattr(f"{root}/{path}", f"system.posix_acl_{kind}", value)
    return "ok"


def _listed(root, user, path):
    names = [name for name in os.listxattr(f"{root}/{path}", follow_symlinks=False)]
    return sorted(name for name in names if not name.startswith("security.selinux"))


def _simple(function):
    def act(root, user, *arguments):
        result = function(root, *arguments)
        return "ok" if result is None else result

    return act


_ACTS = {
    "open": _open,
    "mkdir": _simple(lambda r, p, m: os.mkdir(f"{r}/{p}", m)),
    "mkfifo": _simple(lambda r, p, m: os.mkfifo(f"{r}/{p}", m)),
    "mknod": _simple(lambda r, p, m: os.mknod(f"{r}/{p}", m | stat.S_IFSOCK)),
    "symlink": _simple(lambda r, t, p: os.symlink(t, f"{r}/{p}")),
    "link": _simple(lambda r, a, b: os.link(f"{r}/{a}", f"{r}/{b}", follow_symlinks=False)),
    "unlink": _simple(lambda r, p: os.unlink(f"{r}/{p}")),
    "rmdir": _simple(lambda r, p: os.rmdir(f"{r}/{p}")),
    "rename": _simple(lambda r, a, b: os.rename(f"{r}/{a}", f"{r}/{b}")),
    "rename2": _simple(lambda r, a, b, f: rename_with_flags(-100, f"{r}/{a}", -100, f"{r}/{b}", f)),
    "chmod": _simple(lambda r, p, m: os.chmod(f"{r}/{p}", m)),
    "chown": _simple(lambda r, p, u, g: os.chown(f"{r}/{p}", u, g, follow_symlinks=False)),
    "truncate": _simple(lambda r, p, n: os.truncate(f"{r}/{p}", n)),
    "utime": _simple(lambda r, p, t: os.utime(f"{r}/{p}", ns=t)),
    "utime_now": _simple(lambda r, p: os.utime(f"{r}/{p}")),
    "access": _simple(lambda r, p, m: os.access(f"{r}/{p}", m)),
    "readlink": _simple(lambda r, p: os.readlink(f"{r}/{p}")),
    "listdir": _simple(lambda r, p: sorted(os.listdir(f"{r}/{p}"))),
    "setxattr": _simple(lambda r, p, n, v, f: os.setxattr(f"{r}/{p}", n, v, f)),
    "getxattr": _simple(lambda r, p, n: os.getxattr(f"{r}/{p}", n)),
    "removexattr": _simple(lambda r, p, n: os.removexattr(f"{r}/{p}", n)),
    "listxattr": _listed,
    "set_acl": _set_acl,
    "hold": _hold,
    "held_write": _held(lambda d, data, at: os.pwrite(d, data, at)),
    "held_read": _held(lambda d, length, at: os.pread(d, length, at)),
    "held_truncate": _held(os.ftruncate),
    "held_sync": _held(os.fsync),
    "held_facts": _held(_held_facts),
    "release": _release,
}


def facts(root, path):
    """Return what stat and the content say of a path, without numbers that differ by nature."""
    try:
        found = os.lstat(f"{root}/{path}")
    except OSError as error:
        return errno.errorcode[error.errno]
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    if stat.S_ISREG(found.st_mode):
        with open(f"{root}/{path}", "rb") as stream:
            size = size, hash(stream.read())
    links = found.st_nlink if not stat.S_ISDIR(found.st_mode) else 0
    return oct(found.st_mode), links, found.st_uid, found.st_gid, size, found.st_rdev


class User:
    """One child process with an identity."""

    def __init__(self, uid, gid, groups, umask):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=self._serve, args=(theirs, uid, gid, groups, umask), daemon=True
        )
        self.process.start()

    def _serve(self, pipe, uid, gid, groups, umask):
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(umask)
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(call(*pipe.recv()))

    def run(self, root, step):
        self.pipe.send((root, None, step))
        return self.pipe.recv()

    def stop(self):
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _differs_by_design(shadow, step):
    """Whether a step is one of the few whose answer is another: docs/reference/posix.md names them."""
    kind, path, *arguments = step
    if not isinstance(path, str):
        return False
    if kind == "chown" and arguments == [-1, -1]:
        return True  # the kernel does not tell a FUSE file system of it, so set-group-id stays
    with contextlib.suppress(OSError):
        mode = os.stat(f"{shadow}/{path}").st_mode
        if kind == "chown" and mode & stat.S_ISGID and not mode & stat.S_IXGRP and not stat.S_ISDIR(mode):
            return True  # who is not in the file's group loses this bit, which means nothing without group execute
        # Devices, FIFOs and sockets have no id to which a record could be bound.
        return kind in ("setxattr", "getxattr", "removexattr") and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def random_step(rng, *, focused):
    """Return one random call; `focused` on few files, their links, and descriptors that stay open."""
    names, acts = (NAMES[:3], _LINKS) if focused and rng.random() < 0.7 else (NAMES, sorted(_ACTS))
    path, other = rng.choice(names), rng.choice(names)
    kind = rng.choice(acts)
    place = rng.randrange(3)
    mode = rng.choice(MODES)
    ids = [-1, 0, 1001, 1003, 65534]
    flags = rng.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]) | rng.choice([0, os.O_CREAT, os.O_CREAT | os.O_EXCL])
    flags |= rng.choice([0, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY]) | os.O_NONBLOCK
    arguments = {
        "open": (path, flags, mode, bytes(rng.choice(SIZES))),
        "mkdir": (path, mode), "mkfifo": (path, mode), "mknod": (path, mode), "symlink": (other, path),
        "link": (path, other), "unlink": (path,), "rmdir": (path,), "rename": (path, other),
        "rename2": (path, other, rng.choice([1, 2])), "chmod": (path, mode),
        "chown": (path, rng.choice(ids), rng.choice([-1, 0, 1002, 65533])),
        "truncate": (path, rng.choice(SIZES)), "utime": (path, (rng.randrange(1 << 60), rng.randrange(1 << 60))),
        "utime_now": (path,), "access": (path, rng.randrange(8)), "readlink": (path,), "listdir": (path,),
        "setxattr": (path, rng.choice(XATTRS), bytes(rng.choice([0, 3, 900])), rng.choice([0, 0, 1, 2])),
        "getxattr": (path, rng.choice(XATTRS)), "removexattr": (path, rng.choice(XATTRS)), "listxattr": (path,),
        "set_acl": (path, rng.choice(["access", "default"]), rng.choice([1001, 1003]), rng.randrange(8)),
        "hold": (path, place, flags, mode), "held_write": (place, rng.randbytes(rng.choice(SIZES)), rng.choice([0, 3, 4096, 20_000])),
        "held_read": (place, 100_000, rng.choice([0, 50])), "held_truncate": (place, rng.choice(SIZES)), "held_sync": (place,),
        "held_facts": (place,), "release": (place,),
    }  # fmt: skip
    return (kind, *arguments[kind])


def _forget():
    """Let the kernel, and so the mount, forget what nobody uses."""
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as knob:
        knob.write("2")


def compare(mounted, shadow, seed, steps):
    """Run `steps` random calls under both roots; return the first disagreements, described."""
    rng = random.Random(seed)
    focused = rng.random() < 0.5
    users = [User(*identity, umask) for identity, umask in zip(USERS, (0o022, 0o077, 0, 0o027), strict=True)]
    found = []
    for root in (mounted, shadow):
        os.chmod(root, 0o1777)
        for name, mode in (("d", 0o777), ("t", 0o1777)):
            os.mkdir(f"{root}/{name}")
            os.chmod(f"{root}/{name}", mode)
    try:
        for number in range(steps):
            user, step = rng.randrange(len(users)), random_step(rng, focused=focused)
            if _differs_by_design(shadow, step):
                continue
            answers = [users[user].run(os.fspath(root), step) for root in (mounted, shadow)]
            if step[0] == "link" and answers == ["EEPERM", "ok"]:
                # The kernel's copy of the mode is older than the write that cleared a set-user-ID bit: a stat renews it.
                os.lstat(f"{mounted}/{step[1]}")
                answers[0] = users[user].run(os.fspath(mounted), step)
            if answers[0] != answers[1]:
                found.append(f"seed {seed} step {number} {USERS[user][0]} {step}: {answers[0]!r}, plain {answers[1]!r}"[:400])
            if rng.random() < (0.15 if focused else 0.02):
                _forget()
            # What is not looked at stays unknown to the mount for a while.
            for name in NAMES if number % 8 == 7 or rng.random() < (0.1 if focused else 0.7) else ():
                pair = [facts(root, name) for root in (mounted, shadow)]
                if pair[0] != pair[1]:
                    found.append(f"seed {seed} step {number} {USERS[user][0]} {step}: {name} is {pair[0]}, plain {pair[1]}"[:400])
            if found:
                break
        for user, place, root in ((user, place, root) for user in users for place in range(3) for root in (mounted, shadow)):
            user.run(os.fspath(root), ("release", place))
        _forget()
        for name in NAMES if not found else ():
            pair = [facts(root, name) for root in (mounted, shadow)]
            if pair[0] != pair[1]:
                found.append(f"seed {seed} at the end: {name} is {pair[0]}, plain {pair[1]}"[:400])
    finally:
        for user in users:
            user.stop()
    return found
