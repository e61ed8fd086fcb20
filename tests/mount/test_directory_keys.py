"""Directories with a KMS key of their own: whose policy decides, what moves and what does not, and what is remembered."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmsfs.backing.posix import rename_with_flags
from kmsfs.formats.fileheader import SLOT_BYTES
from kmsfs.mount.attributes import EFFECTIVE_KEY_ATTRIBUTE, KEY_ATTRIBUTE

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def talk(daemon):
    session = daemon.session()
    yield session
    session.close()


@pytest.fixture
def key(talk):
    return talk.call("CreateKey", {"Description": "of a directory"})["KeyMetadata"]["KeyId"]


def key_of(path):
    return os.getxattr(path, EFFECTIVE_KEY_ATTRIBUTE).decode()


def kmsfs(mount, *arguments):
    environment = {**os.environ, "KMSFS_SOCKET": mount.socket}
    command = [sys.executable, "-m", "kmsfs.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def refused(number, act):
    with pytest.raises(OSError) as caught:
        act()
    assert caught.value.errno == number, caught.value


def soon_refused(number, act):
    """A change of a key reaches the mount within milliseconds, and pages a moment after keys; ten seconds at the worst."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            act()
        except OSError as error:
            assert error.errno == number
            return
        time.sleep(0.01)
    pytest.fail("it is not refused")


@pytest.fixture(params=["kernel", "fusepy"])
def mount(request, make_mount):
    return make_mount("--transport", request.param).start()


def test_new_files_below_are_under_it_and_stay_so(mount, key):
    folder = mount.plain / "secret"
    folder.mkdir()
    done = kmsfs(mount, "--json", "volume", "key", "set", str(folder), key)
    assert done.returncode == 0 and json.loads(done.stdout)["KeyId"] == key, done.stderr
    (folder / "deep" / "er").mkdir(parents=True)
    for place in (folder / "a", folder / "deep" / "b", folder / "deep" / "er" / "c"):
        place.write_bytes(b"x" * 5000)
        assert key_of(place) == key
    (mount.plain / "outside").write_bytes(b"y")
    own = key_of(mount.plain)
    assert key_of(mount.plain / "outside") == own != key
    assert "user.kmsfs.key" not in os.listxattr(folder)
    mount.again()
    assert key_of(folder) == key_of(folder / "deep" / "er") == key and os.getxattr(folder, KEY_ATTRIBUTE).decode() == key
    (folder / "deep" / "later").write_bytes(b"z")
    assert key_of(folder / "deep" / "later") == key
    assert (folder / "deep" / "er" / "c").read_bytes() == b"x" * 5000
    shown = json.loads(kmsfs(mount, "--json", "volume", "key", "show", str(folder / "deep")).stdout)
    assert shown["KeyId"] == key and not shown["Own"]
    assert kmsfs(mount, "volume", "key", "unset", str(folder)).returncode == 0
    (folder / "last").write_bytes(b"")
    assert key_of(folder / "last") == own and key_of(folder / "a") == key
    refused(errno.ENODATA, lambda: os.removexattr(folder, KEY_ATTRIBUTE))


def test_its_policy_decides_who_reads(make_mount, talk, key):
    mount = make_mount().start()
    folder = mount.plain / "secret"
    folder.mkdir()
    (mount.plain / "outside").write_bytes(b"outside")
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
    (folder / "a").write_bytes(b"inside" * 2000)
    # A mount that only reads hears of the key's changes too.
    mount.again()
    with (folder / "a").open("rb") as held:
        assert held.read(6) == b"inside"
        talk.call("DisableKey", {"KeyId": key})
        soon_refused(errno.EKEYREVOKED, lambda: (folder / "a").read_bytes())
        # What was open, and what was in the kernel's cache, is out of reach too, some moments later.
        soon_refused(errno.EKEYREVOKED, lambda: os.pread(held.fileno(), 6, 0))
    refused(errno.EKEYREVOKED, lambda: (folder / "new").write_bytes(b"x"))
    assert (mount.plain / "outside").read_bytes() == b"outside"
    (mount.plain / "more").write_bytes(b"x")
    assert (folder / "a").stat().st_size == 12_000
    talk.call("EnableKey", {"KeyId": key})
    assert (folder / "a").read_bytes() == b"inside" * 2000


