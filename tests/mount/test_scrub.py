"""kmsfs volume scrub: every byte of a mounted volume from the disk, while it is used; and what cannot be read is named."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kmsfs.check.scrub import scrub
from kmsfs.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def run(mount, *words):
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "volume", "scrub", str(mount.plain), *words]
    done = subprocess.run(command, env={**os.environ, "KMSFS_SOCKET": str(mount.socket)}, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def mount(make_mount):
    made = make_mount().start()
    for name, size in (("a", 100), ("b", 3_000_000), ("d/c", 70_000), ("d/empty", 0)):
        (made.plain / name).parent.mkdir(exist_ok=True)
        (made.plain / name).write_bytes(os.urandom(size))
    os.symlink("a", made.plain / "link")
    os.mkfifo(made.plain / "fifo")
    os.sync()
    return made


def test_what_is_whole_is_read(mount):
    code, told = run(mount)
    assert code == 0 and told == {"files": 4, "directories": 2, "content_bytes": 3_070_100, "gone": 0, "problems": []}


def test_damage_is_found_though_the_cache_has_it_whole(mount):
    """What the kernel still holds of a file says nothing of the disk."""
    assert len((mount.plain / "b").read_bytes()) == 3_000_000
    inode = os.stat(mount.plain / "b").st_ino
    [stored] = [path for path in mount.cipher.rglob("n*") if path.lstat().st_ino == inode]
    with stored.open("r+b") as stream:
        stream.seek(1_500_000)
        byte = stream.read(1)
        stream.seek(1_500_000)
        stream.write(bytes([byte[0] ^ 1]))
    code, told = run(mount)
    assert code == ExitCode.DAMAGE_FOUND and [problem["path"] for problem in told["problems"]] == ["b"] and told["files"] == 3
    assert "Input/output error" in told["problems"][0]["problem"]


def test_it_goes_on_while_files_come_and_go(mount):
    stop = threading.Event()

    def busy():
        number = 0
        while not stop.is_set():
            path = mount.plain / f"busy{number % 7}"
            path.write_bytes(os.urandom(50_000))
            path.unlink()
            number += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):
            code, told = run(mount)
            assert code == 0 and told["problems"] == []
    finally:
        stop.set()
        thread.join()


def test_the_pace_is_kept(tmp_path):
    (tmp_path / "f").write_bytes(bytes(4 << 20))
    began = time.monotonic()
    report = scrub(tmp_path, lambda _count: None, bytes_a_second=8 << 20)
    assert report.content_bytes == 4 << 20 and 0.2 < time.monotonic() - began < 5


def test_what_is_no_mount_is_told(mount, tmp_path):
    done = subprocess.run([sys.executable, "-m", "kmsfs.cli", "volume", "scrub", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "is not a kmsfs mount" in done.stderr
