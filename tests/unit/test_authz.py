"""Policies, conditions, grants and the one decision."""

import contextlib
import json
import time

import pytest

from kmsd.authz.decide import Question, decide
from kmsd.authz.grants import Grant
from kmsd.authz.policy import (
    compile_new_policy,
    compile_policy,
    default_policy,
    names_principal,
    service_key_policy,
    with_principal,
)
from kmsd.authz.principal import make_caller
from kmsd.authz.variables import Unresolved, resolve
from kmsd.authz.wildcard import matches
from kmsd.grants.rules import within
from kmsfs.errors import LimitExceeded, MalformedPolicy

ACCOUNT = "1" * 12
ARN = "arn:kmsfs:kms:local:111111111111:key/x"


def arn(kind, number):
    return f"arn:kmsfs:iam::{ACCOUNT}:{kind}/{number}"


def policy(*statements):
    return compile_policy(json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))


def statement(effect="Allow", who="*", action="kms:*", **more):
    return {"Effect": effect, "Principal": "*" if who == "*" else {"AWS": who}, "Action": action, "Resource": "*", **more}


def ask(document, action="kms:Decrypt", uid=1000, groups=(), context=None, via=None, grants=(), **values):
    caller = make_caller(ACCOUNT, uid, uid, 1, tuple(groups))
    return decide(caller, Question(action, ARN, context or {}, via, time.time(), values), document, grants)


def test_default_policy_allows_its_creator_only():
    document = compile_policy(default_policy(arn("uid", 1000)))
    assert ask(document).allowed
    assert not ask(document, uid=1001).allowed
    assert not ask(document, uid=0).allowed


def test_explicit_deny_always_wins():
    allow, deny = statement(), statement("Deny", arn("uid", 1000), "kms:Decrypt", Sid="no")
    for document in (policy(allow, deny), policy(deny, allow)):
        assert ask(document).by == "deny:no"
        assert ask(document, "kms:Encrypt").allowed
    grant = Grant("1" * 64, "x", arn("uid", 1000), None, frozenset({"Decrypt"}), None, None, None, 0, "")
    assert not ask(policy(deny), grants=[grant]).allowed


def test_groups_are_principals():
    document = policy(statement(who=arn("gid", 50)))
    assert ask(document, groups=(50,)).allowed
    assert not ask(document, groups=(51,)).allowed


