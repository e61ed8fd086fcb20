"""Backups: made while the daemon runs, verified to the last row, restored from the recovery code alone."""

import json
import os
import subprocess
import sys
import threading

import pytest

from kmsd.backup.archive import HEADER_BYTES, PIECE_BYTES, ArchiveReader, ArchiveWriter, Header
from kmsd.backup.service import make_backup, verify_backup
from kmsd.config import Config
from kmsd.realm import read_root
from kmsd.root.recovery import parse_recovery_code
from kmsfs.aead.gcm import PIN_BYTES
from kmsfs.errors import AuditChainBroken, Conflict, CorruptStore, ExitCode, KmsfsError, RootKeyMissing
from kmsfs.secret import KeyMaterial


def kmsd(*arguments, stdin=""):
    command = [sys.executable, "-m", "kmsd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin)


def code_of(daemon):
    return json.loads(daemon.init_output)["recovery_code"]


@pytest.fixture
def filled(fresh_daemon):
    session = fresh_daemon.start().session()
    made = session.call("CreateKey", {"Description": "kept"})["KeyMetadata"]["KeyId"]
    session.call("CreateAlias", {"AliasName": "alias/kept", "TargetKeyId": made})
    session.call("CreateKey", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
    session.call("PutParameter", {"Name": "/a/b", "Value": "secret", "Type": "SecureString"})
    fresh_daemon.blob = session.call("Encrypt", {"KeyId": made, "Plaintext": b"text"})["CiphertextBlob"]
    return fresh_daemon


def elsewhere(daemon, tmp_path, archive, code=None):
    """Lose the state, restore, and start again."""
    daemon.stop()
    os.rename(daemon.state, tmp_path / "lost")
    os.rename(tmp_path / "state-anchor", tmp_path / "lost-anchor")
    done = kmsd("restore", archive, "--state", daemon.state, "--code-file", "-", stdin=code or code_of(daemon))
    assert done.returncode == 0, done.stderr
    return daemon.start().session()


def test_lost_state_comes_back_from_archive_and_code(filled, tmp_path):
    archive = tmp_path / "b.kmsbackup"
    done = kmsd("backup", archive, "--state", filled.state, "--json")
    document = json.loads(done.stdout)
    assert (document["keys"], document["parameters"], document["aliases"]) == (3, 1, 2)
    assert os.stat(archive).st_mode & 0o777 == 0o600
    filled.session().call("CreateKey", {"Description": "after the backup"})
    session = elsewhere(filled, tmp_path, archive)
    assert session.call("Decrypt", {"CiphertextBlob": filled.blob})["Plaintext"] == b"text"
    assert session.call("GetParameter", {"Name": "/a/b", "WithDecryption": True})["Parameter"]["Value"] == "secret"
    assert len(session.call("ListKeys", {})["Keys"]) == 3
    filled.stop()
    # One chain from the first record on, over the restore.
    log = filled.state / "audit" / "audit.jsonl"
    key = json.loads(filled.init_output)["audit_verification_key"]
    assert kmsd("verify-audit", log, "--key-file", "-", stdin=key).returncode == 0
    [record] = [r for line in log.open() if (r := json.loads(line))["op"] == "StateRestored"]
    assert record["params"]["archive"] == archive.name


def test_made_under_load_it_holds_all_that_was_acknowledged(filled, tmp_path):
    acknowledged, stop = [], threading.Event()

    def put():
        session, number = filled.session(), 0
        while not stop.is_set():
            session.call("PutParameter", {"Name": f"/load/{number}", "Value": str(number), "Type": "String"})
            acknowledged.append(number)
            number += 1

    writers = [threading.Thread(target=put)]
    for writer in writers:
        writer.start()
    while len(acknowledged) < 50:
        pass
    for number in range(4):
        before = len(acknowledged)
        archive = tmp_path / f"{number}.kmsbackup"
        done = kmsd("backup", archive, "--state", filled.state, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["parameters"] >= before
    stop.set()
    writers[0].join()
    session = elsewhere(filled, tmp_path, archive)
    for number in range(0, before, 17):
        assert session.call("GetParameter", {"Name": f"/load/{number}"})["Parameter"]["Value"] == str(number)


def test_places_that_are_taken(filled, tmp_path):
    archive = tmp_path / "b.kmsbackup"
    assert kmsd("backup", archive, "--state", filled.state).returncode == 0
    whole = archive.read_bytes()
    assert kmsd("backup", archive, "--state", filled.state).returncode == ExitCode.CONFLICT
    assert archive.read_bytes() == whole
    refused = kmsd("restore", archive, "--state", filled.state)
    assert refused.returncode == ExitCode.CONFLICT and "holds a realm" in refused.stderr
    assert filled.answers()
    assert kmsd("backup", tmp_path / "none" / "b", "--state", filled.state).returncode == ExitCode.STORAGE
    assert kmsd("backup", archive, "--state", tmp_path / "no-realm").returncode == ExitCode.USAGE
    assert kmsd("verify-backup", filled.state / "keyring.kms", "--state", filled.state).returncode == ExitCode.INTEGRITY
    assert kmsd("backup", tmp_path / "b2", "--keep", "2", "--state", filled.state).returncode == ExitCode.USAGE


def test_a_folder_keeps_the_newest(filled, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    for year in (2001, 2002, 2003):
        (folder / f"kmsd-{year}0101T000000Z.kmsbackup").write_text("old")
    done = kmsd("backup", folder, "--keep", "2", "--state", filled.state, "--json")
    assert len(json.loads(done.stdout)["removed"]) == 2
    left = sorted(path.name for path in folder.iterdir())
    assert left[0] == "kmsd-20030101T000000Z.kmsbackup" and left[2] == "notes" and len(left) == 3


@pytest.mark.root
def test_a_backup_by_root_leaves_the_state_to_its_owner(fresh_daemon, tmp_path):
    for path in [fresh_daemon.state, *fresh_daemon.state.rglob("*")]:
        os.chown(path, 65534, 65534)
    assert kmsd("backup", tmp_path / "b", "--state", fresh_daemon.state).returncode == 0
    assert {path.stat().st_uid for path in fresh_daemon.state.rglob("*")} == {65534}


def test_the_drill(filled):
    done = kmsd("recovery-drill", "--state", filled.state, stdin=code_of(filled))
    assert done.returncode == 0 and "opens all of it" in done.stdout
    from kmsd.root.recovery import recovery_code

    other = recovery_code(KeyMaterial(os.urandom(32)))
    assert kmsd("recovery-drill", "--state", filled.state, stdin=other).returncode == RootKeyMissing.exit_code
    assert kmsd("recovery-drill", "--state", filled.state, stdin="ABC").returncode == RootKeyMissing.exit_code
    assert sorted(path.name for path in filled.state.iterdir() if path.name[0] == ".") == []


def test_a_realm_under_a_passphrase(make_daemon, tmp_path):
    from tests.conftest import DaemonProcess

    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery")
    secret.chmod(0o600)
    daemon = DaemonProcess(tmp_path / "p", source=("--source", "passphrase", "--passphrase-file", str(secret)))
    (tmp_path / "p").mkdir()
    daemon.init_output = daemon.init().stdout
    daemon.start("--passphrase-file", str(secret))
    blob = daemon.session().call("Encrypt", {"KeyId": daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"], "Plaintext": b"x"})
    archive = tmp_path / "b.kmsbackup"
    options = ("--state", daemon.state, "--passphrase-file", secret)
    assert kmsd("backup", archive, *options).returncode == 0
    daemon.stop()
    os.rename(daemon.state, tmp_path / "lost")
    # The passphrase alone, on a machine that has nothing of the realm.
    assert kmsd("restore", archive, "--state", daemon.state, "--passphrase-file", secret, "--dry-run").returncode == 0
    assert not daemon.state.exists()
    assert kmsd("restore", archive, *options).returncode == 0
    assert not (daemon.state / "root.key").exists()
    daemon.start("--passphrase-file", str(secret))
    assert daemon.session().call("Decrypt", {"CiphertextBlob": blob["CiphertextBlob"]})["Plaintext"] == b"x"
    daemon.stop()


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(filled, tmp_path):
    config = Config(filled.state, filled.socket)
    key = read_root(config, None)
    path = make_backup(config, key, tmp_path / "b.kmsbackup")
    verify_backup(path, key)
    return path, key


def test_every_flipped_bit_is_noticed(made):
    path, key = made
    whole = path.read_bytes()
    places = [*range(0, HEADER_BYTES, 5), *range(HEADER_BYTES, len(whole), 1997), len(whole) - 1]
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises((CorruptStore, RootKeyMissing)):
            verify_backup(path, key)


def test_other_realms_and_no_archives(made, tmp_path):
    path, _ = made
    with pytest.raises(RootKeyMissing):
        verify_backup(path, KeyMaterial(os.urandom(32)))
    for content in (b"", b"KMSBKUP1", os.urandom(500)):
        (tmp_path / "rubbish").write_bytes(content)
        with pytest.raises(CorruptStore):
            verify_backup(tmp_path / "rubbish", KeyMaterial(bytes(32)))


def pieces(data, size=PIECE_BYTES + PIN_BYTES):
    return [data[at : at + size] for at in range(HEADER_BYTES, len(data), size)]


def sealed(plain, key, monkeypatch=None):
    import io

    target = io.BytesIO()
    writer = ArchiveWriter(target, Header(1, bytes(64)), key, os.urandom)
    for at in range(0, len(plain), 70_001):
        writer.write(plain[at : at + 70_001])
    writer.finish()
    return target.getvalue()


def opened(data, key):
    import io

    reader = ArchiveReader(io.BytesIO(data), key)
    return io.BufferedReader(reader).read()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5])
def test_pieces_cannot_be_left_out_moved_or_cut_off(size):
    key = KeyMaterial(os.urandom(32))
    plain = os.urandom(size)
    whole = sealed(plain, key)
    assert opened(whole, key) == plain
    head, parts = whole[:HEADER_BYTES], pieces(whole)
    wrong = [[], parts[:-1], [*parts, parts[-1]], [parts[0][:-1], *parts[1:]]]
    if len(parts) > 2:
        wrong += [[parts[1], parts[0], *parts[2:]], [parts[0], *parts[2:]], [parts[0], parts[0], *parts[2:]]]
    for parts in wrong:
        with pytest.raises(CorruptStore):
            opened(head + b"".join(parts), key)


def test_a_full_disk_leaves_nothing_behind(filled, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        done = kmsd("backup", disk / "b", "--state", filled.state)
        assert done.returncode == ExitCode.STORAGE, done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_restore_that_fails_leaves_nothing_behind(made, tmp_path):
    path, key = made
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    from kmsd.backup.service import restore_backup
    from kmsd.root.recovery import recovery_code

    place = tmp_path / "new" / "state"
    with pytest.raises(CorruptStore):
        restore_backup(path, parse_recovery_code(recovery_code(key)), Config(place, place))
    assert not place.exists() and not list((tmp_path / "new").glob("*")) and not list((tmp_path / "new").glob(".*"))


def test_what_does_not_belong_into_an_archive_is_refused(made, monkeypatch, tmp_path):
    """Somebody with the root key writes archives too: no path of theirs leads out."""
    import io
    import tarfile

    _, key = made
    for name in ("../evil", "/etc/evil", "audit/../evil", "root.key", "audit/x/y", "audit/..", "other/x"):
        target = io.BytesIO()
        writer = ArchiveWriter(target, Header(1, bytes(64)), key, os.urandom)
        with tarfile.open(fileobj=writer, mode="w|") as tar:
            facts = tarfile.TarInfo(name)
            facts.size = 4
            tar.addfile(facts, io.BytesIO(b"evil"))
        writer.finish()
        (tmp_path / "evil").write_bytes(target.getvalue())
        with pytest.raises(KmsfsError) as caught:
            verify_backup(tmp_path / "evil", key)
        assert "does not belong" in caught.value.detail


def test_a_backup_whose_audit_log_was_cut_is_no_backup(filled, tmp_path):
    config = Config(filled.state, filled.socket)
    filled.stop()
    log = filled.state / "audit" / "audit.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
    key = read_root(config, None)
    path = make_backup(config, key, tmp_path / "b")
    with pytest.raises(AuditChainBroken):
        verify_backup(path, key)
    with pytest.raises(Conflict):
        make_backup(config, key, path)
