"""Crashes, damage, revocation and bad input on the live mount."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from kmsfs import errors
from kmsfs.mount.control import ask_restart
from kmsfs.mount.mounttable import find_mounted
from support.waiting import soon

pytestmark = pytest.mark.fuse


@pytest.fixture
def mounted(make_mount):
    return make_mount().start()


def cipher_names(process):
    """Names on disk of the entries in the root, by plain name: found by what appears."""
    return {p.name for p in process.cipher.iterdir() if p.name != "kmsfs.volume"}


def make(process, name, data):
    before = cipher_names(process)
    (process.plain / name).write_bytes(data)
    process.again()
    [disk] = cipher_names(process) - before
    return process.cipher / disk


def assert_refused(path):
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    assert caught.value.errno == errno.EIO


def test_a_mount_leaves_no_core(mounted):
    limits = Path(f"/proc/{mounted.process.pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]


# --- crash ------------------------------------------------------------------------------------------------------


def test_kill_9_loses_nothing_fsynced_and_tears_nothing(mounted):
    block = 4096
    for round_number in range(3):
        path = mounted.plain / f"f{round_number}"
        promised = [None] * 64
        written = [set() for _ in range(64)]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        stop = threading.Event()

        def writer(descriptor=descriptor, promised=promised, written=written):
            count = 0
            while not stop.is_set():
                count += 1
                index = (count * 7919) % 64
                data = (f"{count}:{index}|".encode() * 1100)[:block]
                written[index].add(data)
                try:
                    os.pwrite(descriptor, data, index * block)
                    if count % 5 == 0:
                        latest = data
                        os.fsync(descriptor)
                        promised[index] = latest
                except OSError:
                    return

        thread = threading.Thread(target=writer)
        thread.start()
        time.sleep(0.7)
        mounted.kill()
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        try:
            os.close(descriptor)
        except OSError:
            pass
        mounted.start()
        data = path.read_bytes()
        for index in range(64):
            found = data[index * block : (index + 1) * block]
            if promised[index] is not None:
                assert found in written[index], "a promised block is gone or torn"
            assert not found.strip(b"\0") or found in written[index]
    assert promised.count(None) < 64


def test_small_files_after_kill_9_are_whole(mounted):
    for number in range(200):
        (mounted.plain / f"s{number}").write_bytes(f"content {number}".encode() * 50)
    synced = os.open(mounted.plain / "synced", os.O_CREAT | os.O_WRONLY)
    os.write(synced, b"promise")
    os.fsync(synced)
    (mounted.plain / "d").mkdir()
    (mounted.plain / "d" / "x").write_text("x")
    mounted.kill()
    mounted.start()
    assert (mounted.plain / "synced").read_bytes() == b"promise"
    for number in range(200):
        assert (mounted.plain / f"s{number}").read_bytes() in (b"", f"content {number}".encode() * 50)
    assert (mounted.plain / "d" / "x").read_text() in ("", "x")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not unclean(mounted):
            break
        time.sleep(0.2)
    mounted.again()
    assert (mounted.plain / "synced").read_bytes() == b"promise"


def unclean(process):
    from kmsfs.client.session import ClientSession
    from kmsfs.formats.volume import parse_config

    config, _ = parse_config((process.cipher / "kmsfs.volume").read_bytes())
    session = ClientSession(socket=process.socket, autostart=False)
    request = {"KeyId": config.key_arn, "VolumeId": config.volume_id.hex(), "ReadOnly": True}
    answer = session.call("OpenVolumeSession", request)
    session.close()
    return [number for number in answer["UncleanSessions"] if number != answer["Session"]]


def test_kill_9_of_the_daemon_under_a_mount(fresh_daemon, make_mount):
    fresh_daemon.start()
    mounted = make_mount(on=fresh_daemon).start()
    (mounted.plain / "before").write_text("1")
    fresh_daemon.stop(signal.SIGKILL)
    assert (mounted.plain / "before").read_text() == "1"
    fresh_daemon.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            (mounted.plain / "after").write_text("2")
            break
        except OSError:
            time.sleep(0.2)
    assert (mounted.plain / "after").read_text() == "2"
    time.sleep(1.5)
    mounted.again()
    assert (mounted.plain / "after").read_text() == "2" and (mounted.plain / "before").read_text() == "1"


@pytest.mark.root
def test_a_full_disk_is_said_and_loses_nothing(daemon, make_mount, tmp_path):
    mounted = make_mount()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", mounted.cipher], check=True)
    try:
        mounted.start()
        (mounted.plain / "kept").write_bytes(b"k" * 1_000_000)
        with (mounted.plain / "kept").open("rb+") as stream:
            os.fsync(stream.fileno())
        with pytest.raises(OSError) as caught, (mounted.plain / "big").open("wb", buffering=0) as stream:
            for _ in range(64):
                stream.write(bytes(os.urandom(1 << 20)))
                os.fsync(stream.fileno())
        assert caught.value.errno == errno.ENOSPC
        assert (mounted.plain / "kept").read_bytes() == b"k" * 1_000_000
        (mounted.plain / "big").unlink()
        (mounted.plain / "later").write_text("room again")
        mounted.again()
        assert (mounted.plain / "kept").read_bytes() == b"k" * 1_000_000
        assert (mounted.plain / "later").read_text() == "room again"
    finally:
        mounted.stop()
        subprocess.run(["umount", "-l", mounted.cipher], check=False)


@pytest.mark.root
def test_who_makes_room_has_it(daemon, make_mount):
    """Where room is short, what was removed is given back at once, though somebody has found it and may open it."""
    mounted = make_mount()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", mounted.cipher], check=True)
    try:
        mounted.start()
        for _ in range(3):
            (mounted.plain / "big").write_bytes(os.urandom(5_000_000))
            found = os.open(mounted.plain / "big", os.O_PATH)
            (mounted.plain / "big").unlink()
            (mounted.plain / "next").write_bytes(os.urandom(5_000_000))
            (mounted.plain / "next").unlink()
            os.close(found)
    finally:
        mounted.stop()
        subprocess.run(["umount", "-l", mounted.cipher], check=False)


# --- damage -----------------------------------------------------------------------------------------------------


def test_small_files_whose_close_succeeded_on_a_full_disk_survive_a_kill(daemon, make_mount, tmp_path):
    """Work that is put off must not be put off where the disk may be full by then: close() tells."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        process = make_mount()
        process.cipher = disk / "v"
        process.cipher.mkdir()
        process.start()
        stored = {}
        with pytest.raises(OSError) as caught:
            for number in range(5000):
                data = str(number).encode() * 150
                descriptor = os.open(process.plain / f"f{number}", os.O_CREAT | os.O_WRONLY)
                try:
                    os.write(descriptor, data)
                finally:
                    os.close(descriptor)
                stored[f"f{number}"] = data
        assert caught.value.errno == errno.ENOSPC and len(stored) > 500
        process.kill()
        process.start()
        assert all((process.plain / name).read_bytes() == data for name, data in stored.items())
        for name in list(stored)[:50]:
            (process.plain / name).unlink()
        (process.plain / "again").write_bytes(b"room")
        process.stop()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_flipped_truncated_zeroed_and_emptied_files(mounted):
    disk = make(mounted, "f", os.urandom(60_000))
    (mounted.plain / "good").write_text("good")
    mounted.stop()
    original = disk.read_bytes()
    damages = [bytes(100), original[:4000], original[:9000], b"", original[:8192] + bytes(len(original) - 8192)]
    for position in (0, 20, 60, 100, 200, 700, 1200, 3000, 9000, 30_000, len(original) - 5000):
        damages.append(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
    for damage in damages:
        disk.write_bytes(damage)
        mounted.start()
        assert_refused(mounted.plain / "f")
        assert "f" in os.listdir(mounted.plain)
        assert (mounted.plain / "good").read_text() == "good"
        mounted.stop()
    mounted.start()
    (mounted.plain / "f").unlink()
    assert os.listdir(mounted.plain) == ["good"]


def rm(path, *options):
    return subprocess.run(["rm", *options, path], capture_output=True, text=True)


@pytest.mark.parametrize("harm", ["header", "emptied", "zeroed", "short", "swapped", "hard linked", "symlink", "directory"])
def test_what_is_damaged_is_shown_refused_and_can_be_removed(mounted, harm):
    root = mounted.plain
    files = {name: make(mounted, name, os.urandom(20_000)) for name in ("f", "g")}
    (root / "link").symlink_to("f")
    (root / "d").mkdir()
    (root / "d" / "inside").write_text("x")
    number = {name: (root / name).lstat().st_ino for name in ("link", "d")}
    mounted.stop()
    stored = {name: path for name, inode in number.items() for path in mounted.cipher.iterdir() if path.lstat().st_ino == inode}
    name, disk = "f", files["f"]
    content = disk.read_bytes()
    if harm == "header":
        disk.write_bytes(bytes(100) + content[100:4096] + bytes(100) + content[4196:])
    elif harm == "emptied":
        disk.write_bytes(b"")
    elif harm == "zeroed":
        disk.write_bytes(bytes(len(content)))
    elif harm == "short":
        disk.write_bytes(content[:3000])
    elif harm == "swapped":
        os.rename(files["g"], disk)
    elif harm == "hard linked":
        disk.unlink()
        os.link(files["g"], disk)
    elif harm == "symlink":
        name, disk = "link", stored["link"]
        target = os.readlink(disk)
        disk.unlink()
        disk.symlink_to(target[:-2] + ("AA" if target[-2:] != "AA" else "BB"))
    else:
        name, disk = "d", stored["d"]
        target = os.readlink(disk / ".kd")
        (disk / ".kd").unlink()
        (disk / ".kd").symlink_to(target[:-2] + ("AA" if target[-2:] != "AA" else "BB"))
    mounted.start()
    for _ in range(2):
        facts = (root / name).lstat()
        assert facts.st_ino == disk.lstat().st_ino and name in os.listdir(root)
    if stat.S_ISREG(facts.st_mode):
        # Nobody takes it for empty who would remove empty files.
        assert facts.st_size == disk.stat().st_size
        if harm == "hard linked":
            assert (root / "g").read_bytes()
    for refused in (
        lambda: os.listdir(root / name) if name == "d" else os.readlink(root / name) if name == "link" else (root / name).read_bytes(),
        lambda: os.rename(root / name, root / "moved") if name != "link" else os.readlink(root / name),
        lambda: os.setxattr(root / name, b"user.a", b"1", follow_symlinks=False) if name != "link" else os.readlink(root / name),
        lambda: os.link(root / name, root / "more") if name == "f" else os.readlink(root / "link") if name == "link" else (root / name / "new").touch(),
    ):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == errno.EIO
    if harm == "hard linked":
        assert (root / "g").read_bytes()
    if name == "d":
        assert rm(root / name, "-r").returncode
        for path in disk.iterdir():
            if path.name != ".kd":
                path.unlink()
        os.rmdir(root / name)
    else:
        done = rm(root / name)
        assert done.returncode == 0, done.stderr
    assert not os.path.lexists(root / name) and not os.path.lexists(disk)
    (root / name).write_text("new")
    mounted.again()
    assert (root / name).read_text() == "new"
    if harm != "swapped":
        assert len((root / "g").read_bytes()) == 20_000


def test_what_was_damaged_and_is_mended_is_as_it_was(mounted):
    """The kernel keeps the size that it was told of an inode: a mended file must be another one to it."""
    content = os.urandom(20_001)
    disk = make(mounted, "f", content)
    mounted.stop()
    good = disk.read_bytes()
    disk.write_bytes(bytes(100) + good[100:4096] + bytes(100) + good[4196:])
    mounted.start()
    assert (mounted.plain / "f").stat().st_size == len(good)
    assert_refused(mounted.plain / "f")
    held = os.open(mounted.plain / "f", os.O_PATH)
    number = mounted.process.pid
    ask_restart(find_mounted(mounted.plain))
    soon(True, lambda: os.stat(mounted.plain).st_ino > 0)
    assert mounted.process.pid == number and os.fstat(held).st_size == len(good)
    with disk.open("r+b") as stream:
        stream.write(good)
    # At once, and in the mount's next image too; who holds what was damaged gets nothing of it, least of all with the wrong size.
    with pytest.raises(OSError) as caught:
        os.open(f"/proc/self/fd/{held}", os.O_RDONLY)
    assert caught.value.errno == errno.EIO
    os.close(held)
    assert (mounted.plain / "f").stat().st_size == 20_001 and (mounted.plain / "f").read_bytes() == content
    os.rename(mounted.plain / "f", mounted.plain / "g")
    mounted.again()
    assert (mounted.plain / "g").read_bytes() == content


@pytest.mark.parametrize("how", [os.stat, lambda path: [entry.stat() for entry in os.scandir(path.parent)]])
def test_the_kernel_asks_again_what_was_damaged(mounted, tmp_path, how):
    """Also where no event tells of the change: it is made by a name outside of the volume."""
    content = os.urandom(20_001)
    disk = make(mounted, "f", content)
    mounted.stop()
    good = disk.read_bytes()
    os.link(disk, tmp_path / "elsewhere")
    with open(tmp_path / "elsewhere", "r+b") as stream:
        stream.write(bytes(100))
    mounted.start()
    time.sleep(1)
    how(mounted.plain / "f")
    with open(tmp_path / "elsewhere", "r+b") as stream:
        stream.write(good)
    assert (mounted.plain / "f").stat().st_size == 20_001 and (mounted.plain / "f").read_bytes() == content


def test_who_holds_a_damaged_directory_does_not_get_the_mended_one(mounted):
    (mounted.plain / "d").mkdir()
    (mounted.plain / "d" / "x").write_text("x")
    mounted.stop()
    [folder] = [path for path in mounted.cipher.iterdir() if path.is_dir() and path.name[0] == "n"]
    target = os.readlink(folder / ".kd")
    (folder / ".kd").unlink()
    (folder / ".kd").symlink_to(target[:-2] + ("AA" if target[-2:] != "AA" else "BB"))
    mounted.start()
    held = os.open(mounted.plain / "d", os.O_PATH)
    (folder / ".kd").unlink()
    (folder / ".kd").symlink_to(target)
    assert os.listdir(mounted.plain / "d") == ["x"]
    with pytest.raises(OSError) as caught:
        os.listdir(f"/proc/self/fd/{held}")
    assert caught.value.errno == errno.EIO
    os.close(held)


def test_something_whole_takes_the_place_of_what_is_damaged(mounted):
    disk = make(mounted, "f", b"x" * 20_000)
    mounted.stop()
    disk.write_bytes(bytes(disk.stat().st_size))
    mounted.start()
    (mounted.plain / "new").write_text("new")
    os.rename(mounted.plain / "new", mounted.plain / "f")
    assert (mounted.plain / "f").read_text() == "new" and os.listdir(mounted.plain) == ["f"]
    mounted.again()
    assert (mounted.plain / "f").read_text() == "new"


def test_swapped_and_moved_files_and_directories(mounted):
    root = mounted.plain
    for name in ("one", "two"):
        (root / name).write_text(name)
        (root / f"d-{name}").mkdir()
        (root / f"d-{name}" / "inside").write_text(name)
    mounted.stop()
    by_kind = {True: [], False: []}
    for path in mounted.cipher.iterdir():
        if path.name.startswith("n"):
            by_kind[path.is_dir()].append(path)
    for first, second in by_kind.values():
        spare = mounted.cipher / "spare"
        first.rename(spare)
        second.rename(first)
        spare.rename(second)
    mounted.start()
    for name in ("one", "two"):
        assert_refused(root / name)
        assert_refused(root / f"d-{name}" / "inside")
    mounted.stop()
    # The Mallory attack: a secret file's ciphertext moved into a directory that may be read.
    for first, second in by_kind.values():
        spare = mounted.cipher / "spare"
        first.rename(spare)
        second.rename(first)
        spare.rename(second)
    file, folder = by_kind[False][0], by_kind[True][0]
    [inside] = [p for p in folder.iterdir() if p.name.startswith("n")]
    shutil.copy(file, inside)
    file.rename(folder / file.name)
    mounted.start()
    listed = {name: os.listdir(root / name) for name in ("d-one", "d-two")}
    assert all(names == ["inside"] for names in listed.values())
    refused = 0
    for name in ("d-one", "d-two"):
        try:
            assert (root / name / "inside").read_text() == name[2:]
        except OSError as error:
            assert error.errno == errno.EIO
            refused += 1
    assert refused == 1


def test_edited_configuration_and_directory_ids(mounted):
    (mounted.plain / "d").mkdir()
    (mounted.plain / "d" / "x").write_text("x")
    mounted.stop()
    config = mounted.cipher / "kmsfs.volume"
    good = config.read_bytes()
    for old, new in ((b'"enforce"', b'"off"'), (b'"format": 1', b'"format": 2'), (b"{", b"["), (good, b""), (b'"per-file"', b'"x"')):
        config.write_bytes(good.replace(old, new, 1))
        mounted.start(wait=False)
        assert mounted.process.wait(20) in (errors.ExitCode.INTEGRITY, errors.ExitCode.UNSUPPORTED_FORMAT)
        mounted._close()
    config.write_bytes(good)
    [folder] = [p for p in mounted.cipher.iterdir() if p.is_dir()]
    target = os.readlink(folder / ".kd")
    os.unlink(folder / ".kd")
    os.symlink(target[:-1] + ("A" if target[-1] != "A" else "B"), folder / ".kd")
    mounted.start()
    with pytest.raises(OSError):
        os.listdir(mounted.plain / "d")
    mounted.stop()
    os.unlink(folder / ".kd")
    mounted.start()
    with pytest.raises(OSError):
        os.listdir(mounted.plain / "d")


# --- revocation -------------------------------------------------------------------------------------------------


def test_disabling_the_key_takes_effect_at_once(daemon, make_mount):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    mounted = make_mount("--key", key).start()
    (mounted.plain / "f").write_bytes(b"secret" * 10_000)
    descriptor = os.open(mounted.plain / "f", os.O_RDONLY)
    assert os.read(descriptor, 6) == b"secret"
    session.call("DisableKey", {"KeyId": key})
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.pread(descriptor, 6, 30_000)
        except OSError as error:
            assert error.errno == errno.EKEYREVOKED
            break
        time.sleep(0.01)
    else:
        pytest.fail("an open file outlived its key")
    with pytest.raises(OSError):
        (mounted.plain / "f").read_bytes()
    with pytest.raises(OSError):
        (mounted.plain / "new").write_bytes(b"x")
    session.call("EnableKey", {"KeyId": key})
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert os.pread(descriptor, 6, 6) == b"secret"
            break
        except OSError:
            time.sleep(0.05)
    os.close(descriptor)
    assert (mounted.plain / "f").read_bytes() == b"secret" * 10_000


def test_a_key_that_is_disabled_while_the_mount_hears_nothing(fresh_daemon, make_mount):
    """kmsd is killed, comes back, and the key is disabled before the mount watches again: no event tells of that."""
    fresh_daemon.start()
    session = fresh_daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    mounted = make_mount("--key", key, on=fresh_daemon).start()
    (mounted.plain / "f").write_bytes(b"secret" * 10_000)
    descriptor = os.open(mounted.plain / "f", os.O_RDONLY)
    assert os.read(descriptor, 6) == b"secret"
    mounted.process.send_signal(signal.SIGSTOP)
    fresh_daemon.stop(signal.SIGKILL)
    fresh_daemon.start()
    fresh_daemon.session().call("DisableKey", {"KeyId": key})
    mounted.process.send_signal(signal.SIGCONT)

    soon(errno.EKEYREVOKED, lambda: os.pread(descriptor, 6, 30_000))
    with pytest.raises(OSError):
        (mounted.plain / "f").read_bytes()
    fresh_daemon.session().call("EnableKey", {"KeyId": key})
    soon(b"secret", lambda: os.pread(descriptor, 6, 30_000))
    os.close(descriptor)


@pytest.mark.root
def test_opening_a_file_is_a_decrypt_that_policy_decides(daemon, make_mount):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    mounted = make_mount("--key", key).start()
    (mounted.plain / "f").write_text("x")
    mounted.stop()
    me = session.call("GetStatus", {})["Principal"]
    own = {"Effect": "Allow", "Principal": {"AWS": me}, "Action": "kms:*", "Resource": "*"}
    no_files = {
        "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"Null": {"kms:EncryptionContext:kmsfs:file": "false"}},
    }  # fmt: skip
    session.call("PutKeyPolicy", {"KeyId": key, "Policy": json.dumps({"Statement": [own, no_files]})})
    mounted.start()
    assert os.listdir(mounted.plain) == ["f"]
    with pytest.raises(PermissionError):
        (mounted.plain / "f").read_text()
    session.call("PutKeyPolicy", {"KeyId": key, "Policy": json.dumps({"Statement": [own]})})
    assert (mounted.plain / "f").read_text() == "x"
    records = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    denied = [r for r in records if r["op"] == "Decrypt" and r.get("err") == "AccessDeniedException"]
    assert any("kmsfs:file" in r.get("ec", {}) for r in denied)


# --- bad input --------------------------------------------------------------------------------------------------


def run_mount(daemon, *arguments):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", "mount", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_places_that_would_surprise(daemon, tmp_path):
    full, empty, cipher = tmp_path / "full", tmp_path / "empty", tmp_path / "c"
    for folder in (full, empty, cipher):
        folder.mkdir()
    (full / "x").touch()
    assert "not empty" in run_mount(daemon, cipher, full).stderr
    assert "not empty" in run_mount(daemon, full, empty).stderr
    assert "inside each other" in run_mount(daemon, cipher, cipher).stderr
    assert "inside each other" in run_mount(daemon, cipher, cipher / "p").stderr
    assert "not a directory" in run_mount(daemon, full / "x", empty).stderr
    assert run_mount(daemon, cipher, empty, "--transport", "carrier-pigeon").returncode == 2
    assert run_mount(daemon, cipher, empty, "--key", "alias/none").returncode == errors.ExitCode.NOT_FOUND
    assert not list(cipher.glob("kmsfs.volume"))


def test_a_second_writer_is_refused(daemon, mounted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    answer = run_mount(daemon, mounted.cipher, other)
    assert answer.returncode == errors.ExitCode.CONFLICT and "mounted already" in answer.stderr
    assert "mount point already" in run_mount(daemon, mounted.cipher, mounted.plain).stderr
    (mounted.plain / "x").write_text("still here")


def test_read_only_mounts(daemon, make_mount):
    mounted = make_mount().start()
    (mounted.plain / "f").write_text("x")
    mounted.stop()
    before = {p.name: p.read_bytes() for p in mounted.cipher.iterdir()}
    mounted.options = ("--read-only",)
    mounted.start()
    assert (mounted.plain / "f").read_text() == "x"
    for act in (lambda: (mounted.plain / "g").touch(), lambda: (mounted.plain / "f").unlink(), lambda: (mounted.plain / "f").write_text("y")):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.EROFS
    mounted.stop()
    assert before == {p.name: p.read_bytes() for p in mounted.cipher.iterdir()}


def test_no_daemon_and_no_autostart(tmp_path):
    environment = {**os.environ, "KMSFS_SOCKET": str(tmp_path / "none.sock")}
    command = [sys.executable, "-m", "kmsfs.cli", "--no-autostart", "mount", tmp_path / "c", tmp_path / "p"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == errors.ExitCode.UNAVAILABLE and "hint" in done.stderr


# --- real input -------------------------------------------------------------------------------------------------


def test_the_standard_library_goes_in_and_comes_out(mounted):
    source = Path(sysconfig.get_paths()["stdlib"])
    ignore = shutil.ignore_patterns("site-packages", "__pycache__", "test", "idlelib", "lib2to3", "dist-packages", "*.so", "config-*")
    shutil.copytree(source, mounted.plain / "lib", ignore=ignore, symlinks=True)
    mounted.again()
    compared = subprocess.run(
        ["diff", "-r", "-x", "site-packages", "-x", "__pycache__", "-x", "test", "-x", "idlelib", "-x", "lib2to3",
         "-x", "dist-packages", "-x", "*.so", "-x", "config-*", source, mounted.plain / "lib"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout[-500:]
    assert sum(1 for _ in (mounted.plain / "lib").rglob("*.py")) > 300
    shutil.rmtree(mounted.plain / "lib")
    assert cipher_names(mounted) == set()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git(mounted, tmp_path):
    def git(*arguments):
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *settings, *map(str, arguments)], check=True, capture_output=True)

    origin = mounted.plain / "origin"
    git("init", origin)
    for number in range(40):
        (origin / f"f{number}").write_text(f"{number}\n" * number * 20)
    git("-C", origin, "add", ".")
    git("-C", origin, "commit", "-m", "one")
    git("clone", origin, mounted.plain / "clone")
    git("-C", mounted.plain / "clone", "gc")
    git("-C", mounted.plain / "clone", "fsck", "--full")
    mounted.again()
    git("-C", mounted.plain / "clone", "fsck", "--full")
    git("clone", mounted.plain / "clone", tmp_path / "out")


def test_sqlite_in_wal_mode(mounted):
    import sqlite3

    database = sqlite3.connect(mounted.plain / "x.db", isolation_level=None)
    assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
    for number in range(200):
        database.execute("INSERT INTO t(b) VALUES(?)", (os.urandom(number * 10),))
    database.close()
    mounted.again()
    database = sqlite3.connect(mounted.plain / "x.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("SELECT count(*) FROM t").fetchone() == (200,)
    database.close()


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_tar_and_rsync(mounted, tmp_path):
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "f").write_bytes(os.urandom(100_000))
    os.chmod(tree / "a" / "f", 0o640)
    os.utime(tree / "a" / "f", ns=(1_500_000_000_000_000_000, 1_400_000_000_123_456_789))
    os.link(tree / "a" / "f", tree / "a" / "b" / "hard")
    os.symlink("../f", tree / "a" / "b" / "soft")
    with (tree / "sparse").open("wb") as stream:
        stream.truncate(10_000_000)
    subprocess.run(["rsync", "-aHAX", f"{tree}/", mounted.plain / "r"], check=True)
    subprocess.run(f"tar -C {tree} --format=posix -cf - . | tar -C {mounted.plain} -xf -", shell=True, check=True)
    mounted.again()
    for copy in (mounted.plain / "r", mounted.plain):
        assert subprocess.run(["diff", "-r", tree / "a", copy / "a"]).returncode == 0
        facts = (copy / "a" / "f").stat()
        assert facts.st_mtime_ns == 1_400_000_000_123_456_789 and facts.st_mode & 0o777 == 0o640
        assert facts.st_ino == (copy / "a" / "b" / "hard").stat().st_ino
    again = subprocess.run(["rsync", "-aHAXi", f"{tree}/", mounted.plain / "r"], capture_output=True, text=True, check=True)
    assert again.stdout == ""