@pytest.mark.parametrize(
    ("condition", "context", "via", "expected"),
    [
        ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {"app": "x"}, None, True),
        ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {"app": "X"}, None, False),
        ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {}, None, False),
        ({"StringEqualsIfExists": {"kms:EncryptionContext:app": "x"}}, {}, None, True),
        ({"StringNotEquals": {"kms:EncryptionContext:app": "x"}}, {}, None, True),
        ({"StringEqualsIgnoreCase": {"kms:EncryptionContext:app": ["y", "x"]}}, {"app": "X"}, None, True),
        ({"StringLike": {"kms:EncryptionContext:app": "a*z?"}}, {"app": "abczd"}, None, True),
        ({"StringEquals": {"kms:ViaService": "ssm"}}, {}, "ssm", True),
        ({"StringEquals": {"kms:ViaService": "ssm"}}, {}, None, False),
        ({"Null": {"kms:ViaService": "true"}}, {}, None, True),
        ({"Null": {"kms:ViaService": "true"}}, {}, "ssm", False),
        ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["a", "b"]}}, {"a": ""}, None, True),
        ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["a"]}}, {"a": "", "c": ""}, None, False),
        ({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": ["a"]}}, {"a": "", "c": ""}, None, True),
        ({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": ["a"]}}, {}, None, False),
        ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, {}, None, True),
        ({"DateLessThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, {}, None, False),
        ({"NumericLessThan": {"aws:EpochTime": "not a number"}}, {}, None, False),
        ({"StringEquals": {"kms:CallerAccount": ACCOUNT}, "Bool": {"aws:Nothing": "true"}}, {}, None, False),
        ({"StringEquals": {"kmsfs:VolumeId": "ab"}}, {"kmsfs:volume": "ab"}, None, True),
    ],
)
def test_conditions(condition, context, via, expected):
    assert ask(policy(statement(Condition=condition)), context=context, via=via).allowed is expected


def test_not_action_not_principal_not_resource():
    assert not ask(policy(_without(statement(), "Action", NotAction="kms:Decrypt"))).allowed
    assert ask(policy(_without(statement(), "Action", NotAction="kms:Encrypt"))).allowed
    deny_others = _without(statement("Deny"), "Principal", NotPrincipal={"AWS": arn("uid", 1000)})
    assert ask(policy(statement(), deny_others)).allowed
    assert not ask(policy(statement(), deny_others), uid=5).allowed
    assert not ask(policy(_without(statement(), "Resource", NotResource="*"))).allowed


def _without(base, name, **more):
    return {key: value for key, value in base.items() if key != name} | more


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[]", "{}", '{"Statement": []}', '{"Statement": [1]}', '{"Version": "2011", "Statement": []}',
        '{"Statement": [], "Statement": []}', '{"Extra": 1, "Statement": []}',
        json.dumps({"Statement": [statement("Perhaps")]}),
        json.dumps({"Statement": [statement(action="s3:Get")]}),
        json.dumps({"Statement": [statement(who="bob")]}),
        json.dumps({"Statement": [statement(Condition={"Sounds": {"a": "b"}})]}),
        json.dumps({"Statement": [statement(Condition={"StringEquals": {}})]}),
        json.dumps({"Statement": [statement(Condition={"StringEquals": {"a": None}})]}),
        json.dumps({"Statement": [statement(Sid="a"), statement(Sid="a")]}),
        json.dumps({"Statement": [_without(statement(), "Principal")]}),
        json.dumps({"Statement": [_without(statement(), "Resource")]}),
        json.dumps({"Statement": [_without(statement(), "Action")]}),
        json.dumps({"Statement": [_without(statement(), "Principal", NotPrincipal="*")]}),
        "[" * 30000,
    ],
)  # fmt: skip
def test_what_is_no_policy(text):
    with pytest.raises(MalformedPolicy):
        compile_policy(text)


def test_policy_size_limit():
    with pytest.raises(LimitExceeded):
        compile_policy(" " * 40_000)


def test_service_policy_works_through_the_service_only():
    document = compile_policy(service_key_policy(ACCOUNT, arn("uid", 1), "ssm"))
    assert ask(document, uid=2, via="ssm").allowed
    assert not ask(document, uid=2).allowed
    assert not ask(document, "kms:DisableKey", uid=2, via="ssm").allowed


@pytest.mark.parametrize(
    ("equals", "subset", "context", "expected"),
    [
        (None, None, {}, True),
        ({"a": "b"}, None, {"a": "b"}, True),
        ({"a": "b"}, None, {"a": "b", "c": "d"}, False),
        (None, {"a": "b"}, {"a": "b", "c": "d"}, True),
        (None, {"a": "b"}, {"a": "x"}, False),
        ({}, None, {"a": "b"}, False),
    ],
)
def test_grant_constraints(equals, subset, context, expected):
    grant = Grant("1" * 64, "x", arn("uid", 1000), None, frozenset({"Decrypt", "DescribeKey"}), equals, subset, None, 0, "")
    nobody = policy(statement(who=arn("uid", 1)))
    assert ask(nobody, context=context, grants=[grant]).allowed is expected
    assert ask(nobody, "kms:DescribeKey", grants=[grant]).allowed
    assert not ask(nobody, "kms:Encrypt", context=context, grants=[grant]).allowed
    assert not ask(nobody, uid=7, context=context, grants=[grant]).allowed


def test_a_child_grant_cannot_exceed_its_parent():
    def parent(equals=None, subset=None):
        return Grant("1" * 64, "x", "p", None, frozenset({"Decrypt", "CreateGrant"}), equals, subset, None, 0, "")

    assert within(parent(), frozenset({"Decrypt"}), None, None)
    assert not within(parent(), frozenset({"Encrypt"}), None, None)
    assert not within(parent(subset={"a": "b"}), frozenset({"Decrypt"}), None, None)
    assert within(parent(subset={"a": "b"}), frozenset({"Decrypt"}), None, {"a": "b", "c": "d"})
    assert within(parent(subset={"a": "b"}), frozenset({"Decrypt"}), {"a": "b"}, None)
    assert not within(parent(equals={"a": "b"}), frozenset({"Decrypt"}), None, {"a": "b"})


@pytest.mark.parametrize(
    "pattern",
    ["*a" * 8000 + "b", "*" + "a" * 4000 + "b", "*" + "a?" * 2000 + "b", "*" + "?" * 4000 + "b", "*?" + "a" * 4000 + "b*", "*" + "?a" * 2000 + "b*"],
    ids=range(6),
)  # fmt: skip
def test_wildcards_stay_fast_on_hostile_patterns(pattern):
    # Going back after each letter took seconds for most of these, in the one thread that answers everybody.
    start = time.process_time()
    assert not matches(pattern, "a" * 8000)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("text", ["${a" + " " * 30_000 + "x,}", "${" + " " * 30_000 + ",}", "${" * 15_000, "${a,'" + "'" * 30_000 + "}"], ids=range(4))
def test_variables_stay_fast_in_hostile_policies(text):
    start = time.process_time()
    with contextlib.suppress(Unresolved):
        resolve((text,), {}, strict=True)
    assert time.process_time() - start < 0.5


def test_wildcards():
    assert matches("a*c?e", "abbbcde") and not matches("a*c", "ab") and matches("*", "") and not matches("?", "")
    assert matches("a*a", "aa") and not matches("a*a", "a") and matches("*?\n", "x\n") and matches("?.*", "..") and not matches("a.c", "abc")


def test_policy_variables():
    from kmsd.authz.decide import Question, decide_by_identity
    from kmsd.authz.identity import Identity, compile_identity_policy
    from kmsd.authz.principal import Caller

    def allowed(resource, *statements, who="user/team/ann", version="2012-10-17", **values):
        text = json.dumps({"Version": version, "Statement": list(statements)})
        principal = f"arn:kmsfs:iam::111122223333:{who}"
        caller = Caller("111122223333", 0, 0, 0, principal, frozenset({principal}), identity=Identity((compile_identity_policy("p", text),)))
        return decide_by_identity(caller, Question("ssm:GetParameter", resource, values=values)).allowed

    def one(effect="Allow", **parts):
        return {"Effect": effect, "Action": "ssm:*", **({"Resource": "*"} if not {"Resource", "NotResource"} & parts.keys() else {}), **parts}

    mine = one(Resource="a/${aws:username}/*")
    assert allowed("a/ann/x", mine) and not allowed("a/bob/x", mine) and not allowed("a/${aws:username}/x", mine)
    assert not allowed("a/ann/x", mine, version="2008-10-17") and allowed("a/${aws:username}/x", mine, version="2008-10-17")
    # A role's session has no user name: an Allow says nothing then, not even by NotResource or a negated operator.
    for parts in (mine, one(NotResource="a/${aws:username}/*"), one(Condition={"StringNotEquals": {"aws:PrincipalAccount": "${aws:username}"}})):
        assert not allowed("b/x", parts, who="role/ops")
    assert allowed("a/ann/x", one(Resource="*"), one("Deny", Resource="a/${aws:username}/*"), who="role/ops")
    assert not allowed("a/ann/x", one(Resource="*"), one("Deny", Resource="a/${aws:username}/*"))
    assert not allowed("a/ann/x", one(Resource="*"), one("Deny", NotResource="a/${aws:username}/*"), who="role/ops")
    assert allowed("a/guest/x", one(Resource="a/${aws:username, 'guest'}/*"), who="role/ops")
    # Wildcards are those of the policy: what is put in, and ${*}, are characters.
    tagged = one(Resource="a/${team}")
    assert allowed("a/x*", tagged, team="x*") and not allowed("a/xy", tagged, team="x*") and not allowed("a/xy", tagged, team="x?")
    assert not allowed("a/xy", tagged, team=["xy", "xz"])
    assert allowed("a/*", one(Resource="a/${*}")) and not allowed("a/b", one(Resource="a/${*}"))
    assert allowed("a/?${$}"[:3], one(Resource="a/${?}")) and allowed("a/$", one(Resource="a/${$}"))
    assert allowed("a/*b", one(Resource="a/*b")) and allowed("a/b", one(Resource="a/${nothing, ''}*"))
    for operator, value, fits in (("StringEquals", "${aws:username}", True), ("StringLike", "${aws:username}*", True), ("StringEquals", "${aws:username}x", False)):
        assert allowed("x", one(Condition={operator: {"owner": value}}), owner="ann") is fits
    assert not allowed("x", one(Condition={"StringLike": {"owner": "${team}"}}), owner="xy", team="x*")


def test_the_case_of_actions_and_condition_keys_does_not_count():
    caller = make_caller("111122223333", 1, 1, 0, ())
    key = "arn:kmsfs:kms:local:111122223333:key/x"
    everything = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}

    def allowed(context=None, via=None, **deny):
        policy = compile_policy(json.dumps({"Statement": [everything, {"Effect": "Deny", "Principal": "*", "Resource": "*", **deny}]}))
        return decide(caller, Question("kms:Decrypt", key, context or {}, via), policy, ()).allowed

    for action in ("kms:decrypt", "kms:DECRYPT", "kms:dec*", "kms:*RYPT"):
        assert not allowed(Action=action)
    assert allowed(Action="kms:encrypt")
    condition = lambda name, value: {"Action": "kms:*", "Condition": {"StringEquals": {name: value}}}  # noqa: E731
    assert not allowed(via="ssm", **condition("KMS:viaservice", "ssm")) and allowed(via="ssm", **condition("kms:viaservice", "SSM"))
    assert not allowed({"Team": "x"}, **condition("kms:encryptioncontext:Team", "x")) and allowed({"Team": "x"}, **condition("kms:EncryptionContext:team", "x"))


