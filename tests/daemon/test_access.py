"""why, who-can, simulate: the evaluator's answers laid open, for who may read the policy."""

import json
import os
import subprocess
import sys

import pytest

from conftest import DaemonProcess
from kmsfs.errors import AccessDenied, DecisionNotFound, ExitCode, InvalidRequest, InvariantBroken, MalformedPolicy, NoSuchEntity, NotFound
from support.peers import as_user as connected_as, let_others_in

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path):
    daemon = DaemonProcess(tmp_path, "--socket-mode", "0666", private=False)
    assert daemon.init().returncode == 0
    daemon.start()
    let_others_in(daemon.folder)
    session = daemon.session()
    account = session.call("GetStatus", {})["Account"]
    who = lambda name: f"arn:kmsfs:iam::{account}:{name}"  # noqa: E731
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    statements = [
        {"Sid": "Own", "Effect": "Allow", "Principal": {"AWS": who("uid/0")}, "Action": "kms:*", "Resource": "*"},
        {
            "Sid": "Prod", "Effect": "Allow", "Principal": {"AWS": who("uid/1234")}, "Action": "kms:Decrypt", "Resource": "*",
            "Condition": {"StringEquals": {"kms:EncryptionContext:stage": "prod"}},
        },
        {
            "Sid": "NoMail", "Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "*",
            "Condition": {"StringEquals": {"kms:EncryptionContext:app": "mail"}},
        },
    ]  # fmt: skip
    session.call("PutKeyPolicy", {"KeyId": key, "Policy": json.dumps({"Version": "2012-10-17", "Statement": statements})})
    session.call("CreateGrant", {"KeyId": key, "GranteePrincipal": who("gid/77"), "Operations": ["Encrypt"], "Name": "mine"})
    daemon.key, daemon.who, daemon.admin = key, who, session
    yield daemon
    daemon.stop()


def as_user(daemon, uid, *words, stdin=""):
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-m", "kmsfs.cli", "--no-autostart", *words]
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "HOME": "/nonexistent"}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, timeout=60)


def denied_id(daemon, uid, operation, request):
    done = as_user(daemon, uid, "--json", "api", operation, "-", stdin=json.dumps(request))
    assert done.returncode == ExitCode.DENIED, done.stderr
    return json.loads(done.stderr)["error"]["hint"].rpartition(" ")[2]


def test_why_a_call_was_denied_then(world):
    id_of_denial = denied_id(world, 1234, "Encrypt", {"KeyId": world.key, "Plaintext": "aGk=", "EncryptionContext": {"stage": "prod"}})
    # What changes afterwards does not change the answer.
    policy = json.loads(world.admin.call("GetKeyPolicy", {"KeyId": world.key})["Policy"])
    policy["Statement"][1]["Action"] = "kms:*"
    world.admin.call("PutKeyPolicy", {"KeyId": world.key, "Policy": json.dumps(policy)})
    answer = world.admin.call("ExplainDecision", {"DecisionId": id_of_denial})
    assert (answer["Principal"], answer["Action"], answer["Allowed"]) == (world.who("uid/1234"), "kms:Encrypt", False)
    steps = {step["Name"]: (step["Applies"], step.get("Reason")) for step in answer["Steps"]}
    assert steps["Own"] == (False, "it names other principals")
    assert steps["Prod"] == (False, "it does not speak of kms:Encrypt")
    assert steps["NoMail"] == (False, "condition StringEquals kms:EncryptionContext:app wants mail; the call has none")
    assert steps["mine"] == (False, f"its grantee principal is {world.who('gid/77')}")
    # Who was denied is not told what the policy says.
    refused = as_user(world, 1234, "why", id_of_denial)
    assert refused.returncode == DecisionNotFound.exit_code and "Own" not in refused.stdout + refused.stderr
    with pytest.raises(NotFound):
        world.admin.call("ExplainDecision", {"DecisionId": "none"})


