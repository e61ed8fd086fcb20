"""`kmsfs volume restart`: another image of the mount's process serves on, and nobody who uses the mount notices."""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kmsfs.errors import AccessDenied, StorageError, UsageError
from kmsfs.mount.control import ask_restart
from kmsfs.mount.handover import require_startable
from kmsfs.mount.mounttable import find_mounted
from support.waiting import soon


def restart(mounted):
    """Ask for it; where the kernel is being told of changes just then, once more, as the answer says."""
    for _ in range(20):
        try:
            return ask_restart(find_mounted(mounted.plain))
        except StorageError as error:
            if "being told of changes" not in str(error):
                raise
            time.sleep(0.2)
    raise AssertionError("cannot be restarted")


def test_everything_that_is_open_stays_open(make_mount):
    mounted = make_mount().start()
    root = mounted.plain
    (root / "dir").mkdir()
    for number in range(300):
        (root / "dir" / f"f{number:03}").write_bytes(b"%d" % number)
    (root / "big").write_bytes(os.urandom(3 << 20))
    before = (root / "big").read_bytes()
    with contextlib.ExitStack() as stack:
        big = stack.enter_context(open(root / "big", "r+b", buffering=0))
        gone = stack.enter_context(open(root / "gone", "w+b", buffering=0))
        gone.write(b"g" * 100_000)
        os.unlink(root / "gone")
        never = stack.enter_context(open(os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600), "r+b", buffering=0))
        never.write(b"no name yet")
        appended = stack.enter_context(open(root / "log", "ab", buffering=0))
        appended.write(b"one\n")
        locked = stack.enter_context(open(root / "lock", "wb", buffering=0))
        fcntl.flock(locked, fcntl.LOCK_EX)
        (root / "left").mkdir()
        left = os.open(root / "left", os.O_RDONLY)
        stack.callback(os.close, left)
        os.rmdir(root / "left")
        (root / "found").write_bytes(b"f" * 100_000)
        found = os.open(root / "found", os.O_PATH)
        stack.callback(os.close, found)
        os.unlink(root / "found")
        shared = mmap.mmap(big.fileno(), 1 << 20)
        shared[:5] = b"first"
        listing = stack.enter_context(os.scandir(root / "dir"))
        names = [next(listing).name for _ in range(5)]
        here = os.open(".", os.O_RDONLY)
        os.chdir(root / "dir")
        try:
            pid = mounted.process.pid
            told = restart(mounted)
            assert told["open_files"] == 5 and told["waited_seconds"] < 30
            assert mounted.process.poll() is None and mounted.process.pid == pid
            assert Path("f007").read_bytes() == b"7" and os.getcwd() == str(root / "dir")
        finally:
            os.chdir(here)
            os.close(here)
        names += [entry.name for entry in listing]
        assert sorted(names) == [f"f{number:03}" for number in range(300)]
        assert big.read() == b"first" + before[5:]
        shared[6:12] = b"second"
        shared.flush()
        shared.close()
        os.pwrite(big.fileno(), b"third", 2 << 20)
        os.fsync(big.fileno())
        assert os.pread(gone.fileno(), 100_001, 0) == b"g" * 100_000
        gone.write(b"more")
        assert Path(f"/proc/self/fd/{found}").read_bytes() == b"f" * 100_000
        assert os.fstat(gone.fileno()).st_size == 100_004 and os.fstat(gone.fileno()).st_nlink == 0
        os.link(f"/proc/self/fd/{never.fileno()}", root / "named", src_dir_fd=left)
        appended.write(b"two\n")
        assert os.listdir(left) == []
        with pytest.raises(BlockingIOError), open(root / "lock", "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (root / "named").read_bytes() == b"no name yet"
    os.rename(root / "dir" / "f001", root / "moved")
    os.unlink(root / "dir" / "f002")
    mounted.again()
    found = (root / "big").read_bytes()
    assert found[:12] == b"first" + before[5:6] + b"second" and found[2 << 20 :][:5] == b"third"
    assert (root / "log").read_bytes() == b"one\ntwo\n" and (root / "named").read_bytes() == b"no name yet"
    assert (root / "moved").read_bytes() == b"1" and not (root / "dir" / "f002").exists()
    assert len(list((root / "dir").iterdir())) == 298


def test_under_load_nothing_is_lost_and_nothing_fails(make_mount):
    """Writers, readers and makers of files go on through five restarts."""
    mounted = make_mount().start()
    root, ends, failures = mounted.plain, threading.Event(), []
    done = dict.fromkeys(range(3), 0)

    def work(number):
        folder = root / f"w{number}"
        folder.mkdir()
        try:
            with open(folder / "log", "ab", buffering=0) as log:
                while not ends.is_set():
                    count = done[number]
                    log.write(b"%08d\n" % count)
                    (folder / f"f{count % 50}").write_bytes(b"%d" % count * 500)
                    os.rename(folder / f"f{count % 50}", folder / f"g{count % 50}")
                    assert (folder / f"g{count % 50}").read_bytes() == b"%d" % count * 500
                    if count % 7 == 0:
                        os.fsync(log.fileno())
                        os.unlink(folder / f"g{count % 50}")
                    done[number] = count + 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in done]
    for thread in threads:
        thread.start()
    for _ in range(5):
        time.sleep(0.3)
        marks = dict(done)
        assert restart(mounted)["version"]
        soon(True, lambda marks=marks: all(done[n] > marks[n] for n in done) or bool(failures))
    ends.set()
    for thread in threads:
        thread.join()
    assert not failures
    mounted.again()
    for number, count in done.items():
        assert (root / f"w{number}" / "log").read_bytes() == b"".join(b"%08d\n" % n for n in range(count))


