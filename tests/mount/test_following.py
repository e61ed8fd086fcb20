"""One mount writes, others follow: on one machine here, as on several with one cipher directory."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from conftest import MountProcess
from kmsfs.mount.durability import Vfs
from kmsfs.mount.following import FollowerRules, FollowingVfs
from kmsfs.mount.volume import VolumeLease, read_config
from kmsfs.quantity import RECONNECT_SECONDS
from support.waiting import soon

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def follow(daemon, tmp_path, make_mount):
    """Mount a volume's cipher directory once more, to follow."""
    made = []

    def mount(writer, *options, name="f"):
        plain = tmp_path / f"{name}.plain"
        plain.mkdir()
        process = MountProcess(daemon.socket, writer.cipher, plain, "--follow", *options)
        made.append(process)
        return process.start()

    yield mount
    for process in made:
        process.stop()


def read(path):
    return path.read_bytes()


def test_who_follows_sees_what_is_stored(make_mount, follow):
    writer = make_mount().start()
    (writer.plain / "there").write_bytes(b"before")
    (writer.plain / "d").mkdir()
    os.sync()
    reader = follow(writer)
    assert (reader.plain / "there").read_bytes() == b"before"
    big = os.urandom(3_000_000)
    (writer.plain / "d" / "big").write_bytes(big)
    (writer.plain / "there").write_bytes(b"and after, longer")
    (writer.plain / "link").symlink_to("d/big")
    os.setxattr(writer.plain / "there", b"user.x", b"y")
    writer_sync(writer)
    soon(big, lambda: read(reader.plain / "d" / "big"))
    soon(b"and after, longer", lambda: read(reader.plain / "there"))
    assert (reader.plain / "there").stat().st_size == 17
    assert os.readlink(reader.plain / "link") == "d/big" and os.getxattr(reader.plain / "there", b"user.x") == b"y"
    os.rename(writer.plain / "d", writer.plain / "e")
    os.unlink(writer.plain / "there")
    os.truncate(writer.plain / "e" / "big", 1000)
    writer_sync(writer)
    soon(["e", "link"], lambda: sorted(os.listdir(reader.plain)))
    soon(big[:1000], lambda: read(reader.plain / "e" / "big"))
    soon(2, lambda: read(reader.plain / "there"))


