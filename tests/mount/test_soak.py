"""Random operations on a live mount and on a plain directory beside it: both must agree, warm, cold and under `check`.

Some seconds in CI; `KMSFS_SOAK_SECONDS=600 pytest tests/mount/test_soak.py` is the long form.
"""

import filecmp
import os
import random
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(7200)]
SECONDS = float(os.environ.get("KMSFS_SOAK_SECONDS", "8"))
SIZES = (0, 1, 100, 1000, 2960, 2961, 4096, 20_000, 200_000)


class Pair:
    """The same operations under two roots."""

    def __init__(self, mounted, shadow, seed):
        self.mounted, self.shadow = os.fspath(mounted), os.fspath(shadow)
        self.rng = random.Random(seed)
        self.dirs, self.files = [""], []

    def both(self, act):
        for root in (self.mounted, self.shadow):
            act(root)

    def fresh(self):
        return os.path.join(self.rng.choice(self.dirs), f"x{self.rng.randrange(1 << 40)}")

    def step(self):
        choices = [self.write, self.write, self.patch, self.truncate, self.rename, self.unlink, self.link, self.mkdir,
                   self.forget, self.compare, self.compare]  # fmt: skip
        (self.rng.choice(choices) if self.files else self.write)()

    def write(self):
        path, data = self.fresh(), self.rng.randbytes(self.rng.choice(SIZES))

        def act(root):
            with open(os.path.join(root, path), "wb") as stream:
                stream.write(data)

        self.both(act)
        self.files.append(path)

    def patch(self):
        path, offset = self.rng.choice(self.files), self.rng.randrange(30_000)
        data, sync = self.rng.randbytes(self.rng.randrange(1, 9000)), self.rng.random() < 0.2

        def act(root):
            with open(os.path.join(root, path), "r+b") as stream:
                stream.seek(offset)
                stream.write(data)
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())

        self.both(act)

    def truncate(self):
        path, size = self.rng.choice(self.files), self.rng.randrange(40_000)
        self.both(lambda root: os.truncate(os.path.join(root, path), size))

    def rename(self):
        old = self.rng.choice(self.files)
        new = self.fresh() if self.rng.random() < 0.6 else self.rng.choice(self.files)
        full = os.path.join(self.shadow, new)
        if os.path.exists(full) and os.path.samefile(full, os.path.join(self.shadow, old)):
            return
        self.both(lambda root: os.rename(os.path.join(root, old), os.path.join(root, new)))
        self.files.remove(old)
        if new not in self.files:
            self.files.append(new)

    def unlink(self):
        path = self.files.pop(self.rng.randrange(len(self.files)))
        self.both(lambda root: os.unlink(os.path.join(root, path)))

    def link(self):
        old, new = self.rng.choice(self.files), self.fresh()
        if os.stat(os.path.join(self.shadow, old)).st_nlink < 4:
            self.both(lambda root: os.link(os.path.join(root, old), os.path.join(root, new)))
            self.files.append(new)

    def mkdir(self):
        if len(self.dirs) < 40:
            path = self.fresh()
            self.both(lambda root: os.mkdir(os.path.join(root, path)))
            self.dirs.append(path)

    def forget(self):
        if self.rng.random() < 0.1:
            with open("/proc/sys/vm/drop_caches", "w") as stream:
                stream.write("2")

    def compare(self):
        path = self.rng.choice(self.files)
        self.same(path)

    def same(self, path):
        filecmp.clear_cache()
        mine, theirs = os.path.join(self.mounted, path), os.path.join(self.shadow, path)
        assert filecmp.cmp(mine, theirs, shallow=False), path
        assert os.stat(mine).st_size == os.stat(theirs).st_size
        assert os.stat(mine).st_nlink == os.stat(theirs).st_nlink

    def same_everywhere(self):
        for path in self.files:
            self.same(path)
        for path in self.dirs:
            assert sorted(os.listdir(os.path.join(self.mounted, path or "."))) == sorted(os.listdir(os.path.join(self.shadow, path or ".")))


@pytest.mark.parametrize("transport", ["kernel", "fusepy"])
def test_both_agree(make_mount, tmp_path, transport):
    mount = make_mount("--transport", transport).start()
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    pair = Pair(mount.plain, shadow, int(os.environ.get("KMSFS_SOAK_SEED", "1")))
    end, steps = time.monotonic() + SECONDS / 2, 0
    while time.monotonic() < end:
        pair.step()
        steps += 1
    assert steps > 200
    pair.same_everywhere()
    mount.stop()
    command = [sys.executable, "-m", "kmsfs.cli", "check", str(mount.cipher)]
    done = subprocess.run(command, env={**os.environ, "KMSFS_SOCKET": mount.socket}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    mount.start()
    pair.same_everywhere()