def test_entries_move_only_where_files_have_their_key(mount, key):
    folder, other = mount.plain / "secret", mount.plain / "other"
    folder.mkdir()
    (other / "sub").mkdir(parents=True)
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
    (folder / "in").mkdir()
    (folder / "a").write_bytes(b"a")
    (other / "b").write_bytes(b"b")
    for old, new in ((folder / "a", other / "a"), (other / "b", folder / "b"), (folder / "in", other / "in"), (other / "sub", folder / "sub")):
        refused(errno.EXDEV, lambda old=old, new=new: old.rename(new))
    refused(errno.EXDEV, lambda: os.link(folder / "a", other / "a"))
    (folder / "a").rename(folder / "in" / "a")
    os.link(folder / "in" / "a", folder / "link")
    subprocess.run(["mv", folder / "in", other / "b", mount.plain / "other" / "sub"], check=True)
    own = key_of(mount.plain)
    assert (other / "sub" / "in" / "a").read_bytes() == b"a" and key_of(other / "sub" / "in" / "a") == own
    subprocess.run(["mv", other / "sub", folder], check=True)
    assert key_of(folder / "sub" / "in" / "a") == key == key_of(folder / "sub" / "b")
    # A symlink has no key, and a directory with its own takes it along.
    (folder / "s").symlink_to("x")
    (folder / "s").rename(other / "s")
    folder.rename(other / "moved")
    assert key_of(other / "moved" / "link") == key == key_of(other / "moved" / "sub")
    mount.again()
    assert (other / "moved" / "link").read_bytes() == b"a" and key_of(other / "moved") == key


