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
}


def facts(root, path):
    """Return what stat says of a path, without numbers that differ by nature."""
    try:
        found = os.lstat(f"{root}/{path}")
    except OSError as error:
        return errno.errorcode[error.errno]
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
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
    if kind == "chown" and arguments == [-1, -1]:
        return True  # the kernel does not tell a FUSE file system of it, so set-group-id stays
    with contextlib.suppress(OSError):
        mode = os.stat(f"{shadow}/{path}").st_mode
        # Devices, FIFOs and sockets have no id to which a record could be bound.
        return kind in ("setxattr", "getxattr", "removexattr") and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def random_step(rng):
    """Return one random call."""
    path, other = rng.choice(NAMES), rng.choice(NAMES)
    kind = rng.choice(sorted(_ACTS))
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
    }  # fmt: skip
    return (kind, *arguments[kind])


def compare(mounted, shadow, seed, steps):
    """Run `steps` random calls under both roots; return the first disagreements, described."""
    rng = random.Random(seed)
    users = [User(*identity, umask) for identity, umask in zip(USERS, (0o022, 0o077, 0, 0o027), strict=True)]
    found = []
    for root in (mounted, shadow):
        os.chmod(root, 0o1777)
        for name, mode in (("d", 0o777), ("t", 0o1777)):
            os.mkdir(f"{root}/{name}")
            os.chmod(f"{root}/{name}", mode)
    try:
        for number in range(steps):
            user, step = rng.randrange(len(users)), random_step(rng)
            if _differs_by_design(shadow, step):
                continue
            answers = [users[user].run(os.fspath(root), step) for root in (mounted, shadow)]
            if answers[0] != answers[1]:
                found.append(f"seed {seed} step {number} {USERS[user][0]} {step}: {answers[0]!r}, plain {answers[1]!r}"[:400])
            for name in NAMES:
                pair = [facts(root, name) for root in (mounted, shadow)]
                if pair[0] != pair[1]:
                    found.append(f"seed {seed} step {number} {USERS[user][0]} {step}: {name} is {pair[0]}, plain {pair[1]}"[:400])
            if found:
                break
    finally:
        for user in users:
            user.stop()
    return found
