"""Laws of the evaluator over random policies, grants and callers."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.authz.wildcard import matches
from kmsd.authz.decide import Question, decide
from kmsd.authz.explain import GRANT, KEY_POLICY, explain, without_conditions
from kmsd.authz.grants import Grant
from kmsd.authz.identity import Identity, compile_identity_policy
from kmsd.authz.policy import compile_policy
from kmsd.authz.principal import Caller
from kmsfs.ids import root_principal

ACCOUNT = "111122223333"
KEY = f"arn:kmsfs:kms:local:{ACCOUNT}:key/11111111-2222-4333-8444-555555555555"
NAMES = [f"arn:kmsfs:iam::{ACCOUNT}:{who}" for who in ("uid/1", "uid/2", "gid/7", "user/ann", "role/ops")]
ACTIONS = ["kms:Encrypt", "kms:Decrypt", "kms:PutKeyPolicy", "kms:CreateGrant"]

some = lambda items: st.lists(st.sampled_from(items), min_size=1, max_size=3, unique=True)  # noqa: E731
conditions = st.dictionaries(
    st.sampled_from(["StringEquals", "StringNotEquals", "StringLike", "StringEqualsIfExists"]),
    st.dictionaries(
        st.sampled_from(["kms:EncryptionContext:a", "kms:ViaService"]), st.sampled_from(["x", "y*", "ssm"]), min_size=1
    ),
    min_size=1, max_size=2,
)  # fmt: skip


@st.composite
def statements(draw, effect=None, identity=False):
    made = {
        "Effect": effect or draw(st.sampled_from(["Allow", "Allow", "Deny"])),
        draw(st.sampled_from(["Action", "Action", "NotAction"])): draw(some([*ACTIONS, "kms:*", "kms:*crypt"])),
        "Resource": draw(st.sampled_from(["*", "*", KEY, f"{KEY}x"])),
    }
    if not identity:
        made["Principal"] = draw(st.sampled_from(["*", *[{"AWS": root_principal(ACCOUNT)}] * 4, *({"AWS": n} for n in NAMES)]))
    if draw(st.integers(0, 2)) == 0:
        made["Condition"] = draw(conditions)
    return made


def policy_of(parts):
    return compile_policy(json.dumps({"Version": "2012-10-17", "Statement": parts}))


key_policies = st.lists(statements(), min_size=1, max_size=5)


@st.composite
def identities(draw):
    def one(name):
        text = json.dumps({"Version": "2012-10-17", "Statement": draw(st.lists(statements(identity=True), min_size=1, max_size=3))})
        return compile_identity_policy(name, text)

    policies = tuple(one(f"p{number}") for number in range(draw(st.integers(0, 2))))
    boundary = one("boundary") if draw(st.integers(0, 3)) == 0 else None
    session = (one("session"),) if draw(st.integers(0, 3)) == 0 else None
    return Identity(policies, boundary, session)


@st.composite
def callers(draw):
    if draw(st.booleans()):
        name = draw(st.sampled_from(NAMES[:2]))
        return Caller(ACCOUNT, 1, 1, 0, name, frozenset({name, NAMES[2]}))
    name = draw(st.sampled_from(NAMES[3:]))
    names = {name} if "user" in name else {name, "arn:kmsfs:sts::111122223333:assumed-role/ops/s"}
    return Caller(ACCOUNT, 1, 1, 0, name, frozenset(names), identity=draw(identities()))


@st.composite
def grants(draw):
    subset = draw(st.sampled_from([None, {"a": "x"}]))
    operations = frozenset(action.removeprefix("kms:") for action in draw(some(ACTIONS)))
    return Grant("g" + str(draw(st.integers(0, 9))), KEY, draw(st.sampled_from(NAMES)), None, operations, None, subset, None, 0.0, NAMES[0])


questions = st.builds(
    Question, st.sampled_from(ACTIONS), st.just(KEY),
    st.sampled_from([{}, {"a": "x"}, {"a": "yes"}, {"b": "x"}]), st.sampled_from([None, "ssm"]),
)  # fmt: skip
granted = st.lists(grants(), max_size=3)


@settings(max_examples=400)
@given(key_policies, callers(), questions, granted)
def test_a_deny_that_speaks_of_the_call_wins(parts, caller, question, held):
    policy = policy_of(parts)
    values = question.request_values(caller)
    account = root_principal(ACCOUNT)
    denies = any(
        not statement.allow
        and (statement.names(caller.principals) or (caller.identity is not None and account in statement.principals))
        and statement.speaks_of(question.action, KEY, values)
        for statement in policy.statements
    )
    if denies:
        assert not decide(caller, question, policy, held).allowed


@settings(max_examples=400)
@given(key_policies, statements(effect="Deny"), callers(), questions, granted)
def test_one_more_deny_never_widens(parts, deny, caller, question, held):
    if decide(caller, question, policy_of([*parts, deny]), held).allowed:
        assert decide(caller, question, policy_of(parts), held).allowed


@settings(max_examples=400)
@given(key_policies, statements(effect="Allow"), callers(), questions, granted)
def test_one_more_allow_never_narrows(parts, allow, caller, question, held):
    if decide(caller, question, policy_of(parts), held).allowed:
        assert decide(caller, question, policy_of([*parts, allow]), held).allowed


@settings(max_examples=400)
@given(key_policies, grants(), callers(), questions, granted)
def test_one_more_grant_gives_its_operations_and_no_others(parts, grant, caller, question, held):
    policy = policy_of(parts)
    before, after = decide(caller, question, policy, held).allowed, decide(caller, question, policy, [*held, grant]).allowed
    assert after >= before
    if after and not before:
        assert question.action.removeprefix("kms:") in grant.operations and grant.grantee in caller.principals


@settings(max_examples=400)
@given(key_policies, callers(), questions, granted)
def test_without_conditions_nothing_is_lost(parts, caller, question, held):
    policy = policy_of(parts)
    if decide(caller, question, policy, held).allowed:
        assert decide(caller, question, without_conditions(policy), held).allowed


@settings(max_examples=400)
@given(key_policies, callers(), questions, granted)
def test_explanations_agree_with_the_decision(parts, caller, question, held):
    policy = policy_of(parts)
    decision, steps = explain(caller, question, policy, held)
    assert decision == decide(caller, question, policy, held)
    applying = [step for step in steps if step.applies]
    kind, _, name = decision.by.partition("+")[0].partition(":")
    if kind in ("policy", "deny"):
        [step] = [s for s in applying if s.source == KEY_POLICY and s.name == name]
        assert step.allow == (kind == "policy")
    elif kind == "grant":
        assert any(step.source == GRANT and step.name == name for step in applying)
    elif kind == "no-allow" and caller.identity is None:
        assert not [step for step in applying if step.allow]
    assert all(step.against for step in steps if not step.applies)


def slowly(pattern, text):
    """The same by its definition."""
    row = [True] + [False] * len(text)
    for letter in pattern:
        if letter == "*":
            for place in range(len(text)):
                row[place + 1] = row[place + 1] or row[place]
        else:
            row = [False] + [row[place] and letter in ("?", text[place]) for place in range(len(text))]
    return row[-1]


@given(st.text("ab*?.", max_size=9), st.text("ab.\n", max_size=12))
def test_wildcards_match_what_they_say(pattern, text):
    assert matches(pattern, text) == slowly(pattern, text)
