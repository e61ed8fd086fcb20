"""Mixed load on a daemon and two mounts, with kills, full disks and reloads: nothing acknowledged is lost, and memory stays flat.

Some seconds in CI; `KMSFS_SOAK_SECONDS=1800 pytest -s tests/mount/test_mixed_soak.py` is the long form, and prints a row each minute.
"""

import contextlib
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle

import pytest

from kmsfs import errors

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.timeout(7200)]
SECONDS = float(os.environ.get("KMSFS_SOAK_SECONDS", "15"))
DISK_MIB, KEPT_FILES, NAMES = 192, 150, 200
EVENTS = ("fill", "reload", "kill mount", "kill daemon")


class Worker(threading.Thread):
    """Steps until it is told to end; what it finds wrong is in `failure`."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.rng = random.Random(seed)
        self.over = threading.Event()
        self.steps = self.refused = 0
        self.failure = None

    def run(self):
        try:
            while not self.over.wait(0.002):
                self.step()
                self.steps += 1
        except BaseException as error:
            self.failure = error

    def end(self):
        self.over.set()
        self.join(120)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure


class Files(Worker):
    """Files of one mount: written and synced once, read, removed."""

    def __init__(self, mount, seed):
        super().__init__(seed)
        self.mount, self.folder = mount, mount.plain / "d"
        # Within the volume alone: what is written while nothing is mounted goes nowhere.
        self.folder.mkdir()
        self.synced, self.doubtful = {}, set()

    def step(self):
        try:
            if self.rng.random() < 0.4:
                self.write()
            elif self.synced:
                self.same(self.rng.choice(list(self.synced)))
            if len(self.synced) > KEPT_FILES:
                self.remove(self.rng.choice(list(self.synced)))
            for name in list(self.doubtful):
                self.remove(name)
        except OSError:
            # Full, or killed: nothing was promised. The same is asked again at the end, without mercy.
            self.refused += 1
            time.sleep(0.05)

    def write(self):
        name, data = f"{self.rng.randrange(1 << 60):x}", self.rng.randbytes(self.rng.choice((0, 1, 900, 4096, 70_000, 900_000)))
        self.doubtful.add(name)
        with open(self.folder / name, "xb", buffering=0) as stream:
            assert stream.write(data) == len(data)
            os.fsync(stream.fileno())
        self.synced[name] = hashlib.sha256(data).digest()
        self.doubtful.remove(name)

    def remove(self, name):
        # It may be gone or not from here on, if the mount dies meanwhile.
        self.synced.pop(name, None)
        self.doubtful.add(name)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()
        if self.mount.plain.is_mount():
            self.doubtful.discard(name)

    def same(self, name):
        data = (self.folder / name).read_bytes()
        assert hashlib.sha256(data).digest() == self.synced[name], f"{self.folder / name} is not what was synced"

    def same_everywhere(self):
        for name in self.synced:
            self.same(name)


class Calls(Worker):
    """Parameters and data keys of one client."""

    def __init__(self, daemon, seed):
        super().__init__(seed)
        self.daemon, self.session = daemon, daemon.session()
        self.stored, self.perhaps = {}, {}

    def step(self):
        try:
            self.change()
            self.same(f"/soak/{self.rng.randrange(NAMES)}")
            made = self.session.call("GenerateDataKey", {"KeyId": "alias/soak", "KeySpec": "AES_256"})
            assert self.session.call("Decrypt", {"CiphertextBlob": made["CiphertextBlob"]})["Plaintext"] == made["Plaintext"]
        except errors.Unavailable:
            self.refused += 1
            time.sleep(0.05)

    def change(self):
        name, value = f"/soak/{self.rng.randrange(NAMES)}", f"{self.rng.randrange(1 << 60):x}"
        self.perhaps.setdefault(name, set()).add(value)
        self.session.call("PutParameter", {"Name": name, "Value": value, "Type": "SecureString", "KeyId": "alias/soak", "Overwrite": True})
        self.stored[name] = value
        self.perhaps[name] = set()

    def same(self, name):
        if name in self.stored:
            value = self.session.call("GetParameter", {"Name": name, "WithDecryption": True})["Parameter"]["Value"]
            assert value == self.stored[name] or value in self.perhaps[name], f"{name} is not what was acknowledged"


class Soak:
    """The load, what happens to it, and what it looked like."""

    def __init__(self, daemon, first, second, disk):
        self.daemon, self.mounts, self.disk = daemon, (first, second), disk
        self.workers = [Files(first, 1), Files(second, 2), Calls(daemon, 3)]
        self.done = dict.fromkeys(EVENTS, 0)
        self.rows = []

    def happen(self, event):
        """The second mount is never killed, and the daemon in the first half alone: what grows in them is seen."""
        if event == "fill":
            self.fill()
        elif event == "reload":
            self.daemon.process.send_signal(signal.SIGHUP)
        elif event == "kill mount":
            self.mounts[0].kill()
            self.mounts[0].start()
        else:
            self.daemon.stop(signal.SIGKILL)
            self.daemon.start()
        self.done[event] += 1

    def fill(self):
        filler = self.disk / "filler"
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(1 << 20))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        time.sleep(0.5)
        filler.unlink()

    def look(self, minutes):
        processes = (self.daemon.process, *(mount.process for mount in self.mounts))
        written, calls = sum(worker.steps for worker in self.workers[:2]), 4 * self.workers[2].steps
        self.rows.append((round(minutes, 1), written, calls, sum(w.refused for w in self.workers), *self.done.values(), *map(resident_mib, processes)))
        print("| " + " | ".join(map(str, self.rows[-1])) + " |", flush=True)


def resident_mib(process):
    with open(f"/proc/{process.pid}/status") as status:
        [line] = [line for line in status if line.startswith("VmRSS")]
    return int(line.split()[1]) >> 10


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_nothing_is_lost_and_memory_stays_flat(fresh_daemon, make_mount, disk):
    daemon = fresh_daemon.start()
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    daemon.session().call("CreateAlias", {"AliasName": "alias/soak", "TargetKeyId": key})
    mounts = [make_mount(name=name, on=daemon) for name in ("first", "second")]
    for mount in mounts:
        shutil.rmtree(mount.cipher)
        mount.cipher = disk / mount.cipher.name
        mount.cipher.mkdir()
        mount.start()
    soak = Soak(daemon, *mounts, disk)
    for worker in soak.workers:
        worker.start()
    run(soak)
    for worker in soak.workers:
        worker.end()
    assert all(soak.done.values()) and all(worker.steps > 50 for worker in soak.workers), soak.done
    prove(soak, daemon)


def run(soak):
    began, events = time.monotonic(), cycle(EVENTS)
    pause, next_look = min(10.0, SECONDS / 10), 0.0
    while (passed := time.monotonic() - began) < SECONDS:
        if passed >= next_look:
            soak.look(passed / 60)
            next_look += min(60.0, SECONDS / 5)
        event = next(events)
        if event != "kill daemon" or passed < SECONDS / 2 or not soak.done[event]:
            soak.happen(event)
        time.sleep(pause)
        for worker in soak.workers:
            assert worker.is_alive(), worker.failure
    soak.look(SECONDS / 60)


def prove(soak, daemon):
    for worker in soak.workers[:2]:
        worker.mount.again()
        worker.same_everywhere()
        worker.mount.stop()
        command = [sys.executable, "-m", "kmsfs.cli", "check", str(worker.mount.cipher)]
        done = subprocess.run(command, env={**os.environ, "KMSFS_SOCKET": worker.mount.socket}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    calls = soak.workers[2]
    for name in calls.stored:
        calls.same(name)
    # Of those that were not killed: the daemon in the second half, and the second mount.
    for column in (-3, -1):
        seen = [row[column] for row in soak.rows[len(soak.rows) // 2 :]]
        assert max(seen) < 1.25 * seen[0] + 16, seen
