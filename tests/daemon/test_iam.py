"""IAM's identities over the HTTP door, and what they may do with keys, parameters and secrets."""

import base64
import json
import os
import subprocess
import sys
import time
import uuid

import boto3
import botocore.exceptions
import botocore.session
import pytest
from botocore.config import Config
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from msgspec import NODEFAULT

from conftest import DaemonProcess
from kmsfs.api.registry import OPERATIONS
from support.iamworld import World, allow, deny, document, refused

REGION = "us-east-1"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0")
    assert made.init("--account", "111122223333").returncode == 0
    made.start()
    yield made
    made.stop()


@pytest.fixture
def world(daemon):
    return World(daemon)


def may(call, **parameters):
    try:
        call(**parameters)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDeniedException"
        return False
    return True


def test_users_groups_policies_and_keys(world):
    iam = world.client("iam")
    user = iam.create_user(UserName="Ann", Path="/team/", Tags=[{"Key": "a", "Value": "b"}])["User"]
    assert user["Arn"] == "arn:aws:iam::111122223333:user/team/Ann" and user["UserId"].startswith("AIDA")
    assert refused(iam.create_user, UserName="ann") == "EntityAlreadyExists"
    assert refused(iam.get_user, UserName="nobody") == "NoSuchEntity"
    assert iam.get_user(UserName="Ann")["User"]["Tags"] == [{"Key": "a", "Value": "b"}]
    assert user["CreateDate"].year >= 2025
    policy = iam.create_policy(PolicyName="p", PolicyDocument=document(allow("kms:*")))["Policy"]
    assert policy["Arn"] == "arn:aws:iam::111122223333:policy/p"
    iam.create_group(GroupName="g")
    iam.attach_group_policy(GroupName="g", PolicyArn=policy["Arn"])
    iam.add_user_to_group(GroupName="g", UserName="Ann")
    assert [g["GroupName"] for g in iam.list_groups_for_user(UserName="Ann")["Groups"]] == ["g"]
    assert [u["UserName"] for u in iam.get_group(GroupName="g")["Users"]] == ["Ann"]
    assert iam.list_attached_group_policies(GroupName="g")["AttachedPolicies"][0]["PolicyArn"] == policy["Arn"]
    iam.put_user_policy(UserName="Ann", PolicyName="own", PolicyDocument=document(allow("ssm:*", "*")))
    assert iam.get_user_policy(UserName="Ann", PolicyName="own")["PolicyDocument"]["Statement"][0]["Action"] == "ssm:*"
    assert iam.list_user_policies(UserName="Ann")["PolicyNames"] == ["own"]
    for bad in ("{", "[]", document({"Effect": "Allow", "Action": "kms:*", "Resource": "*", "Principal": "*"}),
                document({"Effect": "Maybe", "Action": "kms:*", "Resource": "*"}), '{"Statement": []}'):  # fmt: skip
        assert refused(iam.put_user_policy, UserName="Ann", PolicyName="x", PolicyDocument=bad) == "MalformedPolicyDocument"
    version = iam.create_policy_version(PolicyArn=policy["Arn"], PolicyDocument=document(deny("kms:*")), SetAsDefault=True)
    assert version["PolicyVersion"]["VersionId"] == "v2"
    assert [v["VersionId"] for v in iam.list_policy_versions(PolicyArn=policy["Arn"])["Versions"]] == ["v2", "v1"]
    iam.set_default_policy_version(PolicyArn=policy["Arn"], VersionId="v1")
    assert refused(iam.delete_policy_version, PolicyArn=policy["Arn"], VersionId="v1") == "DeleteConflict"
    iam.delete_policy_version(PolicyArn=policy["Arn"], VersionId="v2")
    keys = [iam.create_access_key(UserName="Ann")["AccessKey"] for _ in range(2)]
    assert refused(iam.create_access_key, UserName="Ann") == "LimitExceeded"
    assert {k["AccessKeyId"] for k in iam.list_access_keys(UserName="Ann")["AccessKeyMetadata"]} == {k["AccessKeyId"] for k in keys}
    for call, extra in ((iam.delete_user, {"UserName": "Ann"}), (iam.delete_group, {"GroupName": "g"}), (iam.delete_policy, {"PolicyArn": policy["Arn"]})):
        assert refused(call, **extra) == "DeleteConflict"
    iam.delete_user_policy(UserName="Ann", PolicyName="own")
    iam.remove_user_from_group(GroupName="g", UserName="Ann")
    for key in keys:
        iam.delete_access_key(UserName="Ann", AccessKeyId=key["AccessKeyId"])
    iam.delete_user(UserName="Ann")
    iam.detach_group_policy(GroupName="g", PolicyArn=policy["Arn"])
    iam.delete_group(GroupName="g")
    iam.delete_policy(PolicyArn=policy["Arn"])
    assert iam.list_users()["Users"] == [] or "Ann" not in {u["UserName"] for u in iam.list_users()["Users"]}