def writer_sync(writer):
    descriptor = os.open(writer.plain, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    subprocess.run(["sync", "-f", writer.plain], check=True)


def test_who_follows_changes_nothing_and_keeps_nobody_out(make_mount, follow):
    writer = make_mount().start()
    (writer.plain / "a").write_bytes(b"1")
    writer_sync(writer)
    reader = follow(writer)
    for change in (
        lambda: (reader.plain / "a").write_bytes(b"2"), lambda: (reader.plain / "b").touch(), lambda: (reader.plain / "a").unlink(),
        lambda: os.chmod(reader.plain / "a", 0o600), lambda: (reader.plain / "c").mkdir(),
    ):
        with pytest.raises(OSError, match="[Rr]ead-only"):
            change()
    another = follow(writer, name="g")
    assert read(another.plain / "a") == b"1"
    # The writer may go and come back, also by accident; its next session is one that the followers have not heard of.
    writer.stop()
    writer.start()
    (writer.plain / "a").write_bytes(b"second session")
    writer_sync(writer)
    soon(b"second session", lambda: read(reader.plain / "a"))
    writer.kill()
    assert read(reader.plain / "a") == b"second session"
    writer.start()
    (writer.plain / "a").write_bytes(b"third")
    writer_sync(writer)
    soon(b"third", lambda: read(reader.plain / "a"))
    soon(b"third", lambda: read(another.plain / "a"))


def test_an_open_file_grows_under_its_reader(make_mount, follow):
    """As `tail -f` reads a log."""
    writer = make_mount().start()
    with open(writer.plain / "log", "ab", buffering=0) as log:
        log.write(b"line 0\n")
        os.fsync(log.fileno())
        reader = follow(writer)
        with open(reader.plain / "log", "rb") as seen:
            assert seen.read() == b"line 0\n"
            for number in range(1, 4):
                log.write(b"line %d\n" % number)
                os.fsync(log.fileno())
                soon(b"line %d\n" % number, lambda: (os.fstat(seen.fileno()), seen.read())[1])


def test_who_opens_sees_the_present_whoever_has_it_open_already(make_mount, follow):
    writer = make_mount().start()
    with open(writer.plain / "a", "wb", buffering=0) as file:
        file.write(b"one")
        os.fsync(file.fileno())
        reader = follow(writer)
        with open(reader.plain / "a", "rb") as held:
            assert held.read() == b"one"
            for number in range(20):
                os.pwrite(file.fileno(), b"%03d" % number, 0)
                os.fsync(file.fileno())
                assert read(reader.plain / "a") == b"%03d" % number


def test_nothing_of_a_session_that_may_go_on_is_trusted():
    rules = FollowerRules(5, {3})
    assert [rules.trusts(session) for session in range(1, 8)] == [True, True, False, True, False, False, False]
    assert not rules.clean and not FollowerRules(1, set()).clean


def test_a_number_that_another_file_has_now_is_not_that_file(monkeypatch, tmp_path):
    (tmp_path / "x").touch()
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    facts = os.fstat(descriptor)
    given_back = []
    monkeypatch.setattr(Vfs, "acquire", lambda *_args, **_more: SimpleNamespace(attributes=SimpleNamespace(file_id=b"now")))
    monkeypatch.setattr(Vfs, "give_back", lambda _self, node: given_back.append(node))
    vfs = FollowingVfs.__new__(FollowingVfs)
    try:
        for file_id, key, ok in (
            (b"now", (facts.st_dev, facts.st_ino), True), (b"", (facts.st_dev, facts.st_ino), True),
            (b"before", (facts.st_dev, facts.st_ino), False), (b"now", (facts.st_dev, 0), False),
        ):
            node = SimpleNamespace(file=None, descriptor=descriptor, names={}, key=key, file_id=file_id)
            if ok:
                vfs.acquire(node)
            else:
                with pytest.raises(OSError, match="another file"):
                    vfs.acquire(node)
        assert len(given_back) == 2
    finally:
        os.close(descriptor)


def test_nothing_is_read_that_was_never_written(make_mount, follow):
    """Whole files replaced, small ones written over, and chunks of a large one, as fast as it goes, while two read."""
    writer = make_mount().start()
    chunk = 4096

    def block(number):
        seed = hashlib.sha256(b"%d" % number).digest()
        return b"%08d" % number + (seed * (chunk // 32))[8:]

    def numbers_of(data):
        found = []
        for at in range(0, len(data), chunk):
            piece = data[at : at + chunk]
            number = int(piece[:8])
            assert piece == block(number), "bytes that were never written"
            found.append(number)
        return found

    (writer.plain / "large").write_bytes(block(0) * 200)
    (writer.plain / "small").write_bytes(block(0))
    (writer.plain / "replaced").write_bytes(block(0) * 20)
    writer_sync(writer)
    readers = [follow(writer), follow(writer, name="g")]
    stop, troubles, reads, missed = threading.Event(), [], [], []

    def watch(plain):
        while not stop.is_set():
            try:
                for name in ("large", "small", "replaced"):
                    numbers = numbers_of(read(plain / name))
                    if name == "replaced":
                        assert len(set(numbers)) == 1, "a file of two"
                    reads.append((name, max(numbers)))
                os.listdir(plain)
                (plain / "large").stat()
            except Exception as error:
                # ESTALE: replaced twice while it was opened, as NFS says it too.
                if getattr(error, "errno", 0) in (errno.ENOENT, errno.ESTALE):
                    missed.append(error)
                    continue
                troubles.append(repr(error))
                return

    threads = [threading.Thread(target=watch, args=(reader.plain,)) for reader in readers]
    [thread.start() for thread in threads]
    ends, number = time.monotonic() + 7, 0
    with open(writer.plain / "large", "r+b", buffering=0) as large, open(writer.plain / "small", "r+b", buffering=0) as small:
        while time.monotonic() < ends and not troubles:
            number += 1
            for place in range(0, 200, 7):
                os.pwrite(large.fileno(), block(number), (place + number) % 200 * chunk)
            os.pwrite(small.fileno(), block(number), 0)
            (writer.plain / "new").write_bytes(block(number) * 20)
            os.rename(writer.plain / "new", writer.plain / "replaced")
            if number % 3 == 0:
                os.fsync(large.fileno())
                os.fsync(small.fileno())
            if number % 20 == 0:
                writer_sync(writer)
    stop.set()
    [thread.join() for thread in threads]
    assert not troubles
    assert len(missed) < len(reads) / 10
    assert len(reads) > 30 and {name for name, seen in reads if seen > 0} == {"large", "small", "replaced"}


# --- records that several hosts find -------------------------------------------------------------------------------------------


def kmsfs(mount, *arguments):
    environment = {**os.environ, "KMSFS_SOCKET": str(mount.socket), **mount.environment}
    return subprocess.run([sys.executable, "-m", "kmsfs.cli", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120)


def as_host(mount, folder):
    """Be a mount of another host: its state folder is another one."""
    mount.environment = {"XDG_STATE_HOME": str(folder)}
    return mount


def test_a_volume_moves_from_host_to_host_with_its_records(make_mount, tmp_path):
    mount = as_host(make_mount(), tmp_path / "host-a").start()
    (mount.plain / "a").write_bytes(b"of host a")
    mount.stop()
    with pytest.raises(RuntimeError, match="freshness records"):
        as_host(mount, tmp_path / "host-b").start()
    as_host(mount, tmp_path / "host-a")
    done = kmsfs(mount, "volume", "records", mount.cipher, "--in-volume")
    assert done.returncode == 0 and str(mount.cipher / ".kr") in done.stderr, done.stderr
    for host in "babab":
        as_host(mount, tmp_path / f"host-{host}").start()
        assert (mount.plain / "a").read_bytes()[:8] == b"of host "
        (mount.plain / "a").write_bytes(b"of host " + host.encode())
        assert kmsfs(mount, "volume", "records", mount.cipher, "--in-state").returncode != 0
        mount.stop()
    # What is put back is noticed as before, by either host, and so is a whole older state with its records.
    past = tmp_path / "past"
    shutil.copytree(mount.cipher, past, symlinks=True)
    mount.start()
    (mount.plain / "a").write_bytes(b"newer")
    mount.stop()
    now = tmp_path / "now"
    shutil.copytree(mount.cipher, now, symlinks=True)
    for file in past.iterdir():
        if file.name[0] == "n":
            shutil.copy2(file, mount.cipher / file.name)
    as_host(mount, tmp_path / "host-a").start()
    with pytest.raises(OSError, match="Input/output"):
        read(mount.plain / "a")
    mount.stop()
    shutil.rmtree(mount.cipher)
    shutil.copytree(past, mount.cipher, symlinks=True)
    with pytest.raises(RuntimeError, match="freshness records"):
        mount.start()
    assert kmsfs(mount, "volume", "accept-restore", mount.cipher, "--yes").returncode == 0
    mount.start()
    mount.stop()
    done = kmsfs(mount, "volume", "records", mount.cipher, "--in-state")
    assert done.returncode == 0 and not (mount.cipher / ".kr").exists()
    mount.start()
    mount.stop()


def test_records_are_not_moved_under_a_mount_elsewhere(make_mount, daemon):
    """Storage that several hosts have may not tell of their locks: kmsd knows of the lease."""
    mount = make_mount().start()
    (mount.plain / "a").write_bytes(b"1")
    mount.stop()
    config = read_config(mount.cipher)[0]
    transport = daemon.session().open_transport()
    VolumeLease(config, read_only=False).claim(transport)
    done = kmsfs(mount, "volume", "records", mount.cipher, "--in-volume")
    assert done.returncode != 0 and "mounted for writing elsewhere" in done.stderr and not (mount.cipher / ".kr").exists()
    transport.close()


def test_records_of_a_mount_that_was_killed_stay_where_they_are(make_mount, tmp_path):
    mount = as_host(make_mount(), tmp_path / "host-a").start()
    (mount.plain / "a").write_bytes(b"1")
    writer_sync(mount)
    mount.kill()
    time.sleep(RECONNECT_SECONDS + 0.5)
    done = kmsfs(mount, "volume", "records", mount.cipher, "--in-volume")
    assert done.returncode != 0 and "did not end cleanly" in done.stderr, done.stderr
    mount.start()
    mount.stop()
    assert kmsfs(mount, "volume", "records", mount.cipher, "--in-volume").returncode == 0
    as_host(mount, tmp_path / "host-b").start()
    writer_sync(mount)
    mount.kill()
    # After an accident on one host the other one goes on.
    as_host(mount, tmp_path / "host-a").start()
    assert read(mount.plain / "a") == b"1"
