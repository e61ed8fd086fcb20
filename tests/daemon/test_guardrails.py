"""Guardrails: what nobody may do, administrators and grantees included; and what cannot be one stops the daemon."""

import json
import os
import signal
import time

import pytest

from conftest import DaemonProcess
from kmsfs.client.cache import ParameterCache
from support.waiting import soon
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


def deny(action, resource="*", **more):
    return {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource, **more}


def test_they_bar_parameters_secrets_identities_and_accounts_too(daemon, folder):
    """Of every service, by resource and tag, and for administrators: the daemon's uid is one here."""
    session = daemon.start("--aws-endpoint", "127.0.0.1:0").session()
    account = session.call("GetStatus", {})["Account"]
    for name, team in (("/prod/a", "red"), ("/prod/b", "blue"), ("/dev/a", "red")):
        session.call("PutParameter", {"Name": name, "Value": "v", "Type": "String", "Tags": [{"Key": "team", "Value": team}]})
    secrets = {name: session.call("CreateSecret", {"Name": name, "SecretString": "s", "Tags": [{"Key": "team", "Value": team}]})["ARN"]
               for name, team in (("one", "red"), ("two", "blue"))}  # fmt: skip
    session.call("CreateUser", {"UserName": "present"})
    trust = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": f"arn:kmsfs:iam::{account}:root"}, "Action": "sts:AssumeRole"}]}
    roles = [session.call("CreateRole", {"RoleName": name, "AssumeRolePolicyDocument": json.dumps(trust)})["Role"]["Arn"] for name in ("shut", "open")]
    red = {"Condition": {"StringEquals": {"aws:ResourceTag/team": "red"}}}
    write(folder, "10.json", {"Statement": [
        deny("ssm:DeleteParameter*", f"arn:kmsfs:ssm:local:{account}:parameter/prod/*"), deny("ssm:GetParameter", **red),
        deny("ssm:PutParameter", f"arn:kmsfs:ssm:local:{account}:parameter/prod/*"),
        deny("secretsmanager:GetSecretValue", **red), deny("secretsmanager:DeleteSecret", secrets["two"]), deny("secretsmanager:CreateSecret", "*forbidden*"),
        deny("secretsmanager:GetRandomPassword"), deny(["iam:CreateUser", "iam:PutUserPolicy"]), deny("sts:AssumeRole", roles[0]), deny("organizations:CreateAccount"),
    ]})  # fmt: skip
    assert reloaded(daemon, lambda: not allowed(session, "GetRandomPassword"))
    ask = lambda operation, **request: allowed(session, operation, **request)  # noqa: E731
    assert not ask("DeleteParameter", Name="/prod/a") and ask("DeleteParameter", Name="/dev/a")
    assert not ask("GetParameter", Name="/prod/a") and ask("GetParameter", Name="/prod/b")
    assert not ask("PutParameter", Name="/prod/new", Value="v", Type="String") and ask("PutParameter", Name="/dev/new", Value="v", Type="String")
    assert not ask("GetSecretValue", SecretId="one") and ask("GetSecretValue", SecretId="two")
    assert not ask("DeleteSecret", SecretId="two") and ask("DeleteSecret", SecretId="one")
    assert not ask("CreateSecret", Name="a-forbidden-one", SecretString="s") and ask("CreateSecret", Name="fine", SecretString="s")
    assert not ask("CreateUser", UserName="x") and ask("DeleteUser", UserName="present") and ask("ListUsers")
    assert not ask("AssumeRole", RoleArn=roles[0], RoleSessionName="work") and ask("AssumeRole", RoleArn=roles[1], RoleSessionName="work")
    assert not ask("CreateAccount", AccountName="x", Email="x@example.com") and ask("ListAccounts")
    log = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    barred = {record["op"]: record["why"] for record in log if str(record.get("why", "")).startswith("guardrail:10:")}
    assert {"DeleteParameter", "GetParameter", "PutParameter", "CreateSecret", "GetRandomPassword", "CreateUser", "AssumeRole", "CreateAccount"} <= set(barred)


def test_what_clients_remember_is_forgotten(daemon, folder):
    """A cache is never stale past an event, and a guardrail is one."""
    session = daemon.start().session()
    session.call("PutParameter", {"Name": "/a", "Value": "v", "Type": "String"})
    cache = ParameterCache(socket=str(daemon.socket))
    try:
        assert cache.get("/a") == "v" == cache.get("/a")
        write(folder, "10.json", {"Statement": [deny("ssm:GetParameter")]})

        def barred():
            try:
                cache.get("/a")
            except AccessDenied:
                return True
            return False

        assert reloaded(daemon, barred)
        # Also when the stream, which was cut, is back.
        soon(True, lambda: cache._stream.lease.holds, 10)
        assert barred()
    finally:
        cache.close()


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