def test_access_keys_sign_and_can_be_switched_off(world):
    name, key = world.user(policy=[allow("iam:GetUser")])
    sts = world.client("sts", key)
    me = sts.get_caller_identity()
    assert me["Arn"] == f"arn:aws:iam::111122223333:user/{name}" and me["Account"] == "111122223333"
    assert world.client("iam", key).get_user()["User"]["UserName"] == name
    assert refused(world.client("sts", (key[0], "wrong")).get_caller_identity) in ("SignatureDoesNotMatch", "InvalidSignatureException")
    iam = world.client("iam")
    iam.update_access_key(UserName=name, AccessKeyId=key[0], Status="Inactive")
    assert refused(sts.get_caller_identity) in ("InvalidClientTokenId", "UnrecognizedClientException")
    iam.update_access_key(UserName=name, AccessKeyId=key[0], Status="Active")
    temporary = sts.get_session_token()["Credentials"]
    session = (temporary["AccessKeyId"], temporary["SecretAccessKey"], temporary["SessionToken"])
    assert world.client("sts", session).get_caller_identity()["Arn"] == me["Arn"]
    iam.delete_access_key(UserName=name, AccessKeyId=key[0])
    iam.delete_user_policy(UserName=name, PolicyName="own")
    iam.delete_user(UserName=name)
    iam.create_user(UserName=name)
    assert refused(world.client("sts", session).get_caller_identity) in ("InvalidClientTokenId", "UnrecognizedClientException")
    iam.delete_user(UserName=name)


def test_only_administrators_administer(world):
    name, key = world.user()
    iam = world.client("iam", key)
    assert refused(iam.create_user, UserName="x") == "AccessDenied"
    assert refused(iam.list_users) == "AccessDenied"
    assert refused(iam.put_user_policy, UserName=name, PolicyName="all", PolicyDocument=document(allow("*"))) == "AccessDenied"


def test_iam_asks_about_the_entity_that_is_meant(world):
    admin, mine = world.client("iam"), f"arn:aws:iam::{world.client('sts').get_caller_identity()['Account']}"
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"{mine}:root"}, "Action": "sts:AssumeRole"})
    admin.create_role(RoleName="inside", Path="/app/", AssumeRolePolicyDocument=trust)
    admin.create_role(RoleName="outside", AssumeRolePolicyDocument=trust)
    admin.create_group(GroupName="staff"), admin.create_group(GroupName="others")
    policy = admin.create_policy(PolicyName="read", Path="/app/", PolicyDocument=document(allow("kms:Decrypt")))["Policy"]["Arn"]
    name, key = world.user(policy=(
        allow(["iam:*Role*"], f"{mine}:role/app/*"), allow(["iam:*Group*"], f"{mine}:group/staff"), allow(["iam:*Policy*"], f"{mine}:policy/app/*"),
        allow(["iam:*AccessKey*", "iam:GetUser"], mine + ":user/${aws:username}"),
    ))  # fmt: skip
    other, _ = world.user()
    iam = world.client("iam", key)
    iam.get_role(RoleName="inside"), iam.put_role_policy(RoleName="INSIDE", PolicyName="p", PolicyDocument=document(allow("kms:Decrypt")))
    assert refused(iam.get_role, RoleName="outside") == "AccessDenied"
    assert refused(iam.get_role, RoleName="none") == "AccessDenied"  # what is not there is not told either
    iam.create_role(RoleName="made", Path="/app/", AssumeRolePolicyDocument=trust), iam.delete_role(RoleName="made")
    assert refused(iam.create_role, RoleName="made", AssumeRolePolicyDocument=trust) == "AccessDenied"
    # Adding somebody to a group is about the group; attaching a policy is about who gets it.
    iam.add_user_to_group(GroupName="staff", UserName=other)
    assert refused(iam.add_user_to_group, GroupName="others", UserName=name) == "AccessDenied"
    iam.get_policy(PolicyArn=policy), iam.create_policy_version(PolicyArn=policy, PolicyDocument=document(allow("kms:Encrypt")))
    assert refused(iam.attach_user_policy, UserName=name, PolicyArn=policy) == "AccessDenied"
    assert refused(iam.attach_role_policy, RoleName="outside", PolicyArn=policy) == "AccessDenied"
    assert iam.get_user()["User"]["UserName"] == name and len(iam.list_access_keys()["AccessKeyMetadata"]) == 1
    assert refused(iam.list_access_keys, UserName=other) == refused(iam.list_roles) == refused(iam.list_users) == "AccessDenied"


