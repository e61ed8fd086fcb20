"""Options of a mount: sizes of chunks, what the kernel keeps, whose everything is, and when it ends by itself."""

import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from kmsfs.errors import ExitCode

from support.peers import let_others_in
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def kmsfs(mount, *arguments):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    return subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def checked(mount):
    done = kmsfs(mount, "--json", "check", str(mount.cipher))
    assert done.returncode == ExitCode.OK, done.stdout
    return json.loads(done.stdout)["findings"]


def change_at_random(path, seed, calls=150, most=3_000_000):
    """Write, cut and read a file beside a copy in memory; return what it should contain."""
    rng, copy = random.Random(seed), bytearray()
    with open(path, "w+b", buffering=0) as file:
        for _ in range(calls):
            at = rng.randrange(most)
            what = rng.randrange(6)
            if what < 3:
                data = rng.randbytes(rng.choice((1, 100, 4096, 16384, 70_000, 1 << 20)))
                copy.extend(bytes(max(0, at + len(data) - len(copy))))
                copy[at : at + len(data)] = data
                os.pwrite(file.fileno(), data, at)
            elif what == 3:
                copy[at:] = bytes(max(0, at - len(copy)))
                file.truncate(at)
            elif what == 4:
                assert os.pread(file.fileno(), 200_000, at) == copy[at : at + 200_000]
            else:
                os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_size == len(copy)
    return bytes(copy)


# --- chunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 64, 1024])
def test_a_volume_has_the_chunks_that_it_was_made_with(make_mount, chunk):
    mount = make_mount("--chunk", str(chunk)).start()
    expected = {}
    for number in range(2):
        expected[number] = change_at_random(mount.plain / f"f{number}", number)
    (mount.plain / "small").write_bytes(b"small")
    mount.stop()
    # The option may stay, as in fstab, or be left out.
    for options in (("--chunk", str(chunk)), ()):
        mount.options = options
        mount.start()
        for number, data in expected.items():
            assert (mount.plain / f"f{number}").read_bytes() == data
        assert (mount.plain / "small").read_bytes() == b"small"
        mount.stop()
    assert checked(mount) == []
    [big] = [path for path in mount.cipher.iterdir() if path.stat().st_ino and path.stat().st_size > 1_000_000][:1]
    assert f"{chunk << 10}" in kmsfs(mount, "inspect", str(big)).stdout.replace(",", "")
    done = kmsfs(mount, "mount", "--chunk", "16", str(mount.cipher), str(mount.plain))
    assert done.returncode == ExitCode.USAGE and f"chunks of {chunk} KiB" in done.stderr and not os.path.ismount(mount.plain)


@pytest.mark.parametrize(
    "wrong", [("--chunk", "5"), ("--chunk", "2048"), ("--cache", "some"), ("--idle", "soon"), ("--uid", "-1"), ("--gid", "4294967295"), ("--transport", "fusepy", "--idle", "1h")]
)
def test_what_is_no_option_is_refused(make_mount, wrong):
    mount = make_mount()
    done = kmsfs(mount, "mount", *wrong, str(mount.cipher), str(mount.plain))
    assert done.returncode == ExitCode.USAGE and not os.path.ismount(mount.plain) and list(mount.cipher.iterdir()) == []


# --- what the kernel keeps ------------------------------------------------------------------------------------


def resident(path):
    """Bytes of a file that are in the kernel's cache."""
    done = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("cache", ["none", "metadata", "full"])
def test_contents_stay_in_the_kernel_only_where_they_may(make_mount, cache):
    mount = make_mount("--cache", cache).start()
    path = mount.plain / "f"
    for seed in range(2):
        expected = change_at_random(path, seed)
        assert path.read_bytes() == expected
    path.write_bytes(b"x" * 300_000)
    assert path.read_bytes() == b"x" * 300_000
    assert (resident(path) > 0) == (cache == "full")
    before = path.stat().st_mtime_ns
    time.sleep(0.02)
    with path.open("ab") as file:
        file.write(b"more")
    assert path.stat().st_mtime_ns > before and path.stat().st_size == 300_004
    os.utime(path, ns=(1, 1))
    assert path.stat().st_mtime_ns == 1
    mount.again()
    assert path.read_bytes() == b"x" * 300_000 + b"more" and path.stat().st_mtime_ns == 1


@pytest.mark.parametrize("cache", ["none", "metadata", "full"])
def test_memory_maps_and_programs(make_mount, cache):
    mount = make_mount("--cache", cache).start()
    path = mount.plain / "f"
    path.write_bytes(b"a" * 100_000)
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[50_000:50_006] = b"mapped"
        mapped.flush()
        assert os.pread(file.fileno(), 6, 50_000) == b"mapped"
        os.pwrite(file.fileno(), b"direct", 10)
        assert mapped[10:16] == b"direct"
    assert path.read_bytes()[50_000:50_006] == b"mapped" and path.stat().st_mtime_ns > before
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
        assert mapped[10:16] == b"direct"
    shutil.copy2("/bin/echo", mount.plain / "echo")
    assert subprocess.run([mount.plain / "echo", "ran"], capture_output=True, check=True).stdout == b"ran\n"
    mount.again()
    assert path.read_bytes()[50_000:50_006] == b"mapped" and path.read_bytes()[10:16] == b"direct"


