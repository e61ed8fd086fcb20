"""What the audit log shows of a key, and the policy that is made of it."""

from kmsfs.trail.tightening import ADMINISTRATION, Use, is_administration, observe, propose

ACCOUNT = "123456789012"
KEY = f"arn:kmsfs:kms:local:{ACCOUNT}:key/0f0e"
OTHER = KEY + "2"


def who(name):
    return f"arn:kmsfs:iam::{ACCOUNT}:{name}"


def record(op="Decrypt", ts=100.0, **more):
    return {"op": op, "ts": ts, "req": "r", "uid": 1000, "key": KEY, "by": "policy:x", **more}


def seen(*records, since=0.0):
    return observe(records, KEY, ACCOUNT, since)


def test_only_what_was_allowed_by_a_policy_on_this_key_and_lately_counts():
    found = seen(
        record(), record(), record(err="AccessDeniedException"), record(req="-"), record(ts=1.0), record(key=OTHER),
        record(by="grant:g1"), record(op="ListKeys", key=None), record(op="Nonsense"), record(op="CreateKey"), since=50.0,
    )  # fmt: skip
    assert found.uses == {Use(who("uid/1000"), "kms:Decrypt"): 2} and found.grants == {"g1"}


def test_both_ends_of_re_encrypt_and_a_roles_session_and_a_volume():
    assert {use.action for use in seen(record("ReEncrypt", source=OTHER)).uses} == {"kms:ReEncryptTo"}
    assert {use.action for use in seen(record("ReEncrypt", key=OTHER, source=KEY)).uses} == {"kms:ReEncryptFrom"}
    assert {use.action for use in seen(record("ReEncrypt", source=KEY)).uses} == {"kms:ReEncryptFrom", "kms:ReEncryptTo"}
    (use,) = seen(record(who=f"arn:kmsfs:sts::{ACCOUNT}:assumed-role/app/session")).uses
    assert use.principal == f"arn:kmsfs:sts::{ACCOUNT}:role/app".replace("sts", "sts")
    (use,) = seen(record("OpenVolumeSession", params={"volume_id": "ab"})).uses
    assert use == Use(who("uid/1000"), "kms:Decrypt", (("kmsfs:purpose", "volume-root"), ("kmsfs:volume", "ab")))


def statements(policy):
    return {statement["Sid"]: statement for statement in policy["Statement"]}


def test_the_proposal_keeps_denials_and_administrators_and_allows_what_was_used():
    deny = {"Sid": "No", "Effect": "Deny", "Principal": "*", "Action": "kms:Sign", "Resource": "*"}
    allow = {"Sid": "All", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    uses = {
        Use(who("uid/1"), "kms:Decrypt"): 1, Use(who("uid/1"), "kms:Encrypt"): 1, Use(who("uid/2"), "kms:DescribeKey"): 1,
        Use(who("uid/0"), "kms:PutKeyPolicy"): 3, Use(who("uid/0"), "kms:Decrypt"): 1,
    }  # fmt: skip
    made = statements(propose({"Statement": [deny, allow]}, uses, [who("uid/0")]))
    assert set(made) == {"No", "Administrators", "UsedByUid0", "UsedByUid1", "UsedByUid2"}
    assert made["No"] == deny and made["Administrators"]["Action"] == list(ADMINISTRATION)
    assert made["UsedByUid0"]["Action"] == ["kms:Decrypt"]
    assert made["UsedByUid1"]["Action"] == ["kms:Decrypt", "kms:Encrypt"] and "Condition" not in made["UsedByUid1"]
    assert propose({"Statement": deny}, {}, [])["Statement"] == [deny]


def test_what_enough_calls_have_in_common_becomes_a_condition():
    def ways(count, **context):
        return {Use(who("uid/1"), "kms:Decrypt", tuple(sorted(context.items())), "ssm"): count}

    def condition(uses):
        (statement,) = propose({}, uses, [])["Statement"]
        return statement.get("Condition", {}).get("StringEquals", {})

    assert condition(ways(4, stage="prod")) == {"kms:ViaService": "ssm"}
    assert condition(ways(5, stage="prod")) == {"kms:EncryptionContext:stage": "prod", "kms:ViaService": "ssm"}
    assert condition(ways(3, stage="prod", a="1") | ways(3, stage="prod", a="2")) == {"kms:EncryptionContext:stage": "prod", "kms:ViaService": "ssm"}
    assert condition(ways(3, stage="prod") | ways(3)) == {"kms:ViaService": "ssm"}
    assert condition({Use(who("uid/1"), "kms:Decrypt", (("kmsfs:file", "x"), ("kmsfs:volume", "v"))): 9}) == {"kms:EncryptionContext:kmsfs:volume": "v"}
    assert condition(ways(9) | {Use(who("uid/1"), "kms:Decrypt"): 9}) == {}


def test_statements_have_names_of_their_own():
    uses = {Use(who("uid/1"), "kms:Decrypt", (("a", "1"),)): 9, Use(who("uid/1"), "kms:Encrypt", (("a", "2"),)): 9, Use(who("user/uid-1"), "kms:Sign"): 1}
    made = propose({}, uses, [])
    assert [statement["Sid"] for statement in made["Statement"]] == ["UsedByUid1", "UsedByUid1n2", "UsedByUserUid1"]


def test_administration_never_uses_a_key():
    assert is_administration("kms:DescribeKey") and is_administration("kms:PutKeyPolicy")
    for action in ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:Sign", "kms:GenerateMac", "kms:DeriveSharedSecret"):
        assert not is_administration(action)
