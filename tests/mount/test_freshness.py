"""Files, trees and records put back from the past, against a live mount."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from kmsfs.errors import AccessDenied, ExitCode, VolumeBusy
from kmsfs.formats.volume import parse_config
from kmsfs.mount.freshness import records_path

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def kmsfs(mount, *arguments):
    environment = {**os.environ, "KMSFS_SOCKET": str(mount.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def findings(mount):
    done = kmsfs(mount, "--json", "check", str(mount.cipher))
    return {(f["path"], f["problem"].split(":")[0]) for f in json.loads(done.stdout)["findings"]}


def state(mount):
    """A copy of the cipher directory as it is now."""
    copy = mount.cipher.with_suffix(f".{time.monotonic_ns()}")
    shutil.copytree(mount.cipher, copy, symlinks=True)
    return copy


def put_back(mount, copy):
    """What whoever stores the cipher directory can do: older files in the place of newer ones, and beside them."""
    subprocess.run(["cp", "-a", f"{copy}/.", str(mount.cipher)], check=True)


def volume_of(mount):
    return parse_config((mount.cipher / "kmsfs.volume").read_bytes())[0]


@pytest.fixture
def aged(make_mount):
    """A volume with a past: (mount, copy of its cipher directory as it was)."""
    mount = make_mount().start()
    for name in ("written", "appended", "removed", "replaced", "renamed", "kept"):
        (mount.plain / name).write_text("past")
    (mount.plain / "big").write_bytes(bytes(500_000))
    (mount.plain / "d").mkdir()
    (mount.plain / "d" / "deep").write_text("past")
    mount.stop()
    past = state(mount)
    mount.start()
    (mount.plain / "written").write_text("present")
    with open(mount.plain / "appended", "a") as stream:
        stream.write(" and present")
    (mount.plain / "removed").unlink()
    (mount.plain / "new").write_text("present")
    os.replace(mount.plain / "new", mount.plain / "replaced")
    os.rename(mount.plain / "renamed", mount.plain / "d" / "renamed")
    with open(mount.plain / "big", "r+b") as stream:
        stream.seek(300_000)
        stream.write(b"present")
    (mount.plain / "d" / "deep").write_text("present")
    mount.stop()
    assert findings(mount) == set()
    return mount, past


def test_every_way_back_is_refused(aged):
    mount, past = aged
    put_back(mount, past)
    found = {path for path, problem in findings(mount) if problem == "the file is of the past"}
    assert found == {"/written", "/appended", "/removed", "/replaced", "/renamed", "/big", "/d/deep"}
    mount.start()
    assert (mount.plain / "kept").read_text() == "past"
    for name in found:
        for how in ("r", "r+", "a"):
            with pytest.raises(OSError):
                open(str(mount.plain) + name, how).read()
        # What was put back does not become the present by a change that needs no data key.
        try:
            os.utime(str(mount.plain) + name, (1, 1))
        except OSError:
            pass
    mount.stop()
    assert "accept-restore" in mount.log
    assert {path for path, problem in findings(mount) if problem == "the file is of the past"} == found
    mount.start()
    # And it can be removed.
    for name in found:
        os.unlink(str(mount.plain) + name)


def test_under_a_running_mount(make_mount):
    mount = make_mount().start()
    (mount.plain / "f").write_text("past")
    os.sync()
    mount.again()
    past = state(mount)
    (mount.plain / "f").write_text("present")
    with open(mount.plain / "f") as stream:
        os.fsync(stream.fileno())
    time.sleep(1.5)
    put_back(mount, past)
    time.sleep(1.5)
    with pytest.raises(OSError):
        (mount.plain / "f").read_text()


def test_a_restore_is_accepted_by_who_may(aged, daemon):
    mount, past = aged
    shutil.rmtree(mount.cipher)
    shutil.copytree(past, mount.cipher, symlinks=True)
    refused = kmsfs(mount, "volume", "accept-restore", str(mount.cipher))
    assert refused.returncode == ExitCode.USAGE and "--yes" in refused.stderr
    config = volume_of(mount)
    session = daemon.session()
    policy = session.call("GetKeyPolicy", {"KeyId": config.key_arn})["Policy"]
    denied = json.loads(policy)
    denied["Statement"].append(
        {"Effect": "Deny", "Principal": "*", "Action": "kms:AcceptVolumeRestore", "Resource": "*"}
    )
    session.call("PutKeyPolicy", {"KeyId": config.key_arn, "Policy": json.dumps(denied)})
    refused = kmsfs(mount, "volume", "accept-restore", "--yes", str(mount.cipher))
    assert refused.returncode == AccessDenied.exit_code and "AcceptVolumeRestore" in refused.stderr
    session.call("PutKeyPolicy", {"KeyId": config.key_arn, "Policy": policy})
    assert kmsfs(mount, "volume", "accept-restore", "--yes", str(mount.cipher)).returncode == 0
    assert findings(mount) == set()
    mount.start()
    assert (mount.plain / "written").read_text() == "past" and (mount.plain / "removed").exists()
    (mount.plain / "written").write_text("new")
    mount.stop()
    # From here on it is watched again.
    put_back(mount, past)
    assert ("/written", "the file is of the past") in findings(mount)
    journal = "".join(path.read_text(errors="replace") for path in (daemon.state / "audit").iterdir())
    assert journal.count('"AcceptVolumeRestore"') >= 2


def test_not_while_it_is_mounted(make_mount, daemon):
    mount = make_mount().start()
    config = volume_of(mount)
    with pytest.raises(VolumeBusy):
        daemon.session().call("AcceptVolumeRestore", {"KeyId": config.key_arn, "VolumeId": config.volume_id.hex()})


def test_records_that_are_missing_or_of_the_past(aged):
    mount, _ = aged
    path = records_path(volume_of(mount).volume_id)
    past = path.read_bytes()
    mount.start()
    (mount.plain / "written").write_text("later")
    mount.stop()
    present = path.read_bytes()
    for content in (past, None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for options in ((), ("--read-only",)):
            done = kmsfs(mount, "mount", "--foreground", *options, str(mount.cipher), str(mount.plain))
            assert done.returncode == ExitCode.INTEGRITY and "accept-restore" in done.stderr
        assert ("/", f"the freshness records of this volume ({path}) are missing or of the past") in findings(mount)
    path.write_bytes(present)
    mount.start()
    assert (mount.plain / "written").read_text() == "later"


def test_after_kill_9_nothing_is_taken_for_old(make_mount):
    mount = make_mount().start()
    for life in range(4):
        for number in range(40):
            (mount.plain / f"{life}.{number}").write_text("x" * (number * 200))
        if life:
            for number in range(0, 40, 3):
                os.replace(mount.plain / f"{life}.{number}", mount.plain / f"{life - 1}.{number}")
            for number in range(1, 40, 3):
                os.unlink(mount.plain / f"{life}.{number}")
        if life % 2:
            time.sleep(6)
        mount.kill()
        mount.start()
        for path in mount.plain.iterdir():
            path.read_bytes()
    mount.stop()
    assert findings(mount) == set()


def test_rewrapped_files_are_the_present(aged):
    mount, _ = aged
    before = state(mount)
    assert kmsfs(mount, "key", "rotate", volume_of(mount).key_arn).returncode == 0
    assert kmsfs(mount, "rewrap", str(mount.cipher)).returncode == 0
    assert findings(mount) == set()
    mount.start()
    assert (mount.plain / "written").read_text() == "present"
    mount.stop()
    put_back(mount, before)
    assert ("/kept", "the file is of the past") in findings(mount)


def test_links_keep_their_records_until_the_last_name_goes(make_mount):
    mount = make_mount().start()
    (mount.plain / "a").write_text("linked")
    os.link(mount.plain / "a", mount.plain / "b")
    mount.again()
    past = state(mount)
    # Removed while nothing but its attributes is known: other names are left.
    os.unlink(mount.plain / "a")
    mount.again()
    assert (mount.plain / "b").read_text() == "linked"
    os.unlink(mount.plain / "b")
    mount.stop()
    put_back(mount, past)
    assert {path for path, _ in findings(mount)} == {"/a", "/b"}


def test_nothing_is_kept_of_what_is_gone(make_mount):
    import sqlite3

    mount = make_mount().start()
    (mount.plain / "stays").write_text("x")
    for number in range(50):
        (mount.plain / f"f{number}").write_text("x")
    mount.again()
    for number in range(50):
        os.unlink(mount.plain / f"f{number}")
    with open(mount.plain / "nameless", "w") as stream:
        os.unlink(mount.plain / "nameless")
        stream.write("x" * 10_000)
        os.fsync(stream.fileno())
    mount.stop()
    with sqlite3.connect(records_path(volume_of(mount).volume_id)) as records:
        assert records.execute("SELECT count(*) FROM files").fetchone() == (1,)


def test_a_daemon_that_was_restored_knows_fewer_sessions_than_the_files(fresh_daemon, make_mount, tmp_path):
    """The disaster: state and records are of the past or gone, the files are newer. Everything opens, and stays open."""
    fresh_daemon.start()
    mount = make_mount(on=fresh_daemon).start()
    (mount.plain / "before").write_text("before")
    mount.stop()
    archive = tmp_path / "b.kmsbackup"
    kmsd = [sys.executable, "-m", "kmsd"]
    subprocess.run([*kmsd, "backup", str(archive), "--state", str(fresh_daemon.state)], check=True, capture_output=True)
    for session in range(4):
        mount.start()
        (mount.plain / f"after{session}").write_text("after")
        (mount.plain / "before").write_text(f"changed in {session}")
        mount.stop()
    fresh_daemon.stop()
    code = json.loads(fresh_daemon.init_output)["recovery_code"]
    shutil.rmtree(fresh_daemon.state)
    shutil.rmtree(tmp_path / "state-anchor")
    records_path(volume_of(mount).volume_id).unlink()
    subprocess.run(
        [*kmsd, "restore", str(archive), "--state", str(fresh_daemon.state), "--code-file", "-"], input=code, text=True, check=True, capture_output=True
    )
    fresh_daemon.start()
    refused = kmsfs(mount, "mount", "--foreground", str(mount.cipher), str(mount.plain))
    assert refused.returncode == ExitCode.INTEGRITY and "accept-restore" in refused.stderr
    assert kmsfs(mount, "volume", "accept-restore", "--yes", str(mount.cipher)).returncode == 0
    wanted = {"before": "changed in 3", **{f"after{session}": "after" for session in range(4)}}
    for number in range(4):
        mount.start()
        if number != 1:
            assert {path.name: path.read_text() for path in mount.plain.iterdir()} == wanted
        wanted[f"new{number}"] = "new"
        (mount.plain / f"new{number}").write_text("new")
        time.sleep(1)
        mount.stop()
        assert findings(mount) == set(), number
