"""Snapshots of volumes: taken, shared with another account, received under its key; and what a hostile one comes to."""

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile

import pytest
from typer.testing import CliRunner

import kmsfs.cli.rewrapping  # noqa: F401  (what is imported later comes from where an ordinary user may not read)
import rich.progress  # noqa: F401
from conftest import DaemonProcess
from kmsfs import errors
from kmsfs.cli.checking import check_volume, rescue_volume
from kmsfs.cli.main import app
from kmsfs.cli.output import SETTINGS
from kmsfs.snapshot.archive import HEADER, read_head, unpack_snapshot, write_snapshot
from support.peers import let_others_in

HOME, OTHER, UID = "111122223333", "444455556666", 4321
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"))
    assert made.init("--account", HOME).returncode == 0
    made.start()
    call = made.session().call
    call("CreateAccount", {"AccountName": "other", "Email": "o@kmsfs.local", "AccountId": OTHER})
    call("AssignLocalUser", {"Uid": UID, "AccountId": OTHER})
    let_others_in(made.folder)
    os.chmod(made.socket, 0o666)
    yield made
    made.stop()


@pytest.fixture
def call(daemon):
    return lambda operation, **parameters: daemon.session().call(operation, parameters)


@pytest.fixture
def key(call):
    return call("CreateKey")["KeyMetadata"]["Arn"]


@pytest.fixture
def volume(make_mount, key):
    """A volume that was used and unmounted: files of all sizes, links, attributes, a directory; returns (cipher directory, what was in it)."""
    mount = make_mount("--key", key).start()
    (mount.plain / "d").mkdir()
    content = {"empty": b"", "small": b"s" * 100, "d/large": os.urandom(300_000), "d/two chunks": os.urandom(20_000)}
    for name, data in content.items():
        (mount.plain / name).write_bytes(data)
    os.link(mount.plain / "small", mount.plain / "d" / "linked")
    os.symlink("d/large", mount.plain / "symlink")
    os.setxattr(mount.plain / "small", "user.note", b"\0\xff binary")
    os.chmod(mount.plain / "small", 0o640)
    os.mkfifo(mount.plain / "fifo")
    mount.stop()
    return mount.cipher, content


def kmsfs(daemon, *words, code=0, stdin=""):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-m", "kmsfs.cli", *map(str, words)], env=environment, capture_output=True, text=True, timeout=120, input=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def as_receiver(daemon, *folders):
    """Be the user of the other account: SO_PEERCRED tells the effective uid."""
    for folder in folders:
        let_others_in(folder)
    SETTINGS.socket, SETTINGS.autostart = str(daemon.socket), False
    ours, os.environ["XDG_STATE_HOME"] = os.environ["XDG_STATE_HOME"], str(daemon.folder / "no-records-of-hers")
    os.setegid(UID)
    os.seteuid(UID)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        SETTINGS.socket, SETTINGS.autostart = None, True
        os.environ["XDG_STATE_HOME"] = ours


