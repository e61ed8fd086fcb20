"""Many threads do everything to few names at once; what no file system answers is written down.

Run by itself it does that to any directory: `python races.py DIRECTORY SECONDS SEED [ERRNO…]`, to compare with the kernel's own;
the errnos are those that may come too.
"""

import contextlib
import errno
import json
import os
import random
import stat
import sys
import threading
import time

NAMES = ("n0", "n1", "n2", "n3", "n4", "n5")
FOLDERS = ("", "d0", "d1", "d0/e")
SIZES = (0, 10, 5000, 100_000)
THREADS = 8
FINE = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.ENODATA, errno.EPERM,
}  # fmt: skip
"""What a file system may answer to who comes too late, or to a name that is something else by now."""


class WrongContent(Exception):
    """A file has bytes that nobody wrote."""


def check_content(data):
    """Nothing but x is ever written, and holes are zeros."""
    if data.strip(b"x\0"):
        raise WrongContent(f"{len(data)} bytes, of which some were never written")


class Racer:
    """One thread's calls."""

    def __init__(self, root, seed):
        self.root = root
        self.rng = random.Random(seed)
        self.mine = f".{seed}"
        self.calls = [name for name in dir(self) if name.startswith("do_")]

    def path(self):
        return os.path.join(self.root, self.rng.choice(FOLDERS), self.rng.choice(NAMES))

    def data(self):
        return b"x" * self.rng.choice(SIZES)

    def replace_by(self, path):
        try:
            os.replace(path, self.path())
        except OSError:
            os.unlink(path)
            raise

    def do_read(self):
        with open(self.path(), "rb") as file:
            check_content(file.read())

    def do_write(self):
        with open(self.path(), "wb") as file:
            file.write(self.data())

    def do_append(self):
        with open(self.path(), "ab") as file:
            file.write(b"x" * 100)

    def do_update(self):
        with open(self.path(), "r+b") as file:
            time.sleep(self.rng.random() / 100)
            file.write(b"xxxx")
            file.flush()
            os.fstat(file.fileno())
            file.seek(0)
            check_content(file.read())

    def do_lstat(self):
        os.lstat(self.path())

    def do_stat(self):
        os.stat(self.path())

    def do_list(self):
        for entry in os.scandir(os.path.join(self.root, self.rng.choice(FOLDERS))):
            entry.stat(follow_symlinks=False)

    def do_readlink(self):
        os.readlink(self.path())

    def do_symlink(self):
        os.symlink(self.rng.choice(NAMES), self.path())

    def do_replace_link(self):
        path = self.path() + self.mine
        os.symlink(self.rng.choice(NAMES), path)
        self.replace_by(path)

    def do_replace(self):
        path = self.path() + self.mine
        with open(path, "wb") as file:
            file.write(self.data())
        self.replace_by(path)

    def do_rename(self):
        os.rename(self.path(), self.path())

    def do_link(self):
        os.link(self.path(), self.path())

    def do_unlink(self):
        os.unlink(self.path())

    def do_chmod(self):
        os.chmod(self.path(), self.rng.choice((0o600, 0o644, 0o700)))

    def do_chown(self):
        os.chown(self.path(), self.rng.randrange(3), 2, follow_symlinks=False)

    def do_utime(self):
        os.utime(self.path(), (self.rng.randrange(10**9), self.rng.randrange(10**9)))

    def do_truncate(self):
        os.truncate(self.path(), self.rng.choice((0, 5, 5000, 70_000)))

    def do_setxattr(self):
        os.setxattr(self.path(), "user.a", b"x" * self.rng.choice((1, 100, 3000)))

    def do_getxattr(self):
        check_content(os.getxattr(self.path(), "user.a"))

    def do_listxattr(self):
        os.listxattr(self.path())

    def do_removexattr(self):
        os.removexattr(self.path(), "user.a")

    def do_mkdir(self):
        os.mkdir(self.path())

    def do_mkdir_folder(self):
        os.mkdir(os.path.join(self.root, self.rng.choice(FOLDERS[1:])))

    def do_rmdir(self):
        os.rmdir(self.path())

    def do_move_folders(self):
        first, second = os.path.join(self.root, "d0"), os.path.join(self.root, "d1")
        os.rename(first, first + self.mine)
        with contextlib.suppress(OSError):
            os.rename(second, first)
        os.rename(first + self.mine, second)

    def do_fsync(self):
        descriptor = os.open(self.path(), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def do_hold(self):
        """Find something, and ask of it later, whatever became of its name."""
        descriptor = os.open(self.path(), os.O_PATH | os.O_NOFOLLOW)
        try:
            time.sleep(self.rng.random() / 200)
            again, kind = f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_mode
            if stat.S_ISREG(kind):
                with open(again, "rb") as file:
                    check_content(file.read())
                os.chmod(again, 0o644)
            elif stat.S_ISLNK(kind):
                assert os.readlink("", dir_fd=descriptor) in NAMES
            elif stat.S_ISDIR(kind):
                os.listdir(again)
        finally:
            os.close(descriptor)


def race(root, seconds, seed, fine):
    """Do it; return (how many calls were answered, how many of those did something, what should not have been)."""
    for folder in FOLDERS[1:]:
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    counts, wrong, end = [0, 0], [], time.monotonic() + seconds

    def work(number):
        racer = Racer(root, seed * THREADS + number)
        while time.monotonic() < end:
            call = racer.rng.choice(racer.calls)
            counts[0] += 1
            try:
                getattr(racer, call)()
                counts[1] += 1
            except OSError as error:
                if error.errno not in fine:
                    wrong.append(f"{call}: {error}")
            except (AssertionError, WrongContent) as error:
                wrong.append(f"{call}: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts[0], counts[1], wrong


if __name__ == "__main__":
    may_come = FINE | {getattr(errno, name) for name in sys.argv[4:]}
    json.dump(race(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), may_come), sys.stdout)
