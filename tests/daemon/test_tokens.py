"""Keys that a PKCS #11 token keeps: the realm's root key, in SoftHSM and in a TPM."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import DaemonProcess
from kmsd.tokens.token import Token, TokenPlace, parse_place
from kmsfs.errors import ExitCode, TokenUnavailable, UsageError
from support.tokens import PIN, SOFTHSM, make_softhsm, software_tpm


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    return make_softhsm(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def pin(tmp_path):
    return private(tmp_path / "pin", PIN)


def private(path, text):
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def kmsd(*arguments, stdin="", **more):
    command = [sys.executable, "-m", "kmsd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin, **more)


def realm_in(token, pin, folder):
    made = DaemonProcess(folder, source=("--source", "pkcs11", "--token", token, "--passphrase-file", str(pin)))
    made.made = made.init()
    assert made.made.returncode == 0, made.made.stderr
    return made


def use(daemon):
    call = daemon.session().call
    key = call("CreateKey", {})["KeyMetadata"]["KeyId"]
    return call("Encrypt", {"KeyId": key, "Plaintext": b"x"})["CiphertextBlob"]


def opens(daemon, blob):
    return daemon.session().call("Decrypt", {"CiphertextBlob": blob})["Plaintext"] == b"x"


def test_a_realm_whose_root_key_is_in_a_token(token, pin, tmp_path):
    daemon = realm_in(token, pin, tmp_path / "kmsd")
    assert not (daemon.state / "root.key").exists()
    named = json.loads((daemon.state / "root.token").read_text())
    assert (daemon.state / "root.token").stat().st_mode & 0o777 == 0o600 and named["token"] == "kmsfs" and named["module"] == str(SOFTHSM)
    daemon.start("--passphrase-file", str(pin))
    try:
        assert daemon.session().call("GetStatus", {})["RootKeySource"] == "pkcs11"
        blob = use(daemon)
        daemon.stop()
        daemon.start("--passphrase-file", str(pin))
        assert opens(daemon, blob)
    finally:
        daemon.stop()
    # The PIN as systemd gives it.
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    private(credentials / "kmsfs-pin", PIN)
    os.environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    try:
        daemon.start()
        assert opens(daemon, blob)
    finally:
        del os.environ["CREDENTIALS_DIRECTORY"]
        daemon.stop()


def test_without_token_or_pin_nothing_opens(token, pin, tmp_path, monkeypatch):
    daemon = realm_in(token, pin, tmp_path / "kmsd")
    serve = ("serve", "--state", daemon.state, "--socket", daemon.socket, "--private")
    for options, says in (
        ((), "wants its PIN"), (("--passphrase-file", private(tmp_path / "wrong", "wrong-pin")), "PinIncorrect"),
        (("--passphrase-file", private(tmp_path / "long", "x" * 300)), "Pin"),
    ):  # fmt: skip
        done = kmsd(*serve, *options)
        assert done.returncode == ExitCode.SEALED and says in done.stderr and PIN not in done.stderr, done.stderr
    named = daemon.state / "root.token"
    whole = named.read_text()
    for broken, says in (
        (whole.replace('"token": "kmsfs"', '"token": "gone"'), "NoSuchToken"), (whole.replace('"version": 1', '"version": 2'), "version 2"),
        (whole[:-30], "missing or damaged"), (whole.replace(str(SOFTHSM), "/nowhere.so"), "cannot read the PKCS #11 module"),
        (whole.replace('"key": "kmsfs-root', '"key": "kmsfs-toor'), "NoSuchKey"),
    ):  # fmt: skip
        named.write_text(broken)
        done = kmsd(*serve, "--passphrase-file", pin)
        assert done.returncode == ExitCode.SEALED and says in done.stderr, done.stderr
    named.write_text(whole)
    # The token's own files from another day do not hold this key.
    monkeypatch.setenv("SOFTHSM2_CONF", "/nonexistent")
    assert kmsd(*serve, "--passphrase-file", pin).returncode == ExitCode.SEALED


def test_a_sealed_daemon_takes_the_pin(token, pin, tmp_path):
    daemon = realm_in(token, pin, tmp_path / "kmsd")
    daemon.start("--sealed", wait=False)
    try:
        while kmsd("unseal", "--socket", daemon.socket, stdin="wrong-pin\n").returncode == ExitCode.UNAVAILABLE:
            assert daemon.process.poll() is None
        refused = kmsd("unseal", "--socket", daemon.socket, stdin="wrong-pin\n")
        assert refused.returncode == ExitCode.SEALED and "PinIncorrect" in refused.stderr
        done = kmsd("unseal", "--socket", daemon.socket, stdin=f"{PIN}\n")
        assert done.returncode == 0 and "Unsealed" in done.stdout, done.stderr
        assert use(daemon)
    finally:
        daemon.stop()


def test_the_root_key_moves_into_a_token_and_out(token, pin, tmp_path):
    daemon = DaemonProcess(tmp_path / "kmsd")
    assert daemon.init().returncode == 0
    daemon.start()
    blob = use(daemon)
    daemon.stop()

    def moved(*options):
        done = kmsd("change-root", "--state", daemon.state, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("recovery code")[1].split()[0]

    moved("--to", "pkcs11", "--token", token, "--new-passphrase-file", pin)
    first = json.loads((daemon.state / "root.token").read_text())["key"]
    assert not (daemon.state / "root.key").exists()
    code = moved("--to", "pkcs11", "--token", token, "--passphrase-file", pin, "--new-passphrase-file", pin)
    assert json.loads((daemon.state / "root.token").read_text())["key"] != first and not (daemon.state / "root.token.next").exists()
    daemon.start("--passphrase-file", str(pin))
    assert opens(daemon, blob)
    archive = tmp_path / "backup"
    done = kmsd("backup", archive, "--state", daemon.state, "--passphrase-file", pin)
    assert done.returncode == 0, done.stderr
    daemon.stop()
    # A backup comes back with the token that its realm had, and without it by the code.
    other = DaemonProcess(tmp_path / "restored")
    assert kmsd("restore", archive, "--state", other.state, "--code-file", "-", stdin=code + "\n").returncode == 0
    other.start("--passphrase-file", str(pin))
    assert opens(other, blob)
    other.stop()
    moved("--to", "keyfile", "--passphrase-file", pin)
    assert not (daemon.state / "root.token").exists()
    daemon.start()
    assert opens(daemon, blob)
    daemon.stop()


@pytest.mark.parametrize("lasts", range(1, 7))
def test_a_crash_while_it_moves_from_token_to_token_leaves_a_realm_that_opens(token, pin, tmp_path, lasts):
    """Killed at the k-th write of the move."""
    daemon = realm_in(token, pin, tmp_path / "kmsd")
    script = (
        "import os, sys, kmsd.store.files as files\n"
        "left = [int(sys.argv.pop(1))]\n"
        "real = os.replace\n"
        "def dying(*a, **k):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0: os._exit(99)\n"
        "    return real(*a, **k)\n"
        "os.replace = dying\n"
        "import kmsd.__main__ as m\n"
        "m.main()\n"
    )
    command = ["change-root", "--to", "pkcs11", "--token", token, "--passphrase-file", str(pin), "--new-passphrase-file", str(pin)]
    done = subprocess.run([sys.executable, "-c", script, str(lasts), *command, "--state", str(daemon.state)], capture_output=True, text=True)
    assert done.returncode in (0, 99), done.stderr
    daemon.start("--passphrase-file", str(pin))
    use(daemon)
    daemon.stop()


def test_a_module_that_others_can_replace_is_refused(tmp_path):
    copy = tmp_path / "module.so"
    shutil.copy(SOFTHSM, copy)
    copy.chmod(0o666)
    with pytest.raises(TokenUnavailable, match="only root"):
        Token(TokenPlace(copy, "kmsfs"), PIN)
    for bad in ("relative.so:kmsfs", "/lib/x.so", "/lib/x.so:", ""):
        with pytest.raises(UsageError):
            parse_place(bad)


def test_the_private_key_does_not_come_out(token):
    held = Token(parse_place(token), PIN)
    held.make_pair("looked-at")
    from pkcs11 import Attribute, ObjectClass

    private_key = held._session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="looked-at")
    assert private_key[Attribute.EXTRACTABLE] is False and private_key[Attribute.SENSITIVE] is True
    held.make_mac_key("looked-at-too")
    secret = held._session.get_key(object_class=ObjectClass.SECRET_KEY, label="looked-at-too")
    assert secret[Attribute.EXTRACTABLE] is False and secret[Attribute.SENSITIVE] is True
    held.destroy_mac_key("looked-at-too")
    held.destroy_mac_key("looked-at-too")
    assert not held.has_mac_key("looked-at-too")
    held.close()


def test_a_tpm_keeps_the_root_key(pin, tmp_path):
    with software_tpm(tmp_path / "tpm") as token:
        daemon = realm_in(token, pin, tmp_path / "kmsd")
        daemon.start("--passphrase-file", str(pin))
        blob = use(daemon)
        daemon.stop()
        daemon.start("--passphrase-file", str(pin))
        assert opens(daemon, blob)
        daemon.stop()
    # Another TPM, or none, opens nothing.
    done = kmsd("serve", "--state", daemon.state, "--socket", daemon.socket, "--private", "--passphrase-file", pin)
    assert done.returncode == ExitCode.SEALED