def test_simulate(world):
    def ask(principal, action, context=None):
        answer = world.admin.call(
            "SimulateKeyAccess", {"KeyId": world.key, "Principal": world.who(principal), "Action": action, "AskedContext": context or {}}
        )
        return answer["Allowed"], answer["DecidedBy"]

    assert ask("uid/1234", "kms:Decrypt") == (False, "no-allow")
    assert ask("uid/1234", "kms:Decrypt", {"stage": "prod"}) == (True, "policy:Prod")
    assert ask("uid/1234", "kms:Decrypt", {"stage": "prod", "app": "mail"}) == (False, "deny:NoMail")
    assert ask("gid/77", "kms:Encrypt")[0] and not ask("gid/77", "kms:Decrypt")[0]
    assert ask("uid/0", "kms:ScheduleKeyDeletion") == (True, "policy:Own")
    for wrong, error in ((world.who("user/nobody"), NoSuchEntity), ("nonsense", Exception)):
        with pytest.raises(error):
            world.admin.call("SimulateKeyAccess", {"KeyId": world.key, "Principal": wrong, "Action": "kms:Decrypt"})
    with pytest.raises(InvalidRequest):
        world.admin.call("SimulateKeyAccess", {"KeyId": world.key, "Principal": world.who("uid/1"), "Action": "s3:Get"})


def test_the_answer_is_what_happens(world):
    """The same question, asked of the simulation and by the user himself."""
    blob = world.admin.call("Encrypt", {"KeyId": world.key, "Plaintext": b"x", "EncryptionContext": {"stage": "prod"}})
    import base64

    request = {"CiphertextBlob": base64.b64encode(blob["CiphertextBlob"]).decode(), "EncryptionContext": {"stage": "prod"}}
    done = as_user(world, 1234, "--json", "api", "Decrypt", "-", stdin=json.dumps(request))
    assert done.returncode == 0, done.stderr


def test_who_can(world):
    def ask(action, context=None):
        answer = world.admin.call("ListAuthorizedPrincipals", {"KeyId": world.key, "Action": action, "AskedContext": context or {}})
        return {item["Principal"].rpartition(":")[2]: item["Conditional"] for item in answer["Principals"]}

    assert ask("kms:Decrypt") == {"uid/0": False, "uid/1234": True}
    assert ask("kms:Decrypt", {"stage": "prod"}) == {"uid/0": False, "uid/1234": False}
    assert ask("kms:Decrypt", {"stage": "prod", "app": "mail"}) == {}
    assert ask("kms:Encrypt") == {"uid/0": False, "gid/77": False}


def test_only_who_may_read_the_policy_may_ask(world):
    for operation, more in (("SimulateKeyAccess", {"Principal": world.who("uid/0")}), ("ListAuthorizedPrincipals", {})):
        request = {"KeyId": world.key, "Action": "kms:Decrypt", **more}
        assert as_user(world, 1234, "api", operation, "-", stdin=json.dumps(request)).returncode == ExitCode.DENIED
    # The context that is asked about is not the context of the asking.
    policy = json.loads(world.admin.call("GetKeyPolicy", {"KeyId": world.key})["Policy"])
    policy["Statement"].append(
        {
            "Sid": "Look", "Effect": "Allow", "Principal": {"AWS": world.who("uid/1234")}, "Action": "kms:GetKeyPolicy", "Resource": "*",
            "Condition": {"StringEquals": {"kms:EncryptionContext:magic": "word"}},
        }
    )  # fmt: skip
    world.admin.call("PutKeyPolicy", {"KeyId": world.key, "Policy": json.dumps(policy)})
    request = {"KeyId": world.key, "Action": "kms:Decrypt", "AskedContext": {"magic": "word"}}
    assert as_user(world, 1234, "api", "ListAuthorizedPrincipals", "-", stdin=json.dumps(request)).returncode == ExitCode.DENIED


def test_on_the_command_line(world):
    environment = {**os.environ, "KMSFS_SOCKET": str(world.socket)}

    def kmsfs(*words):
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], capture_output=True, text=True, env=environment)

    done = kmsfs("who-can", "Decrypt", world.key)
    assert "uid/1234" in done.stdout and "under conditions" in done.stdout
    assert kmsfs("simulate", "uid/1234", "Decrypt", world.key, "--context", "stage=prod").returncode == 0
    refused = kmsfs("simulate", "uid/1234", "Decrypt", world.key)
    assert refused.returncode == ExitCode.DENIED and "wants prod; the call has none" in refused.stdout
    id_of_denial = denied_id(world, 999, "Encrypt", {"KeyId": world.key, "Plaintext": "aGk="})
    assert "it names other principals" in kmsfs("why", id_of_denial).stdout