def test_every_key_of_a_request_is_known_by_its_spelling():
    from pathlib import Path
    import re

    from kmsd.authz.conditions import REQUEST_KEYS, spelling_of
    from kmsfs.api.registry import OPERATIONS

    assert all(spelling_of(key.upper()) == key for key in REQUEST_KEYS)
    root = Path(__file__).parents[2] / "daemon/kmsd"
    # Where requests are given their keys.
    files = ("authz/decide.py", "dispatch/conditionkeys.py", "dispatch/authorise.py", "keys/registry.py", "secrets/store.py", "sts/service.py")
    texts = [(root / name).read_text() for name in files]
    given = {key for text in texts for key in re.findall(r'["\[{]((?:kms|aws|sts|ssm|secretsmanager):[A-Za-z]+|kmsfs:[A-Z][A-Za-z]+)"(?:\)|\]|:)', text)}
    assert given - {operation.action for operation in OPERATIONS.values()} == set(REQUEST_KEYS)


def test_who_names_no_user_means_himself_but_not_where_that_is_the_account_root():
    from types import SimpleNamespace

    from kmsd.authz.principal import Caller
    from kmsd.iam.records import USER
    from kmsd.iam.resources import EVERYTHING, resource_of
    from kmsfs.api.shapes import iam

    ann = "arn:kmsfs:iam::111122223333:user/team/ann"
    store = SimpleNamespace(
        of_arn=lambda arn: SimpleNamespace(arn=arn, kind=USER) if arn == ann else None,
        get=lambda _account, kind, name: SimpleNamespace(arn=ann) if (kind, name.lower()) == (USER, "ann") else None,
    )  # fmt: skip

    def of(request, principal=ann, himself=True):
        caller = Caller("111122223333", 0, 0, 0, principal, frozenset({principal}))
        return resource_of(request, caller, store, himself=himself)

    assert of(iam.GetUserRequest()) == of(iam.GetUserRequest(user_name="ANN")) == ann
    assert of(iam.GetUserRequest(), "arn:kmsfs:sts::111122223333:assumed-role/ops/s") == EVERYTHING
    put = iam.PutAccessKeyRequest(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="x" * 40)
    assert of(put, himself=False) == EVERYTHING
    assert of(iam.GetUserRequest(user_name="new")) == "arn:kmsfs:iam::111122223333:user/new"


