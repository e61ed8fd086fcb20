"""A daemon without its root key: sealed at start or by hand, opened by shares, a passphrase or its own source."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from conftest import DaemonProcess
from kmsd import realm
from kmsd.__main__ import app
from kmsd.config import Config
from kmsd.root.keyring import Argon2Parameters, SealType
from kmsd.root.recovery import parse_recovery_code, recovery_code
from kmsd.root.shares import make_shares
from kmsd.root.sources import new_argon2
from kmsd.sealing.unsealing import Unsealing
from kmsfs.errors import DaemonSealed, ExitCode, KmsfsError, RootKeyMissing, StorageError, UsageError
from kmsfs.formats.frame import encode_request
from kmsfs.secret import KeyMaterial
from support.peers import as_user
from support.waiting import soon

PASSPHRASE = "correct horse battery"


def kmsd(*arguments, stdin=""):
    command = [sys.executable, "-m", "kmsd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin)


def unseal(daemon, *options, stdin=""):
    return kmsd("unseal", "--socket", daemon.socket, *options, stdin=stdin)


def give(daemon, share):
    return daemon.session().call("Unseal", {"Share": share})


def status(daemon):
    return daemon.session().call("GetSealStatus", {})


def sealed(daemon):
    try:
        return status(daemon)["Sealed"]
    except KmsfsError:
        return None


@pytest.fixture
def make(tmp_path):
    made = []

    def of(source, passphrase_file=None, shares=(0, 0)):
        daemon = DaemonProcess(tmp_path / "kmsd")
        daemon.folder.mkdir()
        config = Config(daemon.state, daemon.socket)
        daemon.told = realm.initialise(config, SealType[source.upper()], passphrase_file, shares=shares)
        made.append(daemon)
        return daemon

    yield of
    for daemon in made:
        daemon.stop()


@pytest.fixture
def shared(make):
    daemon = make("shares", shares=(2, 3))
    daemon.start(wait=False)
    soon(True, lambda: sealed(daemon))
    return daemon


def test_two_of_three_people_open_it(shared):
    daemon, shares = shared, shared.told.shares
    assert not daemon.told.recovery_code
    assert not any(path.name.startswith("root.key") for path in daemon.state.iterdir())
    for operation in ("GetStatus", "CreateKey", "Seal", "ListKeys"):
        with pytest.raises(DaemonSealed, match="sealed"):
            daemon.session().call(operation, {})
    for _ in range(2):
        assert "1 of 2" in unseal(daemon, "--share-file", "-", stdin=shares[0] + "\n").stdout
    assert status(daemon)["Sealed"]
    assert unseal(daemon, stdin=shares[2] + "\n").stdout == "Unsealed.\n"
    soon(False, lambda: sealed(daemon))
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    assert "not sealed" in unseal(daemon).stdout
    daemon.stop()
    daemon.start(wait=False)
    soon(True, lambda: sealed(daemon))
    for share in shares[1:]:
        give(daemon, share.upper())
    soon(False, lambda: sealed(daemon))
    assert daemon.session().call("DescribeKey", {"KeyId": key})


def test_the_audit_log_says_who_unsealed_it(shared):
    for share in shared.told.shares[:2]:
        give(shared, share)
    soon(False, lambda: sealed(shared))
    shared.session().call("GetStatus", {})
    records = [json.loads(line) for line in (shared.state / "audit" / "audit.jsonl").read_text().splitlines()]
    started = [record for record in records if record["op"] == "DaemonStarted"]
    assert [record["params"]["unsealed_by"] for record in started] == [[os.getuid(), os.getuid()]]
    assert not any(word in json.dumps(records) for word in shared.told.shares[0].split()[3:8])


def test_wrong_shares_are_said_and_do_not_spoil_right_ones(shared):
    shares = shared.told.shares
    words = shares[0].split()
    words[7] = "academic" if words[7] != "academic" else "acid"
    for wrong in (" ".join(words), "no share at all", ""):
        with pytest.raises(RootKeyMissing, match="no share"):
            give(shared, wrong)
    refused = unseal(shared, "--share-file", "-", stdin="rubbish\n")
    assert refused.returncode == ExitCode.SEALED and "no share" in refused.stderr
    give(shared, shares[1])
    others = make_shares(KeyMaterial(os.urandom(32)), 2, 2)
    give(shared, others[0])
    with pytest.raises(RootKeyMissing, match="does not open"):
        give(shared, others[1])
    assert status(shared)["SharesGiven"] == 1
    assert not give(shared, shares[0])["Sealed"]


def test_without_a_share_nothing_helps(shared):
    with pytest.raises(RootKeyMissing, match="shares"):
        shared.session().call("Unseal", {})
    with pytest.raises(RootKeyMissing, match="no passphrase"):
        shared.session().call("Unseal", {"Passphrase": b"something long"})


def test_rubbish_on_the_socket_of_a_sealed_daemon(shared):
    for data in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x05hello", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(shared.socket))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(shared.socket))
        connection.settimeout(10)
        connection.sendall(encode_request(1, "GetSealStatus", {})[:-3])
        assert connection.recv(1) == b""
    assert status(shared)["Sealed"]
    with pytest.raises(KmsfsError):
        shared.session().call("Unseal", {"Share": "x" * 513})
    with pytest.raises(KmsfsError, match="Unknown parameter"):
        shared.session().call("Unseal", {"Shares": "x"})


@pytest.mark.root
def test_only_keepers_seal_and_unseal_without_a_share(fresh_daemon):
    daemon = fresh_daemon
    daemon.options = ["--socket-mode", "0666"]
    daemon.start()
    with as_user(daemon, 4321) as other, pytest.raises(KmsfsError, match="administrators may seal"):
        other("Seal")
    daemon.session().call("Seal", {})
    soon(True, lambda: sealed(daemon))
    with as_user(daemon, 4321) as other, pytest.raises(KmsfsError, match="without a share"):
        other("Unseal")
    assert not daemon.session().call("Unseal", {})["Sealed"]
    soon(False, lambda: sealed(daemon))


def test_sealing_by_hand_keeps_pid_and_socket_and_forgets_the_memory(make):
    daemon = make("keyfile").start()
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    before = os.stat(daemon.socket).st_ino
    asked = kmsd("seal", "--socket", daemon.socket, stdin="n\n")
    assert asked.returncode == ExitCode.USAGE and not sealed(daemon)
    assert kmsd("seal", "--socket", daemon.socket, "--yes").returncode == 0
    soon(True, lambda: sealed(daemon))
    assert status(daemon)["Pid"] == daemon.process.pid and os.stat(daemon.socket).st_ino == before
    assert b"--sealed" in (open(f"/proc/{daemon.process.pid}/cmdline", "rb").read())
    assert unseal(daemon).stdout == "Unsealed.\n"
    soon(False, lambda: sealed(daemon))
    assert daemon.session().call("DescribeKey", {"KeyId": key})
    daemon.stop()
    assert not daemon.socket.exists()


def test_a_passphrase_opens_it(make, tmp_path):
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    daemon = make("passphrase", secret)
    daemon.start("--sealed", wait=False)
    soon(True, lambda: sealed(daemon))
    for wrong, why in ((b"another one altogether", "does not open"), (b"short", "less than 8 bytes")):
        with pytest.raises(RootKeyMissing, match=why):
            daemon.session().call("Unseal", {"Passphrase": wrong})
    assert unseal(daemon, "--passphrase-file", "-", stdin=PASSPHRASE + "\n").stdout == "Unsealed.\n"
    soon(False, lambda: sealed(daemon))


def test_an_ephemeral_realm_is_not_sealed(tmp_path):
    daemon = DaemonProcess(tmp_path, "--ephemeral")
    daemon.start()
    try:
        with pytest.raises(KmsfsError, match="ephemeral"):
            daemon.session().call("Seal", {})
        assert daemon.answers()
    finally:
        daemon.stop()


def test_init_prints_the_shares_and_no_code(tmp_path):
    done = kmsd("init", "--state", tmp_path / "state", "--source", "shares", "--threshold", 2, "--of", 3, "--json")
    told = json.loads(done.stdout)
    assert len(told["shares"]) == 3 and "recovery_code" not in told
    refused = kmsd("init", "--state", tmp_path / "other", "--source", "shares")
    assert refused.returncode == ExitCode.USAGE and not (tmp_path / "other" / "keyring.kms").exists()


def test_two_daemons_do_not_wait_for_the_same_realm(shared):
    second = kmsd("serve", "--state", shared.state, "--socket", shared.folder / "other.sock")
    assert second.returncode == ExitCode.CONFLICT


@pytest.mark.fuse
def test_a_mount_stops_and_goes_on(make, make_mount):
    daemon = make("keyfile").start()
    mounted = make_mount(on=daemon).start()
    (mounted.plain / "file").write_text("kept")
    daemon.session().call("Seal", {})
    soon(True, lambda: sealed(daemon))

    def reads():
        try:
            return (mounted.plain / "file").read_text() == "kept"
        except OSError:
            return False

    soon(False, reads, seconds=15)
    unseal(daemon)
    soon(True, reads, seconds=20)
    (mounted.plain / "file").write_text("changed")
    mounted.again()
    assert (mounted.plain / "file").read_text() == "changed"


def test_shares_that_are_made_to_be_slow_are_refused():
    from shamir_mnemonic import generate_mnemonics

    slow = generate_mnemonics(1, [(2, 2)], os.urandom(32), iteration_exponent=4)[0]
    unsealing = Unsealing(SealType.SHARES, lambda _: KeyMaterial(bytes(32)), lambda _: None)
    for share in slow:
        with pytest.raises(RootKeyMissing, match="something else"):
            unsealing.take_share(share)


def test_the_shares_of_many_sets_are_not_held_for_ever():
    taken = []
    unsealing = Unsealing(SealType.SHARES, lambda _: KeyMaterial(bytes(32)), taken.append)
    sets = [make_shares(KeyMaterial(os.urandom(32)), 3, 3) for _ in range(10)]
    for shares in sets:
        unsealing.take_share(shares[0])
    unsealing.take_share(sets[-1][1])
    assert (unsealing.given, unsealing.needed) == (2, 3)
    unsealing.take_share(sets[0][1])
    unsealing.take_share(sets[0][2])
    assert not taken and unsealing.root_key is None
    unsealing.take_share(sets[-1][2])
    assert len(taken) == 1 and unsealing.root_key is taken[0] and unsealing.given == 0


# --- another root key -----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    config = Config(tmp_path / "state", tmp_path / "sock")
    made = realm.initialise(config, SealType.KEYFILE, None)
    return config, parse_recovery_code(made.recovery_code)


def test_the_root_key_moves_from_source_to_source(make, tmp_path):
    daemon = make("keyfile").start()
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    sealed_text = daemon.session().call("Encrypt", {"KeyId": key, "Plaintext": b"kept"})["CiphertextBlob"]
    refused = kmsd("change-root", "--state", daemon.state, "--to", "keyfile")
    assert refused.returncode == ExitCode.CONFLICT
    daemon.stop()
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)

    def opens(*options):
        daemon.start(*options)
        assert daemon.session().call("Decrypt", {"CiphertextBlob": sealed_text})["Plaintext"] == b"kept"
        daemon.stop()

    def change(*options, stdin=""):
        done = kmsd("change-root", "--state", daemon.state, *options, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    change("--to", "keyfile")
    opens()
    change("--to", "passphrase", "--new-passphrase-file", str(secret))
    assert not (daemon.state / "root.key").exists()
    opens("--passphrase-file", str(secret))
    told = change("--to", "shares", "--threshold", 2, "--of", 3, "--passphrase-file", str(secret))
    shares = [line.partition(": ")[2] for line in told.splitlines() if line[:2] in ("1:", "2:", "3:")]
    credential = tmp_path / "credentials" / "kmsfs-root"
    credential.parent.mkdir()
    credential.write_bytes(os.urandom(32))
    credential.chmod(0o400)
    told = change("--to", "credential", "--credential-file", credential, "--code-file", "-", stdin="\n".join(shares[1:]) + "\n\n")
    os.environ["CREDENTIALS_DIRECTORY"] = str(credential.parent)
    try:
        opens()
        change("--to", "keyfile", "--code-file", "-", stdin=told.split("recovery code")[1].split()[0] + "\n")
    finally:
        del os.environ["CREDENTIALS_DIRECTORY"]
    opens()
    key = daemon.told.audit_verification_key
    log = daemon.state / "audit" / "audit.jsonl"
    assert kmsd("verify-audit", log, "--key-file", "-", stdin=key + "\n").returncode == 0
    changed = [record["params"] for line in log.read_text().splitlines() if (record := json.loads(line))["op"] == "RootKeyChanged"]
    assert [(found["from"], found["to"]) for found in changed] == [
        ("keyfile", "keyfile"), ("keyfile", "passphrase"), ("passphrase", "shares"), ("shares", "credential"), ("credential", "keyfile"),
    ]  # fmt: skip
    old = kmsd("recover", "--state", daemon.state, stdin=daemon.told.recovery_code + "\n")
    assert old.returncode == ExitCode.SEALED


@pytest.mark.parametrize(
    "options",
    [("--to", "nowhere"), ("--to", "passphrase"), ("--to", "credential"), ("--to", "shares"), ("--to", "shares", "--threshold", "1", "--of", "3")],
)
def test_what_is_missing_is_said_before_anything_is_changed(place, options):
    config, _ = place
    before = config.keyring.read_bytes()
    done = CliRunner().invoke(app, ["change-root", "--state", str(config.state), *options])
    assert isinstance(done.exception, UsageError)
    assert config.keyring.read_bytes() == before
    realm.open_realm(config, None)


@pytest.mark.parametrize("to", [SealType.KEYFILE, SealType.PASSPHRASE])
@pytest.mark.parametrize("lasts", range(6))
def test_a_crash_at_any_step_leaves_a_realm_that_opens(place, tmp_path, monkeypatch, lasts, to):
    config, old = place
    left = [lasts]
    new, argon2 = KeyMaterial(os.urandom(32)), new_argon2(os.urandom) if to is SealType.PASSPHRASE else Argon2Parameters()

    def dying(act):
        def step(*arguments, **options):
            if not left[0]:
                raise StorageError("the power is gone")
            left[0] -= 1
            return act(*arguments, **options)

        return step

    from kmsd.store import anchor

    with monkeypatch.context() as patch:
        patch.setattr(realm, "write_atomically", dying(realm.write_atomically))
        patch.setattr(anchor, "write_atomically", dying(anchor.write_atomically))
        patch.setattr(realm, "_finish_change", dying(realm._finish_change))
        patch.setattr(realm, "Journal", dying(realm.Journal))
        try:
            realm.change_root(config, KeyMaterial(old.reveal()), KeyMaterial(new.reveal()), to, argon2)
        except StorageError:
            pass
    changed = realm.read_header(config).seal_type is to and (to is not SealType.KEYFILE or lasts >= 3)
    key = realm.read_root(config, None) if realm.read_header(config).seal_type is SealType.KEYFILE else new
    assert key.reveal() == (new if changed else old).reveal()
    opened = realm.open_with(config, KeyMaterial(key.reveal()))
    store = realm.SqliteStore(config.database, realm.RowSealer(opened.keyring.domain_keys, os.urandom))
    realm.Anchor(config.anchor, opened.anchor_key).check(store)
    realm.Anchor(config.anchor, opened.anchor_key).write(store)
    store.close()
    again = realm.Anchor(config.anchor, opened.anchor_key)
    again.check(realm.SqliteStore(config.database, realm.RowSealer(opened.keyring.domain_keys, os.urandom)))
    assert recovery_code(key)


def test_a_wrong_old_key_changes_nothing(place):
    config, _ = place
    before = {path.name: path.read_bytes() for path in config.state.iterdir() if path.is_file()}
    with pytest.raises(RootKeyMissing):
        realm.change_root(config, KeyMaterial(bytes(32)), KeyMaterial(os.urandom(32)), SealType.KEYFILE, Argon2Parameters())
    assert {path.name: path.read_bytes() for path in config.state.iterdir() if path.is_file()} == before
    shutil.rmtree(config.state)