def test_exchanges_and_nameless_files(make_mount, key):
    mount = make_mount().start()
    folder, other = mount.plain / "secret", mount.plain / "other"
    folder.mkdir()
    other.mkdir()
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
    (folder / "a").write_bytes(b"a")
    (other / "b").write_bytes(b"b")
    refused(errno.EXDEV, lambda: rename_with_flags(-100, str(folder / "a"), -100, str(other / "b"), 2))
    (folder / "s").symlink_to("x")
    refused(errno.EXDEV, lambda: rename_with_flags(-100, str(folder / "s"), -100, str(other / "b"), 2))
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    os.write(descriptor, b"t")

    def name_it(directory):
        # With a directory descriptor, because only then os.link follows the symlink in /proc.
        place = os.open(directory, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{descriptor}", "t", dst_dir_fd=place, follow_symlinks=True)
        finally:
            os.close(place)

    refused(errno.EXDEV, lambda: name_it(other))
    name_it(folder)
    os.close(descriptor)
    assert key_of(folder / "t") == key and (folder / "t").read_bytes() == b"t"


def test_only_who_mounted_and_root_set_it(shared, talk, key):
    folder = shared.plain / "theirs"
    folder.mkdir()
    os.chown(folder, 1001, 1001)
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(1001)
        os.setuid(1001)
        try:
            os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EPERM
    (folder / "file").touch()
    refused(errno.ENOTDIR, lambda: os.setxattr(folder / "file", KEY_ATTRIBUTE, key.encode()))
    refused(errno.EOPNOTSUPP, lambda: os.setxattr(folder, EFFECTIVE_KEY_ATTRIBUTE, key.encode()))
    for bad in (b"", b"alias/x", b"\xff\xfe", b"x" * 36):
        refused(errno.EINVAL, lambda bad=bad: os.setxattr(folder, KEY_ATTRIBUTE, bad))
    refused(errno.ENOENT, lambda: os.setxattr(folder, KEY_ATTRIBUTE, b"e0c3c3a0-0000-4000-8000-000000000000"))
    done = kmsfs(shared, "volume", "key", "set", str(folder), key)
    assert done.returncode and "not empty" in done.stderr and "--existing" in done.stderr
    assert kmsfs(shared, "volume", "key", "show", "/tmp").returncode


@pytest.mark.parametrize("action", ["kms:GenerateDataKey", ["kms:DescribeKey", "kms:Decrypt"]])
def test_a_key_that_the_mount_may_not_use_is_refused_and_not_kept(make_mount, talk, key, action):
    mount = make_mount().start()
    folder = mount.plain / "secret"
    folder.mkdir()
    policy = json.loads(talk.call("GetKeyPolicy", {"KeyId": key, "PolicyName": "default"})["Policy"])
    policy["Statement"].append(
        {"Sid": "No", "Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"}
    )
    talk.call("PutKeyPolicy", {"KeyId": key, "PolicyName": "default", "Policy": json.dumps(policy)})
    refused(errno.EACCES, lambda: os.setxattr(folder, KEY_ATTRIBUTE, key.encode()))
    done = kmsfs(mount, "volume", "key", "set", str(folder), key)
    assert done.returncode and ("may not use" in done.stderr or "not authorized" in done.stderr)
    refused(errno.ENODATA, lambda: os.getxattr(folder, KEY_ATTRIBUTE))
    (folder / "a").write_bytes(b"a")
    assert key_of(folder / "a") == key_of(mount.plain)


def test_it_is_remembered_by_kmsd_and_forgotten_with_its_directory(make_mount, talk, key):
    mount = make_mount().start()
    folder = mount.plain / "secret"
    folder.mkdir()
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
    assert len(talk.call("ListKeyDependents", {"KeyId": key})["Volumes"]) == 1
    for number in range(20):
        os.close(os.open(folder / f"cut{number}", os.O_CREAT | os.O_WRONLY))
    mount.kill()
    mount.start()
    # Some of them have no header yet, and get their data key now.
    assert {key_of(path) for path in folder.iterdir()} == {key}
    for path in folder.iterdir():
        path.unlink()
    # Not even the directory's id was lost, which nobody had synced.
    (folder / "a").write_bytes(b"a")
    assert key_of(folder / "a") == key
    (folder / "a").unlink()
    folder.rmdir()
    mount.again()
    assert not talk.call("ListKeyDependents", {"KeyId": key})["Volumes"]


def test_rewrap_takes_each_file_to_its_directory(make_mount, talk, key):
    mount = make_mount().start()
    folder = mount.plain / "secret"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old").write_bytes(b"old" * 3000)
    (mount.plain / "outside").write_bytes(b"outside")
    assert kmsfs(mount, "volume", "key", "set", "--existing", str(folder), key).returncode == 0
    own = key_of(mount.plain)
    assert key_of(folder / "sub" / "old") == own
    mount.stop()
    done = kmsfs(mount, "--json", "rewrap", str(mount.cipher))
    assert done.returncode == 0, done.stderr
    assert {(entry["key_id"], entry["headers"]) for entry in json.loads(done.stdout)["headers"]} == {(own, 1), (key, 2)}
    mount.start()
    assert key_of(folder / "sub" / "old") == key and key_of(mount.plain / "outside") == own
    assert (folder / "sub" / "old").read_bytes() == b"old" * 3000
    mount.stop()
    other = talk.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    talk.call("RotateKeyOnDemand", {"KeyId": key})
    done = kmsfs(mount, "--json", "rewrap", "--to", other, str(mount.cipher))
    found = {(entry["key_id"], entry["material_version"]) for entry in json.loads(done.stdout)["headers"]}
    assert found == {(other, 1), (key, 2)}, done.stderr
    mount.start()
    assert key_of(mount.plain) == other == key_of(mount.plain / "outside") and key_of(folder / "sub" / "old") == key
    assert (folder / "sub" / "old").read_bytes() == b"old" * 3000
    mount.stop()
    # Where it is not known which key belongs below, nothing is wrapped anew.
    inner = next(Path(path, ".kd") for path, _, _ in os.walk(mount.cipher) if Path(path).parent.parent == mount.cipher)
    target = os.readlink(inner)
    inner.unlink()
    inner.symlink_to(target[:-3] + ("AAA" if not target.endswith("AAA") else "BBB"))
    talk.call("RotateKeyOnDemand", {"KeyId": key})
    report = json.loads(kmsfs(mount, "--json", "rewrap", str(mount.cipher)).stdout)
    assert len(report["failed"]) == 1 and report["files"] == 1


def test_who_may_not_use_a_key_calls_nothing_damaged(make_mount, talk, key):
    """A check with repair, while a key is disabled, must not take its files for damaged ones and move them away."""
    mount = make_mount().start()
    folder = mount.plain / "secret"
    folder.mkdir()
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())
    (folder / "a").write_bytes(b"a" * 30_000)
    (mount.plain / "outside").write_bytes(b"outside")
    mount.stop()
    before = sorted(os.walk(mount.cipher))
    talk.call("DisableKey", {"KeyId": key})
    done = kmsfs(mount, "--json", "check", "--repair", "--quarantine", str(mount.cipher))
    report = json.loads(done.stdout)
    [finding] = report["findings"]
    assert done.returncode == 21 and (finding["path"], finding["kind"], finding["remedy"]) == ("/secret/a", "unread", "")
    assert sorted(os.walk(mount.cipher)) == before
    assert "1 could not be looked into" in kmsfs(mount, "check", str(mount.cipher)).stderr
    target = mount.cipher.with_name("rescued")
    rescued = json.loads(kmsfs(mount, "--json", "rescue", str(mount.cipher), str(target)).stdout)
    assert (rescued["files"], rescued["lost_files"], rescued["refused_files"]) == (1, 0, 1)
    talk.call("EnableKey", {"KeyId": key})
    assert kmsfs(mount, "check", str(mount.cipher)).returncode == 0