def test_where_nothing_is_kept_changes_behind_the_mount_are_seen_at_once(make_mount):
    mount = make_mount("--cache", "none").start()
    for number in range(20):
        path = mount.plain / "f"
        path.write_text(str(number))
        assert path.read_text() == str(number) and os.listdir(mount.plain) == ["f"]
        [disk] = [entry for entry in mount.cipher.iterdir() if entry.name[0] == "n"]
        disk.unlink()
        with pytest.raises(FileNotFoundError):
            path.stat()
        assert os.listdir(mount.plain) == []


# --- whose everything is --------------------------------------------------------------------------------------


def as_user(uid, gid, *command):
    return subprocess.run(command, user=uid, group=gid, extra_groups=[], capture_output=True, text=True, check=False)


def owners(path):
    facts = os.lstat(path)
    return facts.st_uid, facts.st_gid


def test_everything_seems_to_be_one_users(make_mount, tmp_path):
    """As of a volume that was made on another machine, where the numbers of users are others."""
    let_others_in(tmp_path)
    mount = make_mount("--uid", "61234", "--gid", "62345", "--allow-other")
    mount.start()
    root = mount.plain
    assert owners(root) == (61234, 62345)
    (root / "by-root").write_text("x")
    os.mkdir(root / "folder", 0o755)
    os.symlink("by-root", root / "link")
    os.mkfifo(root / "pipe")
    nameless = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert os.fstat(nameless).st_uid == 61234
    os.close(nameless)
    os.chmod(root / "by-root", 0o600)
    done = as_user(61234, 62345, "sh", "-c", f"cat {root}/by-root && echo mine > {root}/folder/mine && mkdir {root}/folder/d")
    assert done.returncode == 0 and done.stdout == "x", done.stderr
    for name in ("by-root", "folder", "link", "pipe", "folder/mine", "folder/d"):
        assert owners(root / name) == (61234, 62345)
    assert {(e.stat(follow_symlinks=False).st_uid, e.stat(follow_symlinks=False).st_gid) for e in os.scandir(root)} == {(61234, 62345)}
    # Others are others, whoever owns the ciphertext.
    assert as_user(61235, 62346, "cat", root / "by-root").returncode != 0
    assert as_user(61235, 62346, "touch", root / "folder" / "his").returncode != 0
    os.chown(root / "by-root", 61234, 62345)
    os.chown(root / "by-root", -1, -1)
    for uid, gid in ((0, -1), (-1, 0), (61235, 62345)):
        with pytest.raises(PermissionError):
            os.chown(root / "by-root", uid, gid)
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in mount.cipher.rglob("n*")} == {(0, 0)}
    mount.stop()
    mount.options = ("--allow-other",)
    mount.start()
    assert owners(root / "folder" / "mine") == (0, 0)
    os.chown(root / "by-root", 7, 8)
    mount.stop()
    mount.options = ("--gid", "62345")
    mount.start()
    assert owners(root / "by-root") == (7, 62345)
    os.chown(root / "by-root", 9, -1)
    assert owners(root / "by-root") == (9, 62345)
    mount.stop()
    assert checked(mount) == []


# --- the end --------------------------------------------------------------------------------------------------


def test_it_ends_when_nobody_uses_it(make_mount):
    mount = make_mount("--idle", "2s").start()
    with (mount.plain / "f").open("wb", buffering=0) as file:
        file.write(b"written")
        time.sleep(3.5)
        assert os.path.ismount(mount.plain)
    here = os.open(".", os.O_RDONLY)
    os.chdir(mount.plain)
    try:
        time.sleep(3.5)
        assert os.path.ismount(mount.plain)
    finally:
        os.chdir(here)
        os.close(here)
    for _ in range(6):
        time.sleep(0.5)
        assert (mount.plain / "f").read_bytes() == b"written"
    began = time.monotonic()
    soon(False, lambda: os.path.ismount(mount.plain), 20)
    assert 1 < time.monotonic() - began < 10
    assert mount.process.wait(20) == 0
    mount.stop()
    assert checked(mount) == []
    mount.options = ()
    mount.start()
    assert (mount.plain / "f").read_bytes() == b"written"
    time.sleep(4)
    assert os.path.ismount(mount.plain)


def test_one_process_after_the_other_knows_the_options(make_mount):
    from kmsfs.mount.control import ask_restart
    from kmsfs.mount.mounttable import find_mounted

    mount = make_mount("--idle", "3s", "--cache", "metadata", "--uid", "61234").start()
    (mount.plain / "f").write_bytes(b"x" * 100_000)
    assert ask_restart(find_mounted(mount.plain))["version"]
    assert (mount.plain / "f").read_bytes() == b"x" * 100_000
    assert resident(mount.plain / "f") == 0 and owners(mount.plain / "f")[0] == 61234
    soon(False, lambda: os.path.ismount(mount.plain), 20)
    assert mount.process.wait(20) == 0
