"""Extended attributes, ACLs, many links and nameless files on the live mount, and what an attacker may do to records."""

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys

import pytest

from kmsfs.envelope.extras import EXTRAS_DIR, RECORD_MAX_BYTES

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(params=["kernel", "fusepy"])
def mounted(request, make_mount):
    return make_mount("--transport", request.param).start()


@pytest.fixture
def kernel(make_mount):
    return make_mount().start()


def records(process):
    folder = process.cipher / EXTRAS_DIR
    return sorted(folder.iterdir()) if folder.exists() else []


def refused(act, number):
    with pytest.raises(OSError) as caught:
        act()
    assert caught.value.errno == number


def test_attributes_of_files_and_directories_come_back(mounted):
    root = mounted.plain
    (root / "f").write_bytes(b"content")
    (root / "d").mkdir()
    long = {f"user.long{number}": os.urandom(3000) for number in range(100)}
    for path in (root / "f", root / "d", root):
        os.setxattr(path, "user.a", b"secret value of a")
        os.setxattr(path, "user.empty", b"")
    for name, value in long.items():
        os.setxattr(root / "f", name, value)
    refused(lambda: os.setxattr(root / "f", "user.a", b"x", os.XATTR_CREATE), errno.EEXIST)
    refused(lambda: os.setxattr(root / "f", "user.no", b"x", os.XATTR_REPLACE), errno.ENODATA)
    refused(lambda: os.getxattr(root / "f", "user.no"), errno.ENODATA)
    refused(lambda: os.removexattr(root / "f", "user.no"), errno.ENODATA)
    os.rename(root / "f", root / "d" / "g")
    mounted.again()
    assert os.getxattr(root / "d" / "g", "user.a") == b"secret value of a"
    assert {name: os.getxattr(root / "d" / "g", name) for name in long} == long
    assert set(os.listxattr(root / "d" / "g")) == {"user.a", "user.empty", *long}
    assert os.getxattr(root / "d", "user.empty") == b"" and os.listxattr(root) == ["user.a", "user.empty"]
    assert (root / "d" / "g").read_bytes() == b"content"
    stored = b"".join(record.read_bytes() for record in records(mounted))
    assert b"secret" not in stored and b"user." not in stored
    for name in os.listxattr(root / "d" / "g"):
        os.removexattr(root / "d" / "g", name)
    assert os.listxattr(root / "d" / "g") == []
    assert len(records(mounted)) == 2


def test_records_go_with_the_last_name(kernel):
    root = kernel.plain
    (root / "f").write_text("x")
    (root / "d").mkdir()
    os.setxattr(root / "f", "user.a", b"1")
    os.setxattr(root / "d", "user.a", b"1")
    os.link(root / "f", root / "g")
    kernel.again()
    os.unlink(root / "f")
    assert os.getxattr(root / "g", "user.a") == b"1" and len(records(kernel)) == 2
    with open(root / "g") as held:
        os.unlink(root / "g")
        assert os.getxattr(held.fileno(), "user.a") == b"1"
    os.rmdir(root / "d")
    (root / "h").write_text("y")
    os.setxattr(root / "h", "user.a", b"2")
    (root / "i").write_text("z")
    os.rename(root / "i", root / "h")
    os.stat(root / "h")
    kernel.stop()
    assert records(kernel) == []