def test_a_key_from_elsewhere_does_not_open_a_file(make_mount, talk, key):
    """Whoever can write the cipher directory may put another wrapped key into a header: it is not what belongs there."""
    mount = make_mount().start()
    (mount.plain / "a").write_bytes(b"a" * 5000)
    context = {"kmsfs:volume": "0" * 32, "kmsfs:file": "0" * 32}
    blob = talk.call("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context})["CiphertextBlob"]
    mount.stop()
    stored = next(path for path in mount.cipher.iterdir() if path.name[0] == "n")
    data = bytearray(stored.read_bytes())
    own = talk.call("Encrypt", {"KeyId": "alias/kmsfs/default", "Plaintext": b"x" * 32})["CiphertextBlob"]
    for slot in range(2):
        at = data.find(own[:4], slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES)
        if at >= 0:
            data[at : at + len(blob)] = blob
    stored.write_bytes(data)
    mount.start()
    refused(errno.EIO, lambda: (mount.plain / "a").read_bytes())


def test_many_threads_make_files_under_two_keys(make_mount, key):
    import threading

    mount = make_mount().start()
    folder = mount.plain / "secret"
    folder.mkdir()
    os.setxattr(folder, KEY_ATTRIBUTE, key.encode())

    def work(place):
        for number in range(150):
            (place / f"{threading.get_ident()}.{number}").write_bytes(b"x" * 100)

    threads = [threading.Thread(target=work, args=(place,)) for place in (folder, mount.plain, folder, mount.plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = key_of(mount.plain)
    assert {key_of(path) for path in folder.iterdir()} == {key} and len(list(folder.iterdir())) == 300
    assert {key_of(path) for path in mount.plain.iterdir() if path.is_file()} == {own}
