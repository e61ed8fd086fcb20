"""Guardrails: what nobody may do, administrators and grantees included; and what cannot be one stops the daemon."""

import json
import os
import signal
import time

import pytest

from conftest import DaemonProcess
from kmsfs.errors import AccessDenied, ExitCode, MalformedPolicy, StorageError, UsageError

NO_DELETION = {
    "Statement": [
        {"Sid": "NoDeletion", "Effect": "Deny", "Principal": "*", "Action": ["kms:ScheduleKeyDeletion", "kms:CreateKey"], "Resource": "*"},
        {
            "Sid": "ProdOnly", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
            "Condition": {"StringEquals": {"kms:EncryptionContext:stage": "forbidden"}},
        },
    ]
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "guardrails.d"
    made.mkdir(mode=0o755)
    return made


def write(folder, name, document, mode=0o644):
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)


@pytest.fixture
def daemon(tmp_path, folder):
    made = DaemonProcess(tmp_path, "--guardrails", str(folder), "--administrator", str(os.getuid()))
    assert made.init().returncode == 0
    yield made
    made.stop(signal.SIGKILL)


def reloaded(daemon, wanted):
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(0.05)
    return False


def allowed(session, operation, **request):
    try:
        session.call(operation, request)
    except AccessDenied:
        return False
    return True


def test_not_even_administrators(daemon, folder):
    session = daemon.start().session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    me = session.call("GetStatus", {})["Principal"]
    session.call("CreateGrant", {"KeyId": key, "GranteePrincipal": me, "Operations": ["Decrypt"]})
    blob = session.call("Encrypt", {"KeyId": key, "Plaintext": b"x", "EncryptionContext": {"stage": "forbidden"}})["CiphertextBlob"]
    decrypt = {"CiphertextBlob": blob, "EncryptionContext": {"stage": "forbidden"}}
    assert allowed(session, "Decrypt", **decrypt)
    write(folder, "10-base.json", NO_DELETION)
    assert reloaded(daemon, lambda: not allowed(session, "Decrypt", **decrypt))
    # The key's policy allows it, a grant allows it, and the caller is the account's administrator.
    assert not allowed(session, "ScheduleKeyDeletion", KeyId=key) and not allowed(session, "CreateKey")
    assert allowed(session, "DescribeKey", KeyId=key)
    answer = session.call("SimulateKeyAccess", {"KeyId": key, "Principal": me, "Action": "kms:ScheduleKeyDeletion"})
    assert answer["DecidedBy"] == "guardrail:10-base:NoDeletion" and answer["Steps"][0]["Source"] == "guardrail"
    assert session.call("ListAuthorizedPrincipals", {"KeyId": key, "Action": "kms:ScheduleKeyDeletion"})["Principals"] == []
    # What is wrong is not taken, and what was good stays.
    write(folder, "20-wrong.json", {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}]})
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert not allowed(session, "ScheduleKeyDeletion", KeyId=key) and daemon.answers()
    for path in folder.iterdir():
        path.unlink()
    assert reloaded(daemon, lambda: allowed(session, "Decrypt", **decrypt))
    log = (daemon.state / "audit" / "audit.jsonl").read_text()
    assert log.count("GuardrailsLoaded") == 2 and "guardrail:10-base:NoDeletion" in log


@pytest.mark.fuse
@pytest.mark.root
def test_open_files_obey_at_once(daemon, folder, make_mount):
    daemon.start()
    mount = make_mount(on=daemon).start()
    (mount.plain / "f").write_text("x" * 10_000)
    os.sync()
    with open(mount.plain / "f") as stream:
        assert stream.read(10)
        deny = {"Sid": "Shut", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
        write(folder, "shut.json", {"Statement": [deny]})

        def refused():
            try:
                os.pread(stream.fileno(), 10, 0)
            except OSError:
                return True
            return False

        assert reloaded(daemon, refused)
    (folder / "shut.json").unlink()
    assert reloaded(daemon, lambda: os.path.exists(mount.plain / "f"))
    assert (mount.plain / "f").read_text() == "x" * 10_000


@pytest.mark.parametrize(
    ("document", "mode", "code"),
    [
        ("{", 0o644, MalformedPolicy.exit_code),
        ({"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}]}, 0o644, MalformedPolicy.exit_code),
        ({"Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*"}]}, 0o644, MalformedPolicy.exit_code),
        (NO_DELETION, 0o666, UsageError.exit_code),
        ("\udcff", 0o644, StorageError.exit_code),
    ],
)
def test_what_is_no_guardrail_stops_the_daemon(daemon, folder, document, mode, code):
    if document == "\udcff":
        (folder / "x.json").write_bytes(b"\xff\xfe")
    else:
        write(folder, "x.json", document, mode)
    daemon.start(wait=False)
    assert daemon.process.wait(20) == code
    assert "x.json" in daemon.process.stderr.read()


def test_a_folder_that_is_missing_stops_the_daemon_and_other_files_do_not(tmp_path, daemon, folder):
    write(folder, "notes.txt", "no policy")
    write(folder, ".hidden.json", "no policy")
    assert daemon.start().answers()
    daemon.stop()
    folder.rename(tmp_path / "gone")
    daemon.start(wait=False)
    assert daemon.process.wait(20) == ExitCode.STORAGE