def test_a_disabled_key_refuses_and_the_mount_goes_on(daemon, make_mount):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    mounted = make_mount("--key", key).start()
    (mounted.plain / "f").write_bytes(b"content" * 1000)
    descriptor = os.open(mounted.plain / "f", os.O_RDONLY)
    session.call("DisableKey", {"KeyId": key})
    soon(errno.EKEYREVOKED, lambda: os.pread(descriptor, 7, 0))
    with pytest.raises(StorageError, match="disabled"):
        restart(mounted)
    session.call("EnableKey", {"KeyId": key})
    soon(b"content", lambda: os.pread(descriptor, 7, 0))
    restart(mounted)
    assert os.pread(descriptor, 7, 0) == b"content"
    session.call("DisableKey", {"KeyId": key})
    soon(errno.EKEYREVOKED, lambda: os.pread(descriptor, 7, 0))
    session.call("EnableKey", {"KeyId": key})
    soon(b"content", lambda: os.pread(descriptor, 7, 0))
    os.close(descriptor)


def test_changes_behind_the_mount_are_seen_afterwards_too(make_mount):
    mounted = make_mount().start()
    (mounted.plain / "a").write_bytes(b"a")
    (mounted.plain / "b").write_bytes(b"b")
    assert (mounted.plain / "a").read_bytes() == b"a"
    restart(mounted)
    assert sorted(os.listdir(mounted.plain)) == ["a", "b"]
    number = (mounted.plain / "a").stat().st_ino
    [stored] = [entry for entry in os.scandir(mounted.cipher) if entry.inode() == number]
    os.unlink(stored.path)
    soon(["b"], lambda: sorted(os.listdir(mounted.plain)))
    soon(False, (mounted.plain / "a").exists)


def test_what_changes_behind_the_mount_while_nobody_watches(fresh_daemon, make_mount):
    """The next image waits for kmsd, which is stopped: meanwhile somebody removes a directory that the kernel knows."""
    mounted = make_mount(on=fresh_daemon.start()).start()
    (mounted.plain / "kept").write_bytes(b"kept")
    before = {entry.name for entry in os.scandir(mounted.cipher)}
    (mounted.plain / "gone").mkdir()
    (stored,) = {entry.name for entry in os.scandir(mounted.cipher)} - before
    assert (mounted.plain / "gone").is_dir()
    told, pid = [], mounted.process.pid
    asking = threading.Thread(target=lambda: told.append(restart(mounted)))
    asking.start()
    soon(True, lambda: b"kmsfs.cli.successor" in Path(f"/proc/{pid}/cmdline").read_bytes())
    fresh_daemon.process.send_signal(signal.SIGSTOP)
    waiting = threading.Thread(target=(mounted.plain / "new").write_bytes, args=(b"waited",))
    waiting.start()
    try:
        time.sleep(1)
        assert not told and waiting.is_alive()
        shutil.rmtree(mounted.cipher / stored)
    finally:
        fresh_daemon.process.send_signal(signal.SIGCONT)
    asking.join(30)
    waiting.join(30)
    assert told and told[0]["waited_seconds"] > 1
    soon(["kept", "new"], lambda: sorted(os.listdir(mounted.plain)))
    soon(False, (mounted.plain / "gone").exists)
    assert (mounted.plain / "new").read_bytes() == b"waited"