def received(daemon, *words, folders=()):
    with as_receiver(daemon, *folders):
        done = CliRunner().invoke(app, ["--socket", str(daemon.socket), "--json", "volume", "receive", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def handed_over(snapshot, folder):
    """A copy that is the receiver's."""
    folder.mkdir()
    os.chown(folder, UID, UID)
    copy = folder / snapshot.name
    copy.write_bytes(snapshot.read_bytes())
    os.chown(copy, UID, UID)
    return copy


def test_a_snapshot_goes_to_another_account(daemon, call, volume, key, tmp_path):
    cipher, content = volume
    snapshot = tmp_path / "team.snapshot"
    assert "stored files" in kmsfs(daemon, "volume", "snapshot", cipher, snapshot)
    assert snapshot.stat().st_mode & 0o777 == 0o600 and b"binary" not in snapshot.read_bytes()
    mine = handed_over(snapshot, tmp_path / "hers")
    with as_receiver(daemon, tmp_path):
        theirs = daemon.session().call("CreateKey", {})["KeyMetadata"]["Arn"]
    assert theirs.split(":")[4] == OTHER
    target = mine.parent / "cipher"
    with pytest.raises(errors.AccessDenied):  # not shared yet
        received(daemon, mine, target, "--key", theirs, folders=(tmp_path,))
    assert not target.exists()
    to = f"arn:kmsfs:iam::{OTHER}:uid/{UID}"
    assert "may decrypt everything" in kmsfs(daemon, "volume", "share", snapshot, "--to", to, code=2)
    told = kmsfs(daemon, "volume", "share", snapshot, "--to", to, "--for", "2h", "--yes")
    [grant] = call("ListGrants", KeyId=key)["Grants"]
    assert f"kmsfs grant revoke {key} {grant['GrantId']}" in told and grant["ExpirationDate"] > 0
    assert set(grant["Operations"]) == {"Decrypt", "ReEncryptFrom", "DescribeKey"} and list(grant["Constraints"]["EncryptionContextSubset"]) == ["kmsfs:volume"]
    found = json.loads(received(daemon, mine, target, "--key", theirs, folders=(tmp_path,)))
    assert found["key_arn"] == theirs
    # From now on the sender's key is not needed: all of it is under the receiver's.
    call("RevokeGrant", KeyId=key, GrantId=grant["GrantId"])
    call("DisableKey", KeyId=key)
    try:
        with as_receiver(daemon):
            talk = daemon.session()
            report = check_volume(target, talk)
            assert report.damaged is False and report.findings == [] and report.files == len(content) + 1  # one has two names
            out = target.parent / "out"
            rescue_volume(target, out, talk)
            assert {name: (out / name).read_bytes() for name in content} == content
            assert (out / "small").stat().st_mode & 0o777 == 0o640 and os.getxattr(out / "small", "user.note") == b"\0\xff binary"
            assert os.readlink(out / "symlink") == "d/large" and stat.S_ISFIFO((out / "fifo").stat().st_mode)
    finally:
        call("EnableKey", KeyId=key)
    # The sender's volume is as it was, and goes on by itself.
    assert "all as written" in kmsfs(daemon, "check", cipher)
    with pytest.raises(errors.AccessDenied):
        check_volume(target, daemon.session())


def test_a_mounted_volume_is_not_taken(daemon, make_mount, key, tmp_path):
    mount = make_mount("--key", key).start()
    (mount.plain / "f").write_bytes(b"x")
    assert "mounted already" in kmsfs(daemon, "volume", "snapshot", mount.cipher, tmp_path / "s", code=errors.VolumeBusy.exit_code)
    mount.kill()
    kmsfs(daemon, "volume", "snapshot", mount.cipher, tmp_path / "s", code=2)
    assert not (tmp_path / "s").exists()


def test_a_snapshot_of_ones_own_comes_back(daemon, volume, make_mount, tmp_path):
    cipher, content = volume
    snapshot = tmp_path / "s"
    kmsfs(daemon, "volume", "snapshot", cipher, snapshot)
    assert "is there already" in kmsfs(daemon, "volume", "snapshot", cipher, snapshot, code=2)
    assert "lies within" in kmsfs(daemon, "volume", "snapshot", cipher, cipher / "s", code=2)
    assert "of your own account" in kmsfs(daemon, "volume", "receive", snapshot, tmp_path / "w.cipher", "--key", "alias/x", code=2)
    assert not (tmp_path / "w.cipher").exists()
    kmsfs(daemon, "volume", "receive", snapshot, tmp_path / "w.cipher")
    again = make_mount(name="w").start()
    assert {name: (again.plain / name).read_bytes() for name in content} == content
    assert os.stat(again.plain / "small").st_nlink == 2 and os.getxattr(again.plain / "d" / "linked", "user.note") == b"\0\xff binary"
    again.stop()
    assert "is not empty" in kmsfs(daemon, "volume", "receive", snapshot, tmp_path / "w.cipher", code=2)


def test_what_is_under_a_default_key_is_not_shared(daemon, make_mount, tmp_path):
    mount = make_mount(name="plainly").start()
    mount.stop()
    kmsfs(daemon, "volume", "snapshot", mount.cipher, tmp_path / "s")
    assert "default key cannot be shared" in kmsfs(daemon, "volume", "share", tmp_path / "s", "--to", OTHER, "--yes", code=2)


def test_an_accounts_root_may_be_the_grantee_and_its_iam_decides(daemon, call, volume, key, tmp_path):
    kmsfs(daemon, "volume", "snapshot", volume[0], tmp_path / "s")
    kmsfs(daemon, "volume", "share", tmp_path / "s", "--to", OTHER, "--yes")
    [grant] = call("ListGrants", KeyId=key)["Grants"]
    assert grant["GranteePrincipal"] == f"arn:kmsfs:iam::{OTHER}:root"


def changed(snapshot, target, change):
    """Write a snapshot whose members `change` made other ones of: it gets (member, bytes) and yields what shall be there."""
    with tarfile.open(snapshot) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            data = old.extractfile(member).read() if member.isreg() else b""
            for made, content in change(member, data):
                made.size = len(content) if made.isreg() else 0
                new.addfile(made, io.BytesIO(content) if made.isreg() else None)
    return target


def member(name, kind=tarfile.REGTYPE, **more):
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in more.items():
        setattr(made, field, value)
    return made


@pytest.fixture
def snapshot(daemon, volume, tmp_path):
    kmsfs(daemon, "volume", "snapshot", volume[0], tmp_path / "good.snapshot")
    return tmp_path / "good.snapshot"


@pytest.mark.parametrize(
    "extra",
    [member("../outside"), member("/outside"), member("a/../../outside"), member("."), member("fine//outside"), member("x", tarfile.LNKTYPE, linkname="../../outside"),
     member("x", tarfile.LNKTYPE, linkname="/etc/passwd"), member("x", tarfile.CONTTYPE), member("more")],
    ids=lambda each: f"{each.name}-{each.linkname}-{each.type.decode()}",
)  # fmt: skip
def test_a_hostile_member_leads_nowhere(snapshot, tmp_path, extra):
    bad = changed(snapshot, tmp_path / "bad", lambda each, data: [(each, data)])
    with tarfile.open(bad, "a") as tar:
        tar.addfile(extra, io.BytesIO(b"") if extra.isreg() else None)
    before = set(tmp_path.rglob("*"))
    (tmp_path / "target" / "deeper").mkdir(parents=True)
    with pytest.raises((errors.CorruptVolume, errors.StorageError)):
        unpack_snapshot(bad, tmp_path / "target" / "deeper", lambda _done: None)
    assert {path for path in set(tmp_path.rglob("*")) - before if "deeper" not in str(path) and path != tmp_path / "target"} == set()


def test_a_link_in_the_archive_is_no_way_through(snapshot, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    bad = tmp_path / "bad"
    bad.write_bytes(snapshot.read_bytes())
    with tarfile.open(bad, "a") as tar:
        tar.addfile(member("door", tarfile.SYMTYPE, linkname=str(tmp_path / "outside")))
        tar.addfile(member("door/evil"), io.BytesIO(b""))
    with pytest.raises(errors.StorageError):
        unpack_snapshot(bad, tmp_path / "target", lambda _done: None)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_snapshot_that_was_changed_is_refused_and_leaves_nothing(daemon, snapshot, tmp_path):
    def refused(bad, code, says):
        assert says in kmsfs(daemon, "volume", "receive", bad, tmp_path / "target", code=int(code))
        assert not (tmp_path / "target").exists()

    whole = snapshot.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(cut, errors.CorruptVolume.exit_code, "damaged")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    kmsfs(daemon, "volume", "receive", empty, tmp_path / "target", code=int(errors.CorruptVolume.exit_code))
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.addfile(member("x"), io.BytesIO(b""))
    refused(other, 2, "no snapshot")
    newer = changed(snapshot, tmp_path / "newer", lambda each, data: [(each, data.replace(b'"format": 1', b'"format": 2') if each.name == HEADER else data)])
    refused(newer, errors.UnsupportedFormat.exit_code, "format 2")
    fewer = changed(snapshot, tmp_path / "fewer", lambda each, data: [] if each.isreg() and each.size > 200_000 else [(each, data)])
    refused(fewer, errors.CorruptVolume.exit_code, "instead of")
    forged = changed(
        snapshot, tmp_path / "forged", lambda each, data: [(each, data.replace(b'"bind": "enforce"', b'"bind": "off"') if each.name == "kmsfs.volume" else data)]
    )  # fmt: skip
    refused(forged, errors.CorruptVolume.exit_code, "edited or damaged")
    assert kmsfs(daemon, "volume", "share", forged, "--to", OTHER, "--yes", code=int(errors.CorruptVolume.exit_code))


def test_a_full_disk_leaves_no_half_snapshot(volume, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        write_snapshot(volume[0], tmp_path / "s", 0.0, lambda _done: None)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".new", "s"))]


def test_a_snapshot_says_what_it_is_before_any_key_is_needed(snapshot, volume):
    """One of the stored files is the record of an attribute."""
    header, config = read_head(snapshot)
    assert header.stored_files == len(volume[1]) + 1 and header.created > 1e9 and json.loads(config)["format"] == 1
