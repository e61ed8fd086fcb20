"""kmsfs import: out of another encrypted file system, by its own program, and without touching it."""

import os
import shutil
import subprocess
import sys

import pytest

from kmsfs.cli import bringing
from kmsfs.errors import StorageError

pytestmark = [pytest.mark.fuse, pytest.mark.root]
PASSPHRASE = "old passphrase"


def peer(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here: .ci/run installs it")


def make_old(kind, folder):
    """An old cipher directory with some files; returns (it, the passphrase's file)."""
    cipher, plain, secret = folder / "old.cipher", folder / "old.plain", folder / "passphrase"
    cipher.mkdir()
    plain.mkdir()
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    if kind == "gocryptfs":
        subprocess.run(["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", secret, cipher], check=True, capture_output=True)
        subprocess.run(["gocryptfs", "-q", "-passfile", secret, cipher, plain], check=True, capture_output=True)
    else:
        subprocess.run(["encfs", "--standard", "--stdinpass", cipher, plain], input=PASSPHRASE, text=True, check=True, capture_output=True)
    try:
        (plain / "d").mkdir()
        (plain / "d" / "large").write_bytes(bytes(range(256)) * 2000)
        (plain / "small").write_text("small")
        os.chmod(plain / "small", 0o640)
        os.symlink("small", plain / "link")
    finally:
        subprocess.run(["umount", plain], check=True)
    return cipher, secret


def run(daemon, *words):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    return subprocess.run([sys.executable, "-m", "kmsfs.cli", "import", *map(str, words)], env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


def stored(folder):
    return {str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", [pytest.param("gocryptfs", marks=peer("gocryptfs")), pytest.param("encfs", marks=peer("encfs"))])
def test_everything_comes_over_and_the_old_one_stays(kind, daemon, make_mount, tmp_path):
    old, secret = make_old(kind, tmp_path)
    before = stored(old)
    done = run(daemon, kind, old, tmp_path / "v.cipher", "--passphrase-file", secret)
    assert done.returncode == 0 and "no differences" in done.stderr, done.stdout + done.stderr
    assert stored(old) == before
    mount = make_mount().start()
    assert (mount.plain / "d" / "large").read_bytes() == bytes(range(256)) * 2000 and (mount.plain / "small").read_text() == "small"
    assert (mount.plain / "small").stat().st_mode & 0o777 == 0o640 and os.readlink(mount.plain / "link") == "small"
    mount.stop()
    with open("/proc/self/mountinfo") as table:
        assert "kmsfs-import-" not in table.read()


@peer("gocryptfs")
def test_a_wrong_passphrase_makes_nothing(daemon, tmp_path):
    old, _ = make_old("gocryptfs", tmp_path)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    done = run(daemon, "gocryptfs", old, tmp_path / "v.cipher", "--passphrase-file", wrong)
    assert done.returncode == StorageError.exit_code and "could not mount" in done.stderr and not (tmp_path / "v.cipher").exists()


def test_what_cannot_be_is_said(daemon, tmp_path):
    (tmp_path / "old").mkdir()
    done = run(daemon, "cryfs9", tmp_path / "old", tmp_path / "new")
    assert done.returncode == 2 and "kmsfs adopt MOUNTPOINT" in done.stderr
    if shutil.which("gocryptfs"):
        assert "is no directory" in run(daemon, "gocryptfs", tmp_path / "gone", tmp_path / "new").stderr
        assert "are the same" in run(daemon, "gocryptfs", tmp_path / "old", tmp_path / "old").stderr


def test_a_program_that_waits_for_ever_is_given_up(tmp_path, monkeypatch):
    program = tmp_path / "gocryptfs"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(bringing, "_SECONDS", 0.2)
    with pytest.raises(StorageError, match="did not mount"), bringing._mounted("gocryptfs", tmp_path, None):
        pass