def test_paths_that_are_no_text(make_mount):
    mounted = make_mount(name="v\udcff").start()
    with open(mounted.plain / "f", "wb", buffering=0) as file:
        file.write(b"one")
        assert restart(mounted)["open_files"] == 1
        file.write(b"two")
    assert (mounted.plain / "f").read_bytes() == b"onetwo"


def test_a_surprise_before_the_next_image_leaves_the_mount_as_it_was(make_mount, tmp_path, monkeypatch):
    """A state that cannot be packed, for whatever reason: it is refused, and served on."""
    (tmp_path / "sitecustomize.py").write_text(
        "import kmsfs.mount.handover as handover\n"
        "def broken(_state): raise RuntimeError('a bug')\n"
        "handover.encode_state = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mounted = make_mount().start()
    (mounted.plain / "f").write_bytes(b"content")
    with pytest.raises(StorageError, match="a bug"):
        restart(mounted)
    assert (mounted.plain / "f").read_bytes() == b"content" and mounted.process.poll() is None


def test_a_signal_to_end_waits_for_the_next_image(fresh_daemon, make_mount):
    """Before it has its handlers, SIGTERM would kill it, and the mount with it; so it unmounts, and ends cleanly."""
    mounted = make_mount(on=fresh_daemon.start()).start()
    (mounted.plain / "f").write_bytes(b"content")
    pid = mounted.process.pid
    asking = threading.Thread(target=restart, args=(mounted,))
    asking.start()
    soon(True, lambda: b"kmsfs.cli.successor" in Path(f"/proc/{pid}/cmdline").read_bytes())
    mounted.process.send_signal(signal.SIGTERM)
    asking.join(30)
    assert mounted.process.wait(30) == 0 and not os.path.ismount(mounted.plain)
    mounted.start()
    assert (mounted.plain / "f").read_bytes() == b"content"


@pytest.mark.root
def test_what_cannot_be_stored_is_not_handed_on(make_mount, tmp_path):
    """The disk is full: this process goes on, with what it has in memory; with room again, it hands everything on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], check=True)
    try:
        mounted = make_mount(name="disk/v").start()
        (mounted.plain / "small").write_bytes(b"s" * 500)
        # Nothing of it is on the disk until it is closed, or the next tick.
        with open(mounted.plain / "f", "wb", buffering=0) as file:
            filler = disk / "filler"
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(8 << 20))
            with pytest.raises(StorageError, match="not everything could be stored"):
                restart(mounted)
            assert (mounted.plain / "small").read_bytes() == b"s" * 500
            filler.unlink()
            restart(mounted)
            file.write(b"a" * 20_000)
        assert (mounted.plain / "f").read_bytes() == b"a" * 20_000
        mounted.stop()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.root
def test_only_who_mounted_may_ask(make_mount):
    mounted = make_mount().start()
    entry = find_mounted(mounted.plain)
    os.seteuid(1001)
    try:
        with pytest.raises(AccessDenied, match="another user"):
            ask_restart(entry)
    finally:
        os.seteuid(0)
    folder = Path("/run/kmsfs")
    assert folder.stat().st_mode & 0o777 == 0o700
    sockets = list(folder.glob(f"mount-{entry.device}.sock"))
    assert len(sockets) == 1
    assert restart(mounted)["version"]
    mounted.stop()
    assert not sockets[0].exists()


def test_the_command(make_mount, tmp_path):
    mounted = make_mount().start()
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "volume", "restart"]
    done = subprocess.run([*command, mounted.plain], capture_output=True, text=True, check=True)
    [told] = json.loads(done.stdout)["restarted"]
    assert told["mountpoint"] == str(mounted.plain) and told["open_files"] == 0
    none = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert none.returncode == 2 and "not a kmsfs mount" in none.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_a_mount_that_cannot_is_told_so(make_mount):
    mounted = make_mount("--transport", "fusepy").start()
    with pytest.raises(UsageError, match="does not listen"):
        restart(mounted)


@pytest.mark.parametrize("command", [("/bin/false",), ("/nonexistent",), ("/bin/echo", "no JSON")])
def test_a_version_that_does_not_start_is_noticed_before(command):
    with pytest.raises(StorageError, match="does not start"):
        require_startable(command)


def test_a_version_that_reads_another_state_is_noticed_before():
    with pytest.raises(StorageError, match="cannot take over"):
        require_startable((sys.executable, "-c", "print('{\"state_version\": 999}')"))