def test_too_long_together_is_no_space_and_keeps_the_rest(kernel):
    (kernel.plain / "f").write_text("x")
    with pytest.raises(OSError) as caught:
        for number in range(RECORD_MAX_BYTES // 65_000 + 2):
            os.setxattr(kernel.plain / "f", f"user.n{number}", bytes(65_000))
    assert caught.value.errno == errno.ENOSPC
    assert os.getxattr(kernel.plain / "f", "user.n3") == bytes(65_000)


def test_flipped_missing_older_and_swapped_records_are_errors(kernel):
    root = kernel.plain
    for name in ("a", "b"):
        (root / name).write_text("x")
        os.setxattr(root / name, "user.v", b"old")
    kernel.stop()
    older = {record: record.read_bytes() for record in records(kernel)}
    kernel.start()
    for name in ("a", "b"):
        os.setxattr(root / name, "user.v", b"new")
    kernel.stop()
    newer = {record: record.read_bytes() for record in records(kernel)}
    first, second = older

    def broken_by(change):
        change()
        kernel.start()
        bad = 0
        for name in ("a", "b"):
            try:
                assert os.getxattr(root / name, "user.v") == b"new"
            except OSError as error:
                assert error.errno == errno.EIO
                bad += 1
            assert (root / name).read_text() == "x"
        kernel.stop()
        checked = subprocess.run(
            [sys.executable, "-m", "kmsfs.cli", "check", str(kernel.cipher)],
            env={**os.environ, "KMSFS_SOCKET": kernel.socket}, capture_output=True, check=False,
        )  # fmt: skip
        assert checked.returncode == (21 if bad else 0), checked.stderr
        for record, data in newer.items():
            record.write_bytes(data)
        return bad

    assert broken_by(lambda: None) == 0
    assert broken_by(lambda: first.write_bytes(older[first])) == 1
    assert broken_by(first.unlink) == 1
    assert broken_by(lambda: first.write_bytes(b"")) == 1
    assert broken_by(lambda: (first.write_bytes(newer[second]), second.write_bytes(newer[first]))) == 2
    for at in range(0, len(newer[first]), 7):
        data = bytearray(newer[first])
        data[at] ^= 1 << at % 8
        first.write_bytes(data)
    assert broken_by(lambda: None) == 1


def test_removing_a_damaged_file_works(kernel):
    (kernel.plain / "f").write_text("x")
    os.setxattr(kernel.plain / "f", "user.a", b"1")
    kernel.stop()
    records(kernel)[0].write_bytes(b"rubbish")
    kernel.start()
    os.unlink(kernel.plain / "f")
    assert not (kernel.plain / "f").exists()


def test_attributes_synced_before_a_kill_are_there(kernel):
    root = kernel.plain
    for number in range(20):
        (root / f"f{number}").write_text("x")
        for value in (b"1", b"2", b"3"):
            os.setxattr(root / f"f{number}", "user.v", value)
    os.setxattr(root, "user.root", b"r")
    kernel.kill()
    kernel.start()
    assert [os.getxattr(root / f"f{number}", "user.v") for number in range(20)] == [b"3"] * 20
    assert os.getxattr(root, "user.root") == b"r"


def test_many_links(kernel):
    root = kernel.plain
    (root / "f").write_text("one")
    os.setxattr(root / "f", "user.a", b"1")
    (root / "d").mkdir()
    for number in range(50):
        os.link(root / "f", root / "d" / f"l{number}")
    os.rename(root / "d" / "l40", root / "moved")
    os.unlink(root / "d" / "l41")
    os.unlink(root / "f")
    kernel.again()
    assert {(root / "d" / f"l{number}").read_text() for number in range(50) if number not in (40, 41)} == {"one"}
    assert (root / "moved").stat().st_nlink == 49
    kernel.stop()
    # The backing store's own link to a removed name: the file says that it does not live there.
    command = [sys.executable, "-m", "kmsfs.cli", "check", str(kernel.cipher)]
    environment = {**os.environ, "KMSFS_SOCKET": kernel.socket}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    kernel.start()
    for number in range(50):
        if number not in (40, 41):
            os.unlink(root / "d" / f"l{number}")
    assert os.getxattr(root / "moved", "user.a") == b"1"


def test_a_file_without_a_name_gets_one(kernel):
    root = kernel.plain
    folder = os.open(root, os.O_RDONLY)
    descriptor = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"data" * 5000)
    assert os.listdir(root) == []
    os.link(f"/proc/self/fd/{descriptor}", "made", dst_dir_fd=folder, follow_symlinks=True)
    os.fsync(descriptor)
    os.close(descriptor)
    lost = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(lost, b"x" * 100_000)
    os.close(lost)
    os.close(folder)
    kernel.kill()
    kernel.start()
    assert (root / "made").read_bytes() == b"data" * 5000
    assert stat.S_IMODE((root / "made").stat().st_mode) == 0o640
    assert os.listdir(root) == ["made"]


def test_birth_times(kernel):
    (kernel.plain / "f").write_text("x")
    os.utime(kernel.plain / "f", ns=(5, 5))
    born = subprocess.run(["stat", "-c", "%W", str(kernel.plain / "f")], capture_output=True, text=True, check=True)
    assert abs(int(born.stdout) - (kernel.cipher / "kmsfs.volume").stat().st_mtime) < 60


def acl(user, bits, mask=7):
    entries = [(1, 6, -1), (2, bits, user), (4, 4, -1), (0x10, mask, -1), (0x20, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", t, p, i & 0xFFFFFFFF) for t, p, i in entries)


def as_user(uid, *command):
    return subprocess.run(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command], capture_output=True, check=False
    ).returncode


def test_access_control_lists_are_enforced_and_inherited(shared):
    root = shared.plain
    (root / "f").write_text("x")
    (root / "f").chmod(0o640)
    assert as_user(1001, "cat", str(root / "f"))
    os.setxattr(root / "f", "system.posix_acl_access", acl(1001, 4))
    assert not as_user(1001, "cat", str(root / "f"))
    assert as_user(1002, "cat", str(root / "f"))
    (root / "f").chmod(0o600)
    assert as_user(1001, "cat", str(root / "f"))
    (root / "d").mkdir()
    (root / "d").chmod(0o755)
    os.setxattr(root / "d", "system.posix_acl_default", acl(1001, 4))
    (root / "d" / "g").write_text("y")
    assert not as_user(1001, "cat", str(root / "d" / "g"))
    shared.again()
    assert not as_user(1001, "cat", str(root / "d" / "g"))
    assert "system.posix_acl_access" in os.listxattr(root / "d" / "g")


def test_set_user_id_falls_on_a_write_by_others(shared):
    path = shared.plain / "f"
    shared.plain.chmod(0o777)
    path.write_text("x")
    for mode in (0o6777, 0o2666):
        path.chmod(mode)
        pid = os.fork()
        if not pid:
            os.setgroups([])
            os.setresgid(1002, 1002, 1002)
            os.setresuid(1001, 1001, 1001)
            try:
                descriptor = os.open(path, os.O_WRONLY)
                os.write(descriptor, b"y")
                os._exit(0)
            except OSError:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if mode == 0o6777 else 0o2666)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_carries_attributes_acls_and_links(kernel, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("x")
    os.setxattr(source / "f", "user.a", b"1")
    os.setxattr(source / "f", "system.posix_acl_access", acl(1001, 4))
    os.link(source / "f", source / "g")
    subprocess.run(["rsync", "-aHAX", f"{source}/", f"{kernel.plain}/"], check=True)
    kernel.again()
    assert os.getxattr(kernel.plain / "g", "user.a") == b"1"
    assert os.getxattr(kernel.plain / "g", "system.posix_acl_access") == acl(1001, 4)
    assert (kernel.plain / "f").stat().st_ino == (kernel.plain / "g").stat().st_ino