def test_tags_specs_algorithms_and_aliases_are_condition_keys(world):
    admin = world.client("kms")
    root = f"arn:aws:iam::{world.client('sts').get_caller_identity()['Account']}:root"
    whole = document({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "kms:*", "Resource": "*"})

    def made(team, **more):
        return admin.create_key(Policy=whole, Tags=[{"TagKey": "team", "TagValue": team}], **more)["KeyMetadata"]["KeyId"]

    blue, red = made("blue"), made("red")
    signer = made("blue", KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
    admin.create_alias(AliasName=f"alias/{uuid.uuid4().hex[:8]}-blue", TargetKeyId=red)
    alias = next(a["AliasName"] for a in admin.list_aliases(KeyId=red)["Aliases"])

    def when(actions, **condition):
        return allow(actions, Condition={"StringEquals": condition})

    _, key = world.user(policy=(
        when("kms:Encrypt", **{"aws:ResourceTag/team": "blue", "kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}),
        when(["kms:ReEncryptFrom", "kms:ReEncryptTo"], **{"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}),
        when("kms:GenerateDataKey", **{"kms:RequestAlias": alias}), when("kms:Sign", **{"kms:SigningAlgorithm": "RSASSA_PSS_SHA_256"}),
        when("kms:CreateKey", **{"aws:RequestTag/team": "blue", "kms:keyspec": "HMAC_256"}), when("kms:TagResource", **{"aws:RequestTag/team": "blue"}),
    ))  # fmt: skip
    kms = world.client("kms", key)
    kms.encrypt(KeyId=blue, Plaintext=b"x")
    assert refused(kms.encrypt, KeyId=red, Plaintext=b"x") == "AccessDeniedException"
    admin.tag_resource(KeyId=blue, Tags=[{"TagKey": "team", "TagValue": "red"}])
    assert refused(kms.encrypt, KeyId=blue, Plaintext=b"x") == "AccessDeniedException"
    # ReEncrypt has an algorithm for either side.
    blob = admin.encrypt(KeyId=red, Plaintext=b"x")["CiphertextBlob"]
    kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=red)
    kms.generate_data_key(KeyId=alias, KeySpec="AES_256")
    assert refused(kms.generate_data_key, KeyId=red, KeySpec="AES_256") == "AccessDeniedException"
    kms.sign(KeyId=signer, Message=b"x", SigningAlgorithm="RSASSA_PSS_SHA_256")
    assert refused(kms.sign, KeyId=signer, Message=b"x", SigningAlgorithm="RSASSA_PSS_SHA_384") == "AccessDeniedException"
    hmac = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}
    mine = kms.create_key(Tags=[{"TagKey": "team", "TagValue": "blue"}], **hmac)["KeyMetadata"]["KeyId"]
    assert refused(kms.create_key, Tags=[{"TagKey": "team", "TagValue": "red"}], **hmac) == refused(kms.create_key, **hmac) == "AccessDeniedException"
    assert refused(kms.create_key, Tags=[{"TagKey": "team", "TagValue": "blue"}]) == "AccessDeniedException"
    kms.tag_resource(KeyId=mine, Tags=[{"TagKey": "team", "TagValue": "blue"}])
    assert refused(kms.tag_resource, KeyId=mine, Tags=[{"TagKey": "team", "TagValue": "red"}]) == "AccessDeniedException"


def test_a_key_policy_with_a_variable(world):
    kms, mine = world.client("kms"), f"arn:aws:iam::{world.client('sts').get_caller_identity()['Account']}"
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    policy = json.loads(kms.get_key_policy(KeyId=key)["Policy"])
    own = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:*crypt", "Resource": "*",
           "Condition": {"StringEquals": {"kms:EncryptionContext:owner": "${aws:username}"}}}  # fmt: skip
    kms.put_key_policy(KeyId=key, Policy=json.dumps({**policy, "Version": "2012-10-17", "Statement": [*policy["Statement"], own]}))
    (ann, ann_key), (bob, bob_key) = world.user(), world.user()
    blob = world.client("kms", ann_key).encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"owner": ann})["CiphertextBlob"]
    assert world.client("kms", ann_key).decrypt(CiphertextBlob=blob, EncryptionContext={"owner": ann})["Plaintext"] == b"x"
    assert refused(world.client("kms", bob_key).decrypt, CiphertextBlob=blob, EncryptionContext={"owner": ann}) == "AccessDeniedException"
    session = world.daemon.session()
    explained = session.call("SimulateKeyAccess", {"KeyId": key, "Action": "kms:Decrypt", "AskedContext": {"owner": ann},
                                                   "Principal": f"{mine}:user/{bob}".replace(":aws:", ":kmsfs:")})  # fmt: skip
    assert any("${aws:username}" in step.get("Reason", "") for step in explained["Steps"]), explained


