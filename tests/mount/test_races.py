"""Everything at once on few names: no answer that a file system does not give, and nothing amiss afterwards."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmsfs.errors import ExitCode
from kmsfs.mount.control import ask_restart
from kmsfs.mount.mounttable import find_mounted

from support import races

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# 2 lives of 3 seconds in CI, and one of each kind that is harder; `KMSFS_RACES=200 pytest tests/mount/test_races.py` is the campaign.
LIVES = int(os.environ.get("KMSFS_RACES", "2"))
HARDER = max(1, LIVES // 3)
SECONDS = 3


def started(mount, seed, *errnos):
    command = [sys.executable, races.__file__, str(mount.plain), str(SECONDS), str(seed), *errnos]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(running):
    said, errors = running.communicate(timeout=SECONDS + 60)
    assert running.returncode == 0, errors
    return json.loads(said)


def check(mount):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "check", str(mount.cipher)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    return json.loads(done.stdout)


def read_all(root):
    for parent, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(parent, name)
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                data = path.read_bytes()
                races.check_content(data)
                assert len(data) == facts.st_size
                assert set(os.listxattr(path)) <= {"user.a"}
            elif stat.S_ISLNK(facts.st_mode):
                assert os.readlink(path) in races.NAMES


def hear_of_lost_writes(root, *errnos):
    """Let the kernel say which cached writes it could not store: it tells whoever closes the file next, a reader too, and once."""
    for parent, _, files in os.walk(root):
        for name in files:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.close(descriptor)
                except OSError as error:
                    assert error.errno in errnos


@pytest.mark.parametrize("life", range(LIVES))
def test_nobody_is_told_what_no_file_system_says(make_mount, life):
    mount = make_mount().start()
    running = started(mount, life)
    if life % 3 == 1:
        for _ in range(2):
            time.sleep(SECONDS / 3)
            assert ask_restart(find_mounted(mount.plain))["version"]
    asked, answered, wrong = ended(running)
    assert asked > 300 and answered > asked / 4 and wrong == []
    read_all(mount.plain)
    mount.again()
    assert "ERROR" not in mount.log
    read_all(mount.plain)
    mount.stop()
    assert check(mount)["findings"] == []
    mount.start()
    for entry in mount.plain.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    mount.stop()
    report = check(mount)
    assert report["findings"] == [] and report["files"] == 0


@pytest.mark.parametrize("life", range(LIVES))
def test_a_kill_amid_all_that_leaves_nothing_damaged(make_mount, life):
    mount = make_mount().start()
    running = started(mount, 1000 + life)
    time.sleep(SECONDS * (0.3 + 0.6 * (life % 7) / 7))
    mount.process.kill()
    running.kill()
    running.communicate(timeout=60)
    mount.kill()
    mount.start()
    read_all(mount.plain)
    mount.again()
    read_all(mount.plain)
    assert "ERROR" not in mount.log
    mount.stop()
    found = check(mount)["findings"]
    assert {finding["kind"] for finding in found} <= {"leftover"}


@pytest.mark.parametrize("life", range(HARDER))
def test_a_key_that_comes_and_goes_meanwhile(daemon, make_mount, life):
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    mount = make_mount("--key", key).start()
    # EIO is what the kernel says of cached writes that could not be stored any more.
    running = started(mount, 2000 + life, "EKEYREVOKED", "EIO")
    for _ in range(4):
        time.sleep(SECONDS / 8)
        session.call("DisableKey", {"KeyId": key})
        time.sleep(SECONDS / 16)
        session.call("EnableKey", {"KeyId": key})
    _, answered, wrong = ended(running)
    assert answered > 100 and wrong == []
    hear_of_lost_writes(mount.plain, errno.EIO)
    read_all(mount.plain)
    mount.again()
    read_all(mount.plain)
    mount.stop()
    assert check(mount)["findings"] == []


@pytest.mark.parametrize("life", range(HARDER))
def test_a_full_disk_meanwhile(make_mount, life):
    mount = make_mount()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={400 + 100 * (life % 5)}k", "none", mount.cipher], check=True)
    try:
        mount.start()
        # ESTALE: what is removed there is given back at once, whoever has just found it.
        _, answered, wrong = ended(started(mount, 3000 + life, "ENOSPC", "ESTALE"))
        assert answered > 100 and wrong == []
        hear_of_lost_writes(mount.plain, errno.EIO, errno.ENOSPC)
        read_all(mount.plain)
        subprocess.run(["mount", "-o", "remount,size=50m", mount.cipher], check=True)
        read_all(mount.plain)
        mount.again()
        read_all(mount.plain)
        mount.stop()
        assert check(mount)["findings"] == []
    finally:
        mount.stop()
        subprocess.run(["umount", "-l", mount.cipher], check=False)


@pytest.mark.parametrize("life", range(HARDER))
def test_a_daemon_that_is_killed_meanwhile(fresh_daemon, make_mount, life):
    fresh_daemon.start()
    mount = make_mount(on=fresh_daemon).start()
    # A new file needs a data key: more than were made ahead, while the daemon is away, are to be tried again.
    running = started(mount, 4000 + life, "EAGAIN")
    for _ in range(2):
        time.sleep(SECONDS / 4)
        fresh_daemon.stop(signal.SIGKILL)
        fresh_daemon.start()
    asked, answered, wrong = ended(running)
    assert answered > asked / 4 and wrong == []
    read_all(mount.plain)
    mount.again()
    read_all(mount.plain)
    mount.stop()
    assert check(mount)["findings"] == []