# --- the least ------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_tighten_allows_what_was_used_and_no_more(make_daemon, tmp_path):
    daemon = make_daemon()
    session = daemon.session()
    status = session.call("GetStatus", {})
    everybody = {"Sid": "Open", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    mine = {"Sid": "Mine", "Effect": "Allow", "Principal": {"AWS": status["Principal"]}, "Action": "kms:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [mine, everybody]})
    key = session.call("CreateKey", {"Policy": policy})["KeyMetadata"]["KeyId"]
    spare = session.call("CreateGrant", {"KeyId": key, "GranteePrincipal": status["Principal"], "Operations": ["Decrypt"]})["GrantId"]
    with connected_as(daemon, 4321) as other:
        blobs = [other("Encrypt", KeyId=key, Plaintext=b"x", EncryptionContext={"stage": "prod", "n": str(n)})["CiphertextBlob"] for n in range(6)]
        for n, blob in enumerate(blobs):
            other("Decrypt", CiphertextBlob=blob, EncryptionContext={"stage": "prod", "n": str(n)})
    session.call("GetStatus", {})

    def tighten(*words):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", "--json", "tighten", key, *words], env=environment, capture_output=True, text=True, timeout=60)

    asked = tighten("--apply")
    assert asked.returncode == ExitCode.USAGE
    found = json.loads(asked.stdout)
    assert found["UnusedGrants"][0]["GrantId"] == spare
    assert {"Principal": status["Principal"], "Action": "kms:Encrypt"} in found["Lost"]
    used = next(statement for statement in found["Policy"]["Statement"] if statement["Sid"] == "UsedByUid4321")
    assert used["Action"] == ["kms:Decrypt", "kms:Encrypt"]
    assert used["Condition"] == {"StringEquals": {"kms:EncryptionContext:stage": "prod"}}
    assert json.loads(session.call("GetKeyPolicy", {"KeyId": key})["Policy"])["Statement"][1]["Sid"] == "Open"
    assert tighten("--apply", "--yes").returncode == 0
    with connected_as(daemon, 4321) as other:
        assert other("Decrypt", CiphertextBlob=blobs[0], EncryptionContext={"stage": "prod", "n": "0"})["Plaintext"] == b"x"
        for operation, parameters in (("Encrypt", {"KeyId": key, "Plaintext": b"x"}), ("DescribeKey", {"KeyId": key})):
            with pytest.raises(AccessDenied):
                other(operation, **parameters)
    with connected_as(daemon, 4322) as other, pytest.raises(AccessDenied):
        other("Encrypt", KeyId=key, Plaintext=b"x", EncryptionContext={"stage": "prod"})
    session.call("PutKeyPolicy", {"KeyId": key, "PolicyName": "default", "Policy": policy})


def test_a_policy_can_be_tried_before_it_is_the_keys(call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    who = call("GetStatus")["Principal"].rpartition(":")[0] + ":uid/4321"
    statement = {"Effect": "Allow", "Principal": {"AWS": who}, "Action": "kms:Decrypt", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    asked = {"KeyId": key, "Principal": who, "Action": "kms:Decrypt"}
    assert not call("SimulateKeyAccess", **asked)["Allowed"]
    assert call("SimulateKeyAccess", **asked, Policy=text)["Allowed"]
    assert not call("SimulateKeyAccess", **asked)["Allowed"]
    with pytest.raises(MalformedPolicy):
        call("SimulateKeyAccess", **asked, Policy="rubbish")


def test_a_proposal_that_would_deny_what_was_used_is_not_shown(call, daemon, monkeypatch, capsys):
    from kmsfs.cli import tightening
    from kmsfs.cli.output import SETTINGS

    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("Encrypt", KeyId=key, Plaintext=b"x")
    call("GetStatus")
    propose = tightening.propose
    monkeypatch.setattr(SETTINGS, "socket", str(daemon.socket))
    monkeypatch.setattr(tightening, "propose", lambda policy, _uses, administrators: propose(policy, {}, administrators))
    with pytest.raises(InvariantBroken, match="kms:Encrypt"):
        tightening.tighten(key, 90, None, apply=True, yes=True)
    assert capsys.readouterr().out == ""
    assert json.loads(call("GetKeyPolicy", KeyId=key)["Policy"])["Statement"][0]["Sid"] == "Creator"