def test_the_table_of_issue_three(world):
    """Alice, Bob, Charlie and David on keys A, B and C: key policies and IAM together."""
    kms, root = world.client("kms"), {"AWS": "arn:aws:iam::111122223333:root"}
    keys, me = {}, {"AWS": world.client("sts").get_caller_identity()["Arn"]}
    users = {name: world.user(name)[1] for name in ("Alice", "Bob", "Charlie", "David")}
    arn = {name: f"arn:aws:iam::111122223333:user/{name}" for name in users}
    full = lambda who, effect="Allow": {"Effect": effect, "Principal": who, "Action": "kms:*", "Resource": "*"}  # noqa: E731
    administer = {"Effect": "Allow", "Principal": me, "Action": "kms:PutKeyPolicy", "Resource": "*"}
    policies = {
        "A": [full(root)],
        "B": [administer, full({"AWS": [arn["Bob"], arn["Charlie"]]})],
        "C": [full(root), full({"AWS": arn["Alice"]}), full({"AWS": [arn["Bob"], arn["Charlie"], arn["David"]]}, "Deny")],
    }
    for name, statements in policies.items():
        keys[name] = kms.create_key(Policy=document(*statements))["KeyMetadata"]["Arn"]
    iam = world.client("iam")
    given = {"Alice": [allow("kms:*", [keys["A"], keys["B"]])], "Charlie": [allow("kms:Encrypt", keys["A"])],
             "David": [allow("kms:*", [keys["B"], keys["C"]])]}  # fmt: skip
    for name, statements in given.items():
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(*statements))
    outcome = {}
    for name, key in users.items():
        own = world.client("kms", key)
        outcome[name] = "".join(
            ("e" if may(own.encrypt, KeyId=keys[k], Plaintext=b"x") else "-") + ("d" if may(own.describe_key, KeyId=keys[k]) else "-")
            for k in "ABC"
        )
    assert outcome == {"Alice": "ed--ed", "Bob": "--ed--", "Charlie": "e-ed--", "David": "------"}
    for name in users:
        simulated = iam.simulate_principal_policy(PolicySourceArn=arn[name], ActionNames=["kms:Encrypt"], ResourceArns=[keys["A"]])
        wanted = "allowed" if name in ("Alice", "Charlie") else "implicitDeny"
        assert simulated["EvaluationResults"][0]["EvalDecision"] == wanted


def test_denies_boundaries_conditions_and_groups(world):
    kms, iam = world.client("kms"), world.client("iam")
    key = kms.create_key(Policy=document({"Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "kms:*", "Resource": "*"}))
    key = key["KeyMetadata"]["Arn"]
    name, credentials = world.user(policy=[allow("kms:*", key, Condition={"StringEquals": {"kms:EncryptionContext:team": "blue"}})])
    own = world.client("kms", credentials)
    assert may(own.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext={"team": "blue"})
    assert not may(own.encrypt, KeyId=key, Plaintext=b"x", EncryptionContext={"team": "red"})
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(allow("kms:*")))
    assert may(own.encrypt, KeyId=key, Plaintext=b"x") and may(own.list_keys)
    boundary = iam.create_policy(PolicyName=f"b{name}", PolicyDocument=document(allow("kms:Describe*"), allow("kms:ListKeys")))["Policy"]["Arn"]
    iam.put_user_permissions_boundary(UserName=name, PermissionsBoundary=boundary)
    assert not may(own.encrypt, KeyId=key, Plaintext=b"x") and may(own.describe_key, KeyId=key)
    assert refused(iam.delete_policy, PolicyArn=boundary) == "DeleteConflict"
    iam.delete_user_permissions_boundary(UserName=name)
    iam.create_group(GroupName=f"g{name}")
    iam.put_group_policy(GroupName=f"g{name}", PolicyName="no", PolicyDocument=document(deny("kms:Encrypt")))
    iam.add_user_to_group(GroupName=f"g{name}", UserName=name)
    assert not may(own.encrypt, KeyId=key, Plaintext=b"x") and may(own.generate_data_key, KeyId=key, KeySpec="AES_256")
    iam.remove_user_from_group(GroupName=f"g{name}", UserName=name)
    grant = kms.create_grant(KeyId=key, GranteePrincipal=f"arn:aws:iam::111122223333:user/{name}", Operations=["Encrypt"])
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(allow("ssm:*")))
    assert may(own.encrypt, KeyId=key, Plaintext=b"x") and not may(own.describe_key, KeyId=key)
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(deny("kms:Encrypt")))
    assert not may(own.encrypt, KeyId=key, Plaintext=b"x")
    kms.revoke_grant(KeyId=key, GrantId=grant["GrantId"])
    nobody = document({"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:user/nobody"}, "Action": "kms:*", "Resource": "*"})
    assert refused(kms.put_key_policy, KeyId=key, PolicyName="default", Policy=nobody) == "MalformedPolicyDocumentException"


