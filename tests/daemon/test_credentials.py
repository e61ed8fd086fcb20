"""systemd's credentials over the socket: the unit is the principal, and a refusal is no empty credential."""

import json
import os
import resource
import secrets
import socket

import pytest

from kmsfs import errors
from support.peers import let_others_in

pytestmark = pytest.mark.root
MAX = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from tests.conftest import DaemonProcess

    folder = tmp_path_factory.mktemp("kmsd")
    made = DaemonProcess(folder, "--credentials", str(folder / "credentials.sock"))
    assert made.init().returncode == 0
    made.credentials = folder / "credentials.sock"
    yield made.start()
    made.stop()
    assert not made.credentials.exists()


@pytest.fixture
def call(served):
    session = served.session()
    yield lambda operation, **parameters: session.call(operation, parameters)
    session.close()


def ask(served, unit, credential, uid=0):
    """Connect as systemd does, in a process of its own; return what came, up to the end."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            connection = socket.socket(socket.AF_UNIX)
            connection.bind(f"\0{secrets.token_hex(8)}/unit/{unit}/{credential}")
            connection.connect(str(served.credentials))
            with os.fdopen(writer, "wb") as out:
                while data := connection.recv(1 << 16):
                    out.write(data)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read()
    os.waitpid(child, 0)
    return found


def refused(answer):
    """systemd takes at most 1 MiB, and fails the unit where there is more."""
    return len(answer) > MAX and not answer.strip(b"\0")


def records(served):
    return [json.loads(line) for line in (served.state / "audit" / "audit.jsonl").read_text().splitlines()]


def test_a_unit_gets_what_lies_at_its_place(served, call):
    call("PutParameter", Name="/systemd/app.service/db-password", Value="s3cret", Type="SecureString")
    call("PutParameter", Name="/systemd/app.service/level", Value="plain", Type="String")
    call("PutParameter", Name="/systemd/app.service/long", Value="ü" * 3000, Type="SecureString", Tier="Advanced")
    call("PutParameter", Name="/systemd/db_40.service/key", Value="of all", Type="SecureString")
    call("PutParameter", Name="/systemd/db_40main.service/key", Value="of main", Type="SecureString")
    assert ask(served, "app.service", "db-password") == b"s3cret"
    assert ask(served, "app.service", "level") == b"plain"
    assert ask(served, "app.service", "long") == ("ü" * 3000).encode()
    assert ask(served, "db@main.service", "key") == b"of main"
    assert ask(served, "db@other.service", "key") == b"of all"
    last = [record for record in records(served) if record["op"] == "Decrypt"][-1]
    assert last["who"].endswith(":unit/db@other.service") and last["svc"] == "ssm" and last["uid"] == 0


def test_and_nothing_else(served, call):
    call("PutParameter", Name="/systemd/other.service/x", Value="not yours", Type="SecureString")
    call("PutParameter", Name="/app/x", Value="not yours", Type="SecureString")
    for unit, credential in (("app.service", "x"), ("app.service", "absent"), ("other.servic", "x"), ("app.service", "db-password:1")):
        assert refused(ask(served, unit, credential)), (unit, credential)
    for bad in ("app.service/x/y", "", "a b"):
        assert refused(ask(served, bad, "x"))


def test_only_the_service_manager_may_say_which_unit_it_is(served, call):
    call("PutParameter", Name="/systemd/app.service/only", Value="s3cret", Type="SecureString")
    assert ask(served, "app.service", "only", uid=1001) == b""  # the socket's own mode
    served.credentials.chmod(0o666)
    let_others_in(served.credentials.parent)
    assert refused(ask(served, "app.service", "only", uid=1001))
    assert ask(served, "app.service", "only") == b"s3cret"


def test_what_others_put_there_is_not_for_the_unit(served):
    served.socket.chmod(0o666)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(1001)
            os.setuid(1001)
            request = {"Name": "/systemd/app.service/planted", "Value": "evil", "Type": "String"}
            served.session().call("PutParameter", request)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert refused(ask(served, "app.service", "planted"))


def test_the_keys_policy_decides_about_the_unit(served, call):
    key = call("CreateKey")["KeyMetadata"]
    call("PutParameter", Name="/systemd/app.service/own-key", Value="s3cret", Type="SecureString", KeyId=key["KeyId"])
    assert refused(ask(served, "app.service", "own-key"))
    account = key["Arn"].split(":")[4]
    unit = f"arn:kmsfs:iam::{account}:unit/app.service"
    grant = call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=unit, Operations=["Decrypt"])
    assert ask(served, "app.service", "own-key") == b"s3cret"
    call("RevokeGrant", KeyId=key["KeyId"], GrantId=grant["GrantId"])
    assert refused(ask(served, "app.service", "own-key"))
    with pytest.raises(errors.KmsfsError):
        call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=unit + "/x y", Operations=["Decrypt"])
    call("DisableKey", KeyId="alias/kmsfs/ssm")
    try:
        assert refused(ask(served, "app.service", "db-password"))
    finally:
        call("EnableKey", KeyId="alias/kmsfs/ssm")


def test_nothing_is_given_out_that_the_audit_log_does_not_have(served, call):
    """The log's disk is full: a limit on the size of the daemon's files stands for that."""
    call("PutParameter", Name="/systemd/app.service/logged", Value="s3cret", Type="String")
    pid, size = served.process.pid, (served.state / "audit" / "audit.jsonl").stat().st_size
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        assert refused(ask(served, "app.service", "logged"))
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert ask(served, "app.service", "logged") == b"s3cret"
