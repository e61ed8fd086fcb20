"""kmsfs check: whole volumes pass, and every kind of damage is named with its path."""

import json
import os
import subprocess
import sys
import time

import pytest

from kmsfs.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def volume(make_mount):
    mount = make_mount().start()
    plain = mount.plain
    (plain / "d" / "deep").mkdir(parents=True)
    (plain / "small").write_text("small")
    (plain / "empty").write_bytes(b"")
    (plain / "d" / "big").write_bytes(os.urandom(3_000_000))
    (plain / "d" / "deep" / ("long" * 55)).write_text("x")
    (plain / "link").symlink_to("small")
    os.link(plain / "small", plain / "d" / "second")
    with open(plain / "sparse", "wb") as stream:
        stream.truncate(50_000_000)
        stream.seek(40_000_000)
        stream.write(b"data")
    names = {}
    for parent, _, files in os.walk(plain):
        for name in files:
            names[os.stat(os.path.join(parent, name), follow_symlinks=False).st_ino] = os.path.relpath(os.path.join(parent, name), plain)
    mount.stop()
    mount.stored = {}
    for parent, _, files in os.walk(mount.cipher):
        for name in files:
            path = os.path.join(parent, name)
            plain_name = names.get(os.stat(path, follow_symlinks=False).st_ino)
            if plain_name:
                mount.stored[plain_name] = path
    return mount


def check(mount):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "check", str(mount.cipher)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_whole_volume_passes(volume):
    code, report = check(volume)
    assert code == 0 and report["findings"] == [] and not report["damaged"]
    # The hard link is found twice.
    assert (report["files"], report["directories"], report["links"]) == (6, 3, 1)
    assert report["plain_bytes"] == 3_000_000 + 50_000_000 + 2 * len("small") + 1 and report["chunks"] > 180


def test_it_writes_nothing(volume):
    def state():
        return {path: (os.stat(path).st_mtime_ns, open(path, "rb").read()) for path in volume.stored.values() if not os.path.islink(path)}

    before = state()
    check(volume)
    assert state() == before


def test_a_mounted_volume_is_refused(volume):
    volume.start()
    environment = {**os.environ, "KMSFS_SOCKET": volume.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "check", str(volume.cipher)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.CONFLICT and "mounted" in done.stderr


def damage(path, offset):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("harm", ["header", "chunk", "truncated", "emptied", "removed id", "foreign", "moved", "link", "swapped"])
def test_damage_is_named(volume, harm):
    stored = volume.stored
    expected = "/d/big"
    if harm == "header":
        damage(stored["d/big"], 700)
    elif harm == "chunk":
        damage(stored["d/big"], os.path.getsize(stored["d/big"]) // 2)
    elif harm == "truncated":
        os.truncate(stored["d/big"], 100_000)
    elif harm == "emptied":
        os.truncate(stored["sparse"], 0)
        expected = "/sparse"
    elif harm == "removed id":
        os.unlink(os.path.join(os.path.dirname(stored["d/big"]), ".kd"))
        expected = "/d"
    elif harm == "foreign":
        (volume.cipher / "foreign").write_text("what")
        expected = "/?"
    elif harm == "moved":
        os.rename(stored["d/big"], os.path.join(os.path.dirname(stored["sparse"]), os.path.basename(stored["d/big"])))
        expected = "/?"
    elif harm == "link":
        target = os.readlink(stored["link"])
        os.unlink(stored["link"])
        os.symlink(target[:-2] + ("AA" if target[-2:] != "AA" else "BB"), stored["link"])
        expected = "/link"
    elif harm == "swapped":
        one, other = stored["empty"], stored["sparse"]
        os.rename(one, one + "x")
        os.rename(other, one)
        os.rename(one + "x", other)
        expected = "/empty"
    code, report = check(volume)
    assert code == ExitCode.DAMAGE_FOUND and report["damaged"]
    assert expected in {finding["path"] for finding in report["findings"]}, report["findings"]


def test_a_killed_mount_leaves_nothing_that_check_calls_damage(make_mount):
    mount = make_mount().start()
    for number in range(40):
        (mount.plain / f"f{number}").write_bytes(os.urandom(number * 5000))
    mount.kill()
    code, report = check(mount)
    assert code == 0, report["findings"]
    assert all(finding["kind"] == "unclean" for finding in report["findings"])


def test_a_refused_key_is_no_pass(volume, daemon):
    session = daemon.session()
    key = json.loads(subprocess.run(
        [sys.executable, "-m", "kmsfs.cli", "--json", "inspect", str(volume.cipher)], capture_output=True, text=True, env={**os.environ, "KMSFS_SOCKET": volume.socket},
    ).stdout)["kms_key"]
    session.call("DisableKey", {"KeyId": key})
    try:
        done = subprocess.run([sys.executable, "-m", "kmsfs.cli", "check", str(volume.cipher)], capture_output=True, text=True, env={**os.environ, "KMSFS_SOCKET": volume.socket})
        assert done.returncode == ExitCode.CONFLICT and "disabled" in done.stderr
    finally:
        session.call("EnableKey", {"KeyId": key})


def test_a_reader_after_a_crash_takes_what_verifies(make_mount, daemon):
    """The session that crashed is nobody's: its newest header is verified, also by who only reads."""
    from conftest import MountProcess
    from kmsfs.formats.fileheader import parse_clear

    mount = make_mount().start()
    (mount.plain / "f").write_text("first")
    mount.again()
    with open(mount.plain / "f", "r+") as stream:
        stream.write("FIRST")
        stream.flush()
        os.fsync(stream.fileno())
    [path] = [p for p in mount.cipher.iterdir() if p.name[0] == "n"]

    def generations():
        raw = path.read_bytes()
        return [parse_clear(raw[at : at + 4096]).generation if any(raw[at : at + 4096]) else 0 for at in (0, 4096)]

    before = generations()
    os.truncate(mount.plain / "f", 3)
    deadline = time.monotonic() + 10
    while generations() == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mount.kill()
    newest = generations().index(max(generations()))
    damage(path, newest * 4096 + 3000)
    reader = MountProcess(mount.socket, mount.cipher, mount.plain, "--read-only").start()
    try:
        assert (mount.plain / "f").read_text() == "FIRST"
    finally:
        reader.stop()
    code, report = check(mount)
    assert code == 0 and {finding["kind"] for finding in report["findings"]} == {"unclean"}