def test_keys_that_iam_makes_belong_to_the_account(world):
    name, credentials = world.user(policy=[allow("kms:CreateKey"), allow("kms:Encrypt")])
    own = world.client("kms", credentials)
    key = own.create_key()["KeyMetadata"]["KeyId"]
    assert may(own.encrypt, KeyId=key, Plaintext=b"x") and not may(own.describe_key, KeyId=key)
    policy = json.loads(world.client("kms").get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    assert policy["Statement"][0]["Sid"] == "Enable IAM User Permissions"
    assert policy["Statement"][0]["Principal"] == {"AWS": "arn:aws:iam::111122223333:root"}
    assert not may(own.list_keys) and not may(own.create_alias, AliasName=f"alias/{name}", TargetKeyId=key)


def test_roles_sessions_and_what_limits_them(world):
    iam, kms = world.client("iam"), world.client("kms")
    name, credentials = world.user()
    arn = f"arn:aws:iam::111122223333:user/{name}"
    trust = {"Effect": "Allow", "Principal": {"AWS": arn}, "Action": "sts:AssumeRole", "Condition": {"StringEquals": {"sts:ExternalId": "magic"}}}
    role = iam.create_role(RoleName=f"r{name}", AssumeRolePolicyDocument=document(trust), MaxSessionDuration=7200)["Role"]
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"AWS": arn}
    iam.put_role_policy(RoleName=f"r{name}", PolicyName="p", PolicyDocument=document(allow("kms:*")))
    key = kms.create_key(Policy=document({"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}))["KeyMetadata"]["Arn"]
    sts = world.client("sts", credentials)
    ask = {"RoleArn": role["Arn"], "RoleSessionName": "work"}
    assert refused(sts.assume_role, **ask) == "AccessDenied"
    made = sts.assume_role(**ask, ExternalId="magic")
    assert made["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::111122223333:assumed-role/r{name}/work"
    def as_session(made):  # noqa: E306
        return tuple(made["Credentials"][field] for field in ("AccessKeyId", "SecretAccessKey", "SessionToken"))

    whole = world.client("kms", as_session(made))
    assert may(whole.encrypt, KeyId=key, Plaintext=b"x")
    assert world.client("sts", as_session(made)).get_caller_identity()["Arn"].endswith(f"assumed-role/r{name}/work")
    assert refused(world.client("sts", as_session(made)).get_session_token) == "AccessDenied"
    less = sts.assume_role(**ask, ExternalId="magic", Policy=document(allow("kms:DescribeKey")))
    limited = world.client("kms", as_session(less))
    assert not may(limited.encrypt, KeyId=key, Plaintext=b"x") and may(limited.describe_key, KeyId=key)
    def key_of(principal):  # noqa: E306
        owner = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}
        named = {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "kms:Encrypt", "Resource": "*"}
        return kms.create_key(Policy=document(owner, named))["KeyMetadata"]["Arn"]

    # A session policy and a boundary limit what names the role, and not what names this session of it.
    of_role, of_session = key_of(role["Arn"]), key_of(made["AssumedRoleUser"]["Arn"])
    assert may(whole.encrypt, KeyId=of_role, Plaintext=b"x") and not may(limited.encrypt, KeyId=of_role, Plaintext=b"x")
    assert may(limited.encrypt, KeyId=of_session, Plaintext=b"x")
    granted = key_of("arn:aws:iam::111122223333:root")
    kms.create_grant(KeyId=granted, GranteePrincipal=role["Arn"], Operations=["Encrypt"])
    assert not may(limited.encrypt, KeyId=granted, Plaintext=b"x")
    boundary = iam.create_policy(PolicyName=f"b{name}", PolicyDocument=document(allow("kms:DescribeKey")))["Policy"]["Arn"]
    iam.put_role_permissions_boundary(RoleName=f"r{name}", PermissionsBoundary=boundary)
    assert not may(whole.encrypt, KeyId=of_role, Plaintext=b"x") and may(whole.encrypt, KeyId=of_session, Plaintext=b"x")
    iam.delete_role_permissions_boundary(RoleName=f"r{name}")
    assert refused(world.client("sts", world.user()[1]).assume_role, **ask, ExternalId="magic") == "AccessDenied"
    iam.update_assume_role_policy(RoleName=f"r{name}", PolicyDocument=document({**trust, "Principal": {"AWS": "arn:aws:iam::111122223333:root"}}))
    assert refused(sts.assume_role, **ask, ExternalId="magic") == "AccessDenied"
    iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(allow("sts:AssumeRole", role["Arn"])))
    assert sts.assume_role(**ask, ExternalId="magic")["Credentials"]
    iam.delete_role_policy(RoleName=f"r{name}", PolicyName="p")
    assert not may(whole.encrypt, KeyId=key, Plaintext=b"x")
    iam.delete_role(RoleName=f"r{name}")
    assert refused(world.client("sts", as_session(made)).get_caller_identity) in ("InvalidClientTokenId", "UnrecognizedClientException")


def test_parameters_and_secrets_by_path(world):
    ssm, secrets = world.client("ssm"), world.client("secretsmanager")
    for path in ("/team/blue/a", "/team/blue/deep/b", "/team/red/a"):
        ssm.put_parameter(Name=path, Value="v", Type="String")
    secret = secrets.create_secret(Name=f"s{uuid.uuid4().hex}", SecretString="x")
    below = "arn:aws:ssm:us-east-1:111122223333:parameter/team/blue"
    _, credentials = world.user(policy=[allow("ssm:*", [below, f"{below}/*"]), allow("secretsmanager:GetSecretValue", secret["ARN"])])
    own, own_secrets = world.client("ssm", credentials), world.client("secretsmanager", credentials)
    assert own.get_parameter(Name="/team/blue/a")["Parameter"]["Value"] == "v"
    assert refused(own.get_parameter, Name="/team/red/a") == refused(own.get_parameter, Name="/team/red/none") == "AccessDeniedException"
    assert refused(own.get_parameter, Name="/team/blue/none") == "ParameterNotFound"
    assert len(own.get_parameters_by_path(Path="/team/blue", Recursive=True)["Parameters"]) == 2
    assert refused(own.get_parameters_by_path, Path="/team", Recursive=True) == "AccessDeniedException"
    own.put_parameter(Name="/team/blue/new", Value="w", Type="String")
    assert refused(own.put_parameter, Name="/team/red/new", Value="w", Type="String") == "AccessDeniedException"
    assert refused(own.describe_parameters) == "AccessDeniedException"
    assert refused(own_secrets.describe_secret, SecretId=secret["ARN"]) in ("AccessDeniedException", "ResourceNotFoundException")
    assert own_secrets.get_secret_value(SecretId=secret["ARN"])["SecretString"] == "x"


def test_fixed_credentials_and_a_restart(world, daemon):
    daemon.session().call("PutAccessKey", {"AccessKeyId": "FOOBARKEY", "SecretAccessKey": "FOOBARSECRET"})
    assert world.client("sts", ("FOOBARKEY", "FOOBARSECRET")).get_caller_identity()["Arn"] == "arn:aws:iam::111122223333:root"
    kms = world.client("kms", ("FOOBARKEY", "FOOBARSECRET"))
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    name, credentials = world.user(policy=[allow("kms:Encrypt")])
    daemon.stop()
    daemon.start()
    again = World(daemon)
    assert may(again.client("kms", credentials).encrypt, KeyId=key, Plaintext=b"x")
    assert again.client("kms", ("FOOBARKEY", "FOOBARSECRET")).describe_key(KeyId=key)["KeyMetadata"]["Enabled"]
    stored = b"".join((daemon.state / file).read_bytes() for file in os.listdir(daemon.state) if file.startswith("state.db"))
    assert b"FOOBAR" not in stored and credentials[1].encode() not in stored
    audit = (daemon.state / "audit" / "audit.jsonl").read_text()
    assert "FOOBARSECRET" not in audit and credentials[1] not in audit and name in audit


@pytest.mark.parametrize("service", ["iam", "sts"])
def test_operations_are_those_of_awss_model(service):
    model = botocore.session.get_session().get_service_model(service)
    ours = {operation.name: operation for operation in OPERATIONS.values() if operation.service == service}
    assert ours and set(ours) <= set(model.operation_names)
    for operation_name, operation in ours.items():
        wanted = model.operation_model(operation_name)
        for shape, found in ((wanted.input_shape, operation.request), (wanted.output_shape, operation.response)):
            members = set(shape.members) if shape is not None else set()
            assert set(found.__struct_encode_fields__) <= members, operation_name
        names, defaults = operation.request.__struct_encode_fields__, operation.request.__struct_defaults__
        given = dict(zip(names[::-1], defaults[::-1], strict=False))
        required = {field for field in names if given.get(field, NODEFAULT) is NODEFAULT}
        assert required == set(wanted.input_shape.required_members if wanted.input_shape else ()), operation_name


# --- MFA --------------------------------------------------------------------------------------------------------


class Authenticator:
    """What a person's telephone does with the seed (RFC 6238)."""

    def __init__(self, seed, ahead=0):
        self.seed, self.ahead = base64.b32decode(seed), ahead

    def code(self, steps=0):
        now = time.time() + (steps + self.ahead) * 30
        return TOTP(self.seed, 6, SHA1(), 30).generate(int(now)).decode()


def answers_with(code, act, **arguments):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        act(**arguments)
    assert caught.value.response["Error"]["Code"] == code
    return caught.value.response["Error"]["Message"]


def device_of(world, name, ahead=0):
    iam = world.client("iam")
    made = iam.create_virtual_mfa_device(VirtualMFADeviceName=name)["VirtualMFADevice"]
    shown = Authenticator(made["Base32StringSeed"], ahead)
    serial = made["SerialNumber"]
    iam.enable_mfa_device(
        UserName=name, SerialNumber=serial, AuthenticationCode1=shown.code(-2), AuthenticationCode2=shown.code(-1)
    )
    return serial, shown


def test_a_policy_that_asks_for_mfa(world):
    needs = {"Bool": {"aws:MultiFactorAuthPresent": "true"}, "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"}}
    name, keys = world.user(policy=[allow("kms:GenerateRandom", Condition=needs)])
    serial, shown = device_of(world, name)
    assert serial == f"arn:aws:iam::111122223333:mfa/{name}"
    # With the long-lived key the request has no such condition key at all, and with a session without MFA it is false.
    answers_with("AccessDeniedException", world.client("kms", keys).generate_random, NumberOfBytes=8)
    sts = world.client("sts", keys)
    plain = sts.get_session_token()["Credentials"]
    plain = (plain["AccessKeyId"], plain["SecretAccessKey"], plain["SessionToken"])
    answers_with("AccessDeniedException", world.client("kms", plain).generate_random, NumberOfBytes=8)
    code = shown.code()
    made = sts.get_session_token(SerialNumber=serial, TokenCode=code)["Credentials"]
    strong = (made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
    assert len(world.client("kms", strong).generate_random(NumberOfBytes=8)["Plaintext"]) == 8
    # No code counts twice, and one of the past never.
    for used in (code, shown.code(-1)):
        assert "invalid MFA" in answers_with("AccessDenied", sts.get_session_token, SerialNumber=serial, TokenCode=used)
    assert "both" in answers_with("AccessDenied", sts.get_session_token, SerialNumber=serial)
    # Somebody else's device is none of his.
    other, other_keys = world.user()
    message = answers_with("AccessDenied", world.client("sts", other_keys).get_session_token, SerialNumber=serial, TokenCode=shown.code(1))
    assert "associated with this user" in message


def test_a_role_that_asks_for_mfa(world):
    name, keys = world.user(policy=[allow("sts:AssumeRole")])
    serial, shown = device_of(world, name)
    trust = document({
        "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::111122223333:user/{name}"}, "Action": "sts:AssumeRole",
        "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}},
    })  # fmt: skip
    role = f"r-{name}"
    iam = world.client("iam")
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    needs = {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    iam.put_role_policy(
        RoleName=role, PolicyName="p",
        PolicyDocument=document(allow("kms:GenerateRandom"), allow("kms:ListKeys", Condition=needs)),
    )  # fmt: skip
    sts = world.client("sts", keys)
    answers_with("AccessDenied", sts.assume_role, RoleArn=arn, RoleSessionName="session")
    answers_with("AccessDenied", sts.assume_role, RoleArn=arn, RoleSessionName="session", SerialNumber=serial, TokenCode="000000")
    made = sts.assume_role(RoleArn=arn, RoleSessionName="session", SerialNumber=serial, TokenCode=shown.code())["Credentials"]
    session = (made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
    world.client("kms", session).generate_random(NumberOfBytes=8)
    # The role's own credentials say nothing of MFA, as at AWS ("Configuring MFA-protected API access").
    answers_with("AccessDeniedException", world.client("kms", session).list_keys)


def test_devices_belong_to_one_user_and_know_their_clock(world):
    iam = world.client("iam")
    name, keys = world.user()
    serial, shown = device_of(world, name, ahead=7)
    assert [d["SerialNumber"] for d in iam.list_mfa_devices(UserName=name)["MFADevices"]] == [serial]
    mine = [d for d in iam.list_virtual_mfa_devices(AssignmentStatus="Assigned")["VirtualMFADevices"] if d["SerialNumber"] == serial]
    assert mine[0]["User"]["UserName"] == name and "Base32StringSeed" not in mine[0]
    # Its clock is three and a half minutes ahead, which was learnt when it was given to the user.
    sts = world.client("sts", keys)
    sts.get_session_token(SerialNumber=serial, TokenCode=shown.code())
    other, _ = world.user()
    codes = {"AuthenticationCode1": shown.code(1), "AuthenticationCode2": shown.code(2)}
    answers_with("EntityAlreadyExists", iam.enable_mfa_device, UserName=other, SerialNumber=serial, **codes)
    answers_with("NoSuchEntity", iam.resync_mfa_device, UserName=other, SerialNumber=serial, **codes)
    answers_with("NoSuchEntity", iam.deactivate_mfa_device, UserName=other, SerialNumber=serial)
    answers_with("DeleteConflict", iam.delete_virtual_mfa_device, SerialNumber=serial)
    swapped = {"AuthenticationCode1": shown.code(3), "AuthenticationCode2": shown.code(2)}
    answers_with("InvalidAuthenticationCode", iam.resync_mfa_device, UserName=name, SerialNumber=serial, **swapped)
    iam.resync_mfa_device(UserName=name, SerialNumber=serial, **codes)
    for key in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]:
        iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
    answers_with("DeleteConflict", iam.delete_user, UserName=name)
    iam.deactivate_mfa_device(UserName=name, SerialNumber=serial)
    iam.delete_user(UserName=name)
    iam.delete_virtual_mfa_device(SerialNumber=serial)
    answers_with("NoSuchEntity", iam.delete_virtual_mfa_device, SerialNumber=serial)


def test_codes_are_not_guessed(world):
    name, keys = world.user()
    serial, shown = device_of(world, name)
    sts = world.client("sts", keys)
    wrong = f"{(int(shown.code()) + 500_000) % 1_000_000:06}"
    for _ in range(10):
        answers_with("AccessDenied", sts.get_session_token, SerialNumber=serial, TokenCode=wrong)
    assert "too many" in answers_with("AccessDenied", sts.get_session_token, SerialNumber=serial, TokenCode=shown.code())


def test_devices_and_used_codes_outlive_the_daemon(world, daemon):
    name, keys = world.user()
    serial, shown = device_of(world, name)
    code = shown.code()
    world.client("sts", keys).get_session_token(SerialNumber=serial, TokenCode=code)
    daemon.stop()
    daemon.start()
    again = World(daemon)
    sts = again.client("sts", keys)
    answers_with("AccessDenied", sts.get_session_token, SerialNumber=serial, TokenCode=code)
    sts.get_session_token(SerialNumber=serial, TokenCode=shown.code(1))
    log = (daemon.state / "audit" / "audit.jsonl").read_text()
    assert serial.replace("arn:aws:", "arn:kmsfs:") in log and f'"{code}"' not in log


def test_awss_command_line_makes_a_device(world, tmp_path):
    name, _ = world.user()
    key, secret, token = world.admin
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token,
        "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": world.endpoint, "AWS_CONFIG_FILE": "/nonexistent",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "awscli", "iam", "create-virtual-mfa-device", "--virtual-mfa-device-name", name,
        "--bootstrap-method", "Base32StringSeed", "--outfile", str(tmp_path / "seed"),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    serial = json.loads(done.stdout)["VirtualMFADevice"]["SerialNumber"]
    shown = Authenticator((tmp_path / "seed").read_bytes())
    world.client("iam").enable_mfa_device(
        UserName=name, SerialNumber=serial, AuthenticationCode1=shown.code(-1), AuthenticationCode2=shown.code()
    )
    done = subprocess.run([*command[:5], "--virtual-mfa-device-name", f"{name}-2", "--bootstrap-method", "QRCodePNG", "--outfile", str(tmp_path / "code.png")],
                          env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_picture_says_what_authenticators_read(monkeypatch):
    """Key URI format: label, seed and issuer. What is drawn of it is segno's business."""
    import segno
    from kmsd.iam.mfa import MfaDevice, _picture

    drawn = []
    make = segno.make
    monkeypatch.setattr(segno, "make", lambda text, **options: drawn.append(text) or make(text, **options))
    assert _picture(MfaDevice("arn", "111122223333", "Ann B", b"0123456789abcdefghij")).startswith(b"\x89PNG")
    [text] = drawn
    assert text == "otpauth://totp/kmsfs%3AAnn%20B%40111122223333?secret=GAYTEMZUGU3DOOBZMFRGGZDFMZTWQ2LK&issuer=kmsfs"
