"""Grants that end by themselves, and that cost the same however many there are."""

import json
import os
import subprocess
import sys
import time

import pytest

from kmsd.authz.decide import Question, decide
from kmsd.authz.grants import Grant
from kmsd.authz.policy import compile_policy, default_policy
from kmsd.authz.principal import make_caller
from kmsd.grants.rules import limited, same_terms
from kmsd.keys.registry import KmsKey
from kmsfs.api.operation import KeyState
from kmsfs.errors import InvalidRequest

ACCOUNT = "111122223333"


def grant(number=1, expires=None, uid=1000):
    return Grant(f"{number:064d}", "k", f"arn:kmsfs:iam::{ACCOUNT}:uid/{uid}", None, frozenset({"Decrypt"}), None, None, None, 0.0, "", expires)


def test_time_decides():
    caller = make_caller(ACCOUNT, 1000, 1000, 1, ())
    policy = compile_policy(default_policy(f"arn:kmsfs:iam::{ACCOUNT}:uid/0"))
    ask = lambda now: decide(caller, Question("kms:Decrypt", "k", now=now), policy, [grant(expires=100.0)]).allowed  # noqa: E731
    assert ask(99.9) and not ask(100.0) and not ask(1e12)


def test_a_grant_made_through_one_that_ends_does_not_outlive_it():
    parent = grant(expires=100.0)
    assert limited(grant(2), parent).expires == 100.0
    assert limited(grant(2, 200.0), parent).expires == 100.0
    assert limited(grant(2, 50.0), parent).expires == 50.0
    assert limited(grant(2, 50.0), grant()).expires == 50.0 and limited(grant(2), grant()).expires is None
    assert same_terms(grant(1), grant(2)) and not same_terms(grant(1, 5.0), grant(2, 5.0)) and not same_terms(grant(1), grant(2, 5.0))


def key_of(count):
    key = KmsKey(
        "k", "arn", "", KeyState.ENABLED, 0.0, None, compile_policy(default_policy(f"arn:kmsfs:iam::{ACCOUNT}:uid/0")), 1, 1, "c",
        "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", {}, None, None, [], "s", "AWS_KMS",
    )  # fmt: skip
    for number in range(count):
        key.keep_grant(grant(number, uid=number))
    return key


def test_the_cost_does_not_grow_with_the_grants_of_others():
    caller = make_caller(ACCOUNT, 7, 7, 1, (8, 9))

    def seen(count):
        key, looked = key_of(count), []
        looked.extend(key.grants_for(caller))
        return looked

    assert [g.grant_id for g in seen(20)] == [g.grant_id for g in seen(20_000)] == [f"{7:064d}"]
    key = key_of(20_000)
    began = time.process_time()
    for _ in range(1000):
        list(key.grants_for(caller))
    assert time.process_time() - began < 0.2, "it looks at every grant"
    for held in list(key.grants.values()):
        key.drop_grant(held)
    assert not key.grants and not key._by_grantee


def test_a_grant_for_a_second(make_daemon):
    daemon = make_daemon()
    session = daemon.session()
    me = session.call("GetStatus", {})["Principal"]
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    request = {"KeyId": key, "GranteePrincipal": me, "Operations": ["Decrypt"], "Reason": "on call"}
    made = session.call("CreateGrant", {**request, "ExpiresInSeconds": 1})
    [entry] = session.call("ListGrants", {"KeyId": key})["Grants"]
    assert entry["Reason"] == "on call" and 0 < entry["ExpirationDate"] - entry["CreationDate"] <= 1
    deadline = time.monotonic() + 10
    while session.call("ListGrants", {"KeyId": key})["Grants"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert f'"grant":"{made["GrantId"]}"' in (daemon.state / "audit" / "audit.jsonl").read_text()
    # One whose time comes while nobody is there is gone at the next start.
    session.call("CreateGrant", {**request, "ExpiresInSeconds": 2})
    lasting = session.call("CreateGrant", {**request, "ExpiresInSeconds": 3600})
    daemon.stop()
    time.sleep(2)
    session = daemon.start().session()
    deadline = time.monotonic() + 10
    while len(session.call("ListGrants", {"KeyId": key})["Grants"]) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert session.call("ListGrants", {"KeyId": key})["Grants"][0]["GrantId"] == lasting["GrantId"]
    for wrong in (0, -1, 10**12):
        with pytest.raises(InvalidRequest):
            session.call("CreateGrant", {**request, "ExpiresInSeconds": wrong})


def test_on_the_command_line(daemon):
    def kmsfs(*words):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True)

    key = kmsfs("key", "create").stdout.strip()
    assert kmsfs("grant", "create", key, "--to", "uid/1000", "--operation", "Decrypt", "--for", "2h", "--reason", "moving house").returncode == 0
    [made] = json.loads(kmsfs("--json", "grant", "list", key).stdout)
    assert abs(made["ExpirationDate"] - made["CreationDate"] - 7200) < 1
    assert "moving house" in kmsfs("grant", "list", key).stdout
    assert kmsfs("grant", "create", key, "--to", "uid/1000", "--operation", "Decrypt", "--for", "soon").returncode == 2
