"""kmsfs adopt: everything of a tree comes along, a cut-off run goes on, and nothing of the original changes."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmsfs.adopt.facts import content_differs, unlike
from kmsfs.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def source(tmp_path):
    """A tree with something of every kind."""
    top = tmp_path / "Documents"
    (top / "d" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "small").write_text("small")
    (top / "none").write_bytes(b"")
    (top / "d" / "big").write_bytes(os.urandom(5_000_000))
    (top / "d" / "deep" / ("long" * 60)).write_text("x")
    (top / "d" / "ünïcode ☃").write_text("x")
    os.symlink("small", top / "link")
    os.symlink("/nowhere", top / "d" / "dangling")
    os.link(top / "small", top / "d" / "second")
    os.mkfifo(top / "fifo")
    with open(top / "sparse", "wb") as stream:
        stream.truncate(30_000_000)
        stream.seek(20_000_000)
        stream.write(b"data")
    os.chmod(top / "small", 0o4711)
    os.chmod(top / "d", 0o2770)
    os.chmod(top / "empty", 0o1777)
    os.chown(top / "none", 1234, 4321)
    os.chown(top / "link", 77, 77, follow_symlinks=False)
    os.setxattr(top / "small", "user.a", b"1")
    os.setxattr(top / "d", "user.b", b"\0\1")
    subprocess.run(["setfacl", "-m", "u:1234:r", str(top / "d" / "big")], check=False)
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(1, 1_111_111_111_123_456_789), follow_symlinks=False)
    return top


def adopt(daemon, *words, **options):
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "--socket", str(daemon.socket), "adopt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def facts(top):
    return {
        str(path.relative_to(top)): (os.lstat(path).st_ino, os.lstat(path).st_ctime_ns, os.lstat(path).st_mtime_ns)
        for path in [*top.rglob("*"), top]
    }


def test_all_that_belongs_to_a_tree_comes_along(daemon, source, make_mount, tmp_path):
    before = facts(source)
    done = adopt(daemon, source)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["problems"], report["directories"]) == ([], 4)
    assert facts(source) == before
    assert not list(Path(os.environ["XDG_STATE_HOME"]).glob("kmsfs/mount-*adopt*"))
    mount = make_mount(name="unused")
    mount.cipher = tmp_path / "Documents.encrypted"
    mount.start()
    found = subprocess.run(
        ["rsync", "-naHAXc", "--delete", "-i", f"{source}/", f"{mount.plain}/"], capture_output=True, text=True, check=True
    )
    assert found.stdout == ""
    for path in source.rglob("*"):
        other = mount.plain / path.relative_to(source)
        assert unlike(path, other) == "", path
    assert os.stat(mount.plain / "sparse").st_size == 30_000_000
    assert (mount.plain / "small").stat().st_ino == (mount.plain / "d" / "second").stat().st_ino
    mount.stop()
    stored = sum(os.lstat(p).st_blocks * 512 for p in mount.cipher.rglob("*"))
    assert stored < 8_000_000, "holes were written out"


def test_a_second_run_copies_what_changed_and_no_more(daemon, source, tmp_path):
    assert adopt(daemon, source).returncode == 0
    (source / "small").write_text("larger than before")
    (source / "new").write_text("new")
    # Same size and time, other bytes: only the comparison sees it.
    facts_before = os.stat(source / "d" / "big")
    with open(source / "d" / "big", "r+b") as stream:
        stream.seek(3_000_000)
        stream.write(b"changed")
    os.utime(source / "d" / "big", ns=(facts_before.st_atime_ns, facts_before.st_mtime_ns))
    done = adopt(daemon, source)
    assert done.returncode == ExitCode.DAMAGE_FOUND
    report = json.loads(done.stdout)
    assert report["copied"] == 3  # small, its other name, new
    assert [problem["path"] for problem in report["problems"]] == ["d/big"]
    os.utime(source / "d" / "big")
    assert adopt(daemon, source).returncode == 0
    (source / "new").unlink()
    report = json.loads(adopt(daemon, source).stdout)
    assert {(p["path"], p["problem"]) for p in report["problems"]} >= {("new", "is in the copy only")}


def test_a_run_that_was_killed_goes_on(daemon, source, tmp_path):
    for number in range(400):
        (source / "d" / f"f{number}").write_bytes(os.urandom(20_000))
    command = [sys.executable, "-m", "kmsfs.cli", "--socket", str(daemon.socket), "adopt", str(source)]
    for delay in (1.5, 2.0):
        running = subprocess.Popen(command, start_new_session=True)
        time.sleep(delay)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        # The mount lives in a session of its own and serves on; a restart of the machine would have ended it.
        for line in open("/proc/self/mountinfo"):
            if "kmsfs-adopt-" in line:
                subprocess.run(["umount", line.split()[4]], check=True)
        cipher = tmp_path / "Documents.encrypted"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            done = subprocess.run(
                [sys.executable, "-m", "kmsfs.cli", "--json", "--socket", str(daemon.socket), "check", str(cipher)],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode != ExitCode.CONFLICT:
                break
            time.sleep(0.2)
    done = adopt(daemon, source)
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_the_place_of_the_original(daemon, source, tmp_path):
    refused = adopt(daemon, "--replace", source)
    assert refused.returncode == ExitCode.USAGE and "--yes" in refused.stderr
    done = adopt(daemon, "--replace", "--yes", source)
    assert done.returncode == 0, done.stderr
    try:
        original = tmp_path / "Documents.original"
        assert os.path.ismount(source) and (source / "small").read_text() == "small"
        assert content_differs(original / "d" / "big", source / "d" / "big") is None
        assert stat.S_IMODE(os.stat(source / "d").st_mode) == 0o2770
        assert adopt(daemon, "--replace", "--yes", source).returncode != 0
    finally:
        subprocess.run([sys.executable, "-m", "kmsfs.cli", "umount", str(source)], check=True)


def test_places_that_would_surprise(daemon, source, tmp_path):
    for words in ((source, source / "inside"), (source, source), (tmp_path / "none",), (source / "small",)):
        assert adopt(daemon, *words).returncode == ExitCode.USAGE
    assert adopt(daemon, source, tmp_path / "c").returncode == 0
    assert adopt(daemon, tmp_path / "c").returncode == ExitCode.USAGE
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("x")
    # A volume with files of somebody else's: said, and nothing of it is touched.
    report = json.loads(adopt(daemon, other, tmp_path / "c").stdout)
    assert ("small", "is in the copy only") in {(p["path"], p["problem"]) for p in report["problems"]}
    assert adopt(daemon, "--replace", "--yes", other, tmp_path / "c").returncode == ExitCode.DAMAGE_FOUND
    assert not os.path.ismount(other) and (other / "x").exists()


def test_a_disk_that_is_too_small_is_said_before_and_on_the_way(daemon, source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=True)
    try:
        before = facts(source)
        done = adopt(daemon, source, disk / "c")
        assert done.returncode == ExitCode.STORAGE and "free" in done.stderr
        assert list(disk.iterdir()) == [] and facts(source) == before
        # A sparse file counts by its size above; without it the copy begins, and ends with an error.
        (source / "sparse").unlink()
        (source / "d" / "big").unlink()
        for number in range(20):
            (source / f"f{number}").write_bytes(os.urandom(120_000))
        done = adopt(daemon, source, disk / "c")
        assert done.returncode in (ExitCode.STORAGE, 0), done.stderr
    finally:
        for line in open("/proc/self/mountinfo"):
            if "kmsfs-adopt-" in line:
                subprocess.run(["umount", "-l", line.split()[4]], check=False)
        subprocess.run(["umount", "-l", str(disk)], check=False)
