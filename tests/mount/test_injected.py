"""System calls of a running mount that fail, injected by strace: nothing that was promised is lost, nothing is damaged, and rm works.

`KMSFS_INJECTED=1 pytest tests/mount/test_injected.py` tries each call at twenty places instead of two.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from kmsfs.mount.durability import TICK_SECONDS

pytestmark = [pytest.mark.fuse, pytest.mark.root]

BLOCK = 4096
EVERYWHERE = bool(os.environ.get("KMSFS_INJECTED"))
OFTEN = {"pwrite64": ("EIO", "ENOSPC", "EDQUOT", "EINTR"), "fsync": ("EIO",), "fdatasync": ("EIO", "ENOSPC"), "openat": ("EMFILE", "EIO"), "newfstatat": ("EIO",)}
SELDOM = {
    "pread64": ("EIO",), "renameat": ("EIO", "ENOSPC"), "linkat": ("EIO",), "unlinkat": ("EIO",), "mkdirat": ("ENOSPC",), "symlinkat": ("ENOSPC",),
    "getdents64": ("EIO",), "syncfs": ("EIO",),
}  # fmt: skip


def cases():
    rng = random.Random(7)
    for calls, turns, last in ((OFTEN, 2, 12), (SELDOM, 1, 2)):
        for name, errors in calls.items():
            for turn in range(20 if EVERYWHERE else turns):
                yield name, errors[turn % len(errors)], rng.randrange(1, last if turn else 2)


@contextlib.contextmanager
def injected(process, name, error, when, log):
    """Let the `when`-th call of each thread fail, and each third one after it."""
    command = ["strace", "-f", "-p", str(process.pid), "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={when}+3", "-o", str(log)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in tracer.stderr:
            if "attached" in line:
                break
        else:
            raise RuntimeError("strace did not attach")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.stderr.read()
        tracer.wait(20)
        tracer.stderr.close()


class Life:
    """Works in a mount as somebody who takes each error as it comes, and remembers what he was promised."""

    def __init__(self, plain, rng):
        self.plain, self.rng, self.version = plain, rng, 0
        self.wrote = {}
        """By name of a file: versions of each of its blocks that may be there; the first was made durable."""
        self.refused = 0

    def run(self, steps):
        for _ in range(steps):
            step = self.rng.choice((self.make, self.make, self.overwrite, self.overwrite, self.cut, self.replace, self.rename, self.link, self.remove, self.folder, self.attribute, self.look))
            try:
                step()
            except OSError:
                self.refused += 1

    def content(self, blocks):
        self.version += 1
        return self.version, b"".join(f"{self.version}/{block};".encode().ljust(BLOCK, b".") for block in range(blocks))

    def make(self):
        name, blocks = f"f{self.rng.randrange(40)}", self.rng.choice((1, 3, 60))
        if name in self.wrote or os.path.lexists(self.plain / name):
            return
        version, content = self.content(blocks)
        with open(self.plain / name, "xb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
            folder = os.open(self.plain, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self.wrote[name] = [[version] for _ in range(blocks)]

    def overwrite(self):
        if not self.wrote:
            return
        name = self.rng.choice(sorted(self.wrote))
        block = self.rng.randrange(len(self.wrote[name]))
        version, _ = self.content(0)
        descriptor = os.open(self.plain / name, os.O_RDWR)
        try:
            self.wrote[name][block].append(version)
            os.pwrite(descriptor, f"{version}/{block};".encode().ljust(BLOCK, b"."), block * BLOCK)
            os.fsync(descriptor)
            # All that was written before it is durable with it; this block is this version.
            self.wrote[name][block] = [version]
        finally:
            os.close(descriptor)

    def cut(self):
        if not self.wrote:
            return
        name = self.rng.choice(sorted(self.wrote))
        size = len(self.wrote[name]) * BLOCK
        descriptor = os.open(self.plain / name, os.O_RDWR)
        try:
            os.pwrite(descriptor, bytes(40 * BLOCK), size)
            os.fsync(descriptor)
            for _ in range(2):
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self):
        if not self.wrote:
            return
        name = self.rng.choice(sorted(self.wrote))
        os.link(self.plain / name, self.plain / f"l{self.version}{self.rng.randrange(99)}")

    def replace(self):
        if not self.wrote:
            return
        name = self.rng.choice(sorted(self.wrote))
        version, content = self.content(len(self.wrote[name]))
        new = self.plain / "new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        with open(new, "xb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        for block in self.wrote[name]:
            block.append(version)
        os.rename(new, self.plain / name)
        self.wrote[name] = [[version] for _ in self.wrote[name]]

    def rename(self):
        if not self.wrote:
            return
        name, other = self.rng.choice(sorted(self.wrote)), f"r{self.rng.randrange(1000)}"
        if other in self.wrote:
            return
        try:
            os.rename(self.plain / name, self.plain / other)
        finally:
            # One that failed has happened or not, and nothing in between.
            there = [each for each in (name, other) if os.path.lexists(self.plain / each)]
            if there == [other]:
                self.wrote[other] = self.wrote.pop(name)

    def remove(self):
        if len(self.wrote) < 4:
            return
        name = self.rng.choice(sorted(self.wrote))
        try:
            os.unlink(self.plain / name)
        finally:
            if not os.path.lexists(self.plain / name):
                del self.wrote[name]

    def folder(self):
        os.mkdir(self.plain / f"d{self.version}{self.rng.randrange(99)}")

    def attribute(self):
        if self.wrote:
            os.setxattr(self.plain / self.rng.choice(sorted(self.wrote)), b"user.a", os.urandom(8))

    def look(self):
        for name in os.listdir(self.plain):
            os.lstat(self.plain / name)
        for name in self.wrote:
            descriptor = os.open(self.plain / name, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(descriptor, BLOCK, 0)
            finally:
                os.close(descriptor)

    def verify(self):
        """Every file is there, reads, and has in each block what was promised or written later."""
        for name, blocks in self.wrote.items():
            content = read(self.plain / name)
            # What was to be cut off again may be there yet.
            assert len(content) >= len(blocks) * BLOCK, (name, len(content))
            for number, versions in enumerate(blocks):
                found = content[number * BLOCK :][:BLOCK]
                assert found in {f"{version}/{number};".encode().ljust(BLOCK, b".") for version in versions}, (name, number, found[:20], versions)


def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        with contextlib.suppress(OSError):
            # The kernel tells the next one who closes a file of what it could not write back before.
            os.close(descriptor)


def checked(mount):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    done = subprocess.run([sys.executable, "-m", "kmsfs.cli", "--json", "check", str(mount.cipher)], env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout)["findings"]


@pytest.mark.parametrize("name,error,when", list(cases()))
def test_a_call_that_fails_loses_nothing(make_mount, tmp_path, name, error, when):
    mount = make_mount().start()
    life = Life(mount.plain, random.Random(f"{name}{error}{when}"))
    life.run(12)
    with injected(mount.process, name, error, when, tmp_path / "log"):
        life.run(25)
        if name == "syncfs":
            time.sleep(TICK_SECONDS + 0.5)
        for _ in range(10):
            if "INJECTED" in (tmp_path / "log").read_text():
                break
            life.run(10)
    assert "INJECTED" in (tmp_path / "log").read_text()
    life.verify()
    life.run(8)
    life.verify()
    kill = random.Random(f"{when}{name}").random() < 0.4
    if kill:
        mount.kill()
    else:
        mount.stop()
    code, findings = checked(mount)
    assert code == 0, findings
    mount.start()
    life.verify()
    done = subprocess.run(f"rm -r {mount.plain}/*", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir(mount.plain) == []