def test_variables_in_resources_count_without_any_condition_too():
    from kmsd.authz.guardrails import Guardrails, compile_guardrail

    caller = make_caller("111122223333", 1, 1, 0, ())
    question = Question("kms:Decrypt", "arn:kmsfs:kms:local:111122223333:key/x")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "arn:kmsfs:kms:local:${aws:PrincipalAccount}:key/*"}
    allow = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    policy = compile_policy(json.dumps({"Version": "2012-10-17", "Statement": [allow, deny]}))
    assert not decide(caller, question, policy, ()).allowed
    only = {**allow, "Resource": deny["Resource"]}
    assert decide(caller, question, compile_policy(json.dumps({"Version": "2012-10-17", "Statement": [only]})), ()).allowed
    guardrail = compile_guardrail("g", json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    assert Guardrails({"g": guardrail}).decide(caller, question) is not None


def test_a_policy_says_whether_it_asks_of_the_request():
    def asks(**parts):
        statement = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", **parts}
        return compile_policy(json.dumps({"Version": "2012-10-17", "Statement": [statement]})).asks_of_the_request

    condition = lambda name: {"Condition": {"StringEquals": {name: "x"}}}  # noqa: E731
    assert not asks() and not asks(**condition("KMS:viaService")) and not asks(**condition("kms:encryptioncontext:a"))
    assert asks(**condition("aws:ResourceTag/a")) and asks(**condition("kms:GrantOperations")) and asks(Resource="${aws:username}")


OLD, NEW = arn("user", "ann"), "AIDA" + "A" * 17


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Statement":\n [ {"Principal" : {"AWS":"OLD"} }]}', '{"Statement":\n [ {"Principal" : {"AWS":"NEW"} }]}'),
        ('{"Statement": {"NotPrincipal": {"AWS": ["x", "OLD"], "Service": "OLD2"}}}', '{"Statement": {"NotPrincipal": {"AWS": ["x", "NEW"], "Service": "OLD2"}}}'),
        ('{"Statement": [{"Principal": "*"}]}', '{"Statement": [{"Principal": "*"}]}'),
    ],
)
def test_another_name_leaves_a_policy_as_it_was_written(text, expected):
    text, expected = (each.replace("OLD2", "ec2.amazonaws.com").replace("OLD", OLD).replace("NEW", NEW) for each in (text, expected))
    assert with_principal(text, OLD, NEW) == expected


def test_what_only_looks_like_a_principal_stays():
    said = {"Statement": [{"Sid": "é", "Principal": {"AWS": [OLD, OLD + "a"]}, "Condition": {"StringEquals": {"aws:PrincipalArn": OLD}}}]}
    found = json.loads(with_principal(json.dumps(said), OLD, NEW))
    assert found["Statement"][0] == {**said["Statement"][0], "Principal": {"AWS": [NEW, OLD + "a"]}}
    # As JSON may be written, too.
    escaped = json.dumps(said).replace("user/ann", "user\\/ann")
    assert json.loads(with_principal(escaped, OLD, NEW)) == found


def test_the_id_of_who_is_gone_is_kept_and_is_nobodys():
    text = json.dumps({"Statement": [statement(who=NEW)]})
    assert not ask(compile_policy(text)).allowed and names_principal(compile_policy(text), NEW)
    with pytest.raises(MalformedPolicy, match="invalid principals"):
        compile_new_policy(text)
    for text in ("AIDA" + "A" * 16, "AGPA" + "A" * 17, "AIDA" + "a" * 17):
        with pytest.raises(MalformedPolicy):
            compile_policy(json.dumps({"Statement": [statement(who=text)]}))
