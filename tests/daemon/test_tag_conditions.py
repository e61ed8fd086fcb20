"""Tags decide: those of parameters, secrets, IAM's entities and sessions, in Allow and in Deny, as for AWS's clients."""

import json
import uuid

import pytest

from conftest import DaemonProcess
from support.iamworld import World, allow, deny, document, refused

ACCOUNT = "111122223333"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0")
    assert made.init("--account", ACCOUNT).returncode == 0
    made.start()
    yield made
    made.stop()


@pytest.fixture
def world(daemon):
    return World(daemon)


def equals(**condition):
    return {"Condition": {"StringEquals": {name.replace("__", ":"): value for name, value in condition.items()}}}


def tagged(team):
    return [{"Key": "team", "Value": team}]


def fresh():
    return f"/t/{uuid.uuid4().hex[:8]}"


def test_parameters(world):
    admin = world.client("ssm")
    blue, red = fresh(), fresh()
    admin.put_parameter(Name=blue, Value="b", Type="String", Tags=tagged("blue"))
    admin.put_parameter(Name=red, Value="r", Type="String", Tags=tagged("red"))
    _, key = world.user(policy=(
        allow(["ssm:GetParameter", "ssm:DeleteParameter"], **equals(**{"aws:ResourceTag/team": "blue"})),
        allow("ssm:PutParameter", **equals(**{"aws:requesttag/TEAM": "blue"})),
        allow(["ssm:GetParameters", "ssm:GetParametersByPath"]), deny("ssm:*", **equals(**{"ssm:ResourceTag/Team": "red"})),
        deny("ssm:GetParametersByPath", **equals(**{"ssm:Recursive": "true"})), deny("ssm:PutParameter", **equals(**{"ssm:Overwrite": "true"})),
    ))  # fmt: skip
    ssm = world.client("ssm", key)
    assert ssm.get_parameter(Name=blue)["Parameter"]["Value"] == "b"
    assert refused(ssm.get_parameter, Name=red) == "AccessDeniedException"
    assert refused(ssm.get_parameters, Names=[red]) == "AccessDeniedException"
    mine = fresh()
    ssm.put_parameter(Name=mine, Value="1", Type="String", Tags=tagged("blue"))
    assert refused(ssm.put_parameter, Name=fresh(), Value="1", Type="String", Tags=tagged("red")) == "AccessDeniedException"
    assert refused(ssm.put_parameter, Name=mine, Value="2", Type="String", Overwrite=True) == "AccessDeniedException"
    assert ssm.get_parameters_by_path(Path=mine)["Parameters"] == []
    assert refused(ssm.get_parameters_by_path, Path=mine, Recursive=True) == "AccessDeniedException"
    # The tags that it has now decide.
    admin.add_tags_to_resource(ResourceType="Parameter", ResourceId=blue, Tags=tagged("red"))
    assert refused(ssm.get_parameter, Name=blue) == "AccessDeniedException"
    assert refused(ssm.delete_parameter, Name=blue) == "AccessDeniedException"
    ssm.delete_parameter(Name=mine)


def test_secrets(world):
    admin = world.client("secretsmanager")
    blue = admin.create_secret(Name=fresh(), SecretString="b", Tags=tagged("blue"))["ARN"]
    red = admin.create_secret(Name=fresh(), SecretString="r", Tags=tagged("red"))["ARN"]
    _, key = world.user(policy=(
        allow("secretsmanager:*"), allow("kms:*"), deny("secretsmanager:*", **equals(**{"secretsmanager:ResourceTag/team": "red"})),
        deny("secretsmanager:DeleteSecret", **equals(**{"secretsmanager:ForceDeleteWithoutRecovery": "true"})),
        deny("secretsmanager:GetSecretValue", **equals(**{"secretsmanager:VersionStage": "AWSPREVIOUS"})),
        deny("secretsmanager:CreateSecret", **{"Condition": {"StringNotLike": {"secretsmanager:Name": "/t/*"}}}),
    ))  # fmt: skip
    secrets = world.client("secretsmanager", key)
    assert secrets.get_secret_value(SecretId=blue)["SecretString"] == "b"
    for act in (secrets.get_secret_value, secrets.describe_secret):
        assert refused(act, SecretId=red) in ("ResourceNotFoundException", "AccessDeniedException")
    names = [entry["ARN"] for page in secrets.get_paginator("list_secrets").paginate() for entry in page["SecretList"]]
    assert blue in names
    assert red not in names
    assert refused(secrets.get_secret_value, SecretId=blue, VersionStage="AWSPREVIOUS") == "AccessDeniedException"
    assert refused(secrets.delete_secret, SecretId=blue, ForceDeleteWithoutRecovery=True) == "AccessDeniedException"
    assert refused(secrets.create_secret, Name="elsewhere", SecretString="x") == "AccessDeniedException"
    # A resource policy sees them too, and the request's own.
    admin.put_resource_policy(SecretId=blue, ResourcePolicy=document(
        {"Effect": "Deny", "Principal": "*", "Action": "secretsmanager:TagResource", "Resource": "*", **equals(**{"aws:RequestTag/team": "red"})},
    ))  # fmt: skip
    assert refused(secrets.tag_resource, SecretId=blue, Tags=tagged("red")) == "AccessDeniedException"
    secrets.tag_resource(SecretId=blue, Tags=[{"Key": "other", "Value": "x"}])


def test_who_has_the_tag_of_what_he_wants(world):
    """ABAC as AWS's guide has it: one policy for all teams."""
    admin = world.client("ssm")
    blue, red = fresh(), fresh()
    admin.put_parameter(Name=blue, Value="b", Type="String", Tags=tagged("blue"))
    admin.put_parameter(Name=red, Value="r", Type="String", Tags=tagged("red"))
    same = allow("ssm:GetParameter", **equals(**{"aws:ResourceTag/Team": "${aws:PrincipalTag/TEAM}"}))
    name, key = world.user(policy=(same,), Tags=tagged("blue"))
    ssm = world.client("ssm", key)
    assert ssm.get_parameter(Name=blue)["Parameter"]["Value"] == "b"
    assert refused(ssm.get_parameter, Name=red) == "AccessDeniedException"
    world.client("iam").untag_user(UserName=name, TagKeys=["team"])
    assert refused(ssm.get_parameter, Name=blue) == "AccessDeniedException"


def test_tags_of_a_session(world):
    iam, admin = world.client("iam"), world.client("ssm")
    red, role = fresh(), f"r-{uuid.uuid4().hex[:8]}"
    admin.put_parameter(Name=red, Value="r", Type="String", Tags=tagged("red"))
    trust = {
        "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": ["sts:AssumeRole", "sts:TagSession"],
    }  # fmt: skip
    arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=document(trust), Tags=tagged("blue"))["Role"]["Arn"]
    same = allow("ssm:GetParameter", **equals(**{"aws:ResourceTag/team": "${aws:PrincipalTag/team}"}))
    iam.put_role_policy(RoleName=role, PolicyName="same", PolicyDocument=document(same))
    _, key = world.user(policy=(
        allow("sts:AssumeRole"), allow("sts:TagSession", **equals(**{"aws:RequestTag/team": ["red", "blue"]})),
    ))  # fmt: skip
    sts = world.client("sts", key)

    def session(**options):
        made = sts.assume_role(RoleArn=arn, RoleSessionName="on-call", **options)["Credentials"]
        return world.client("ssm", (made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]))

    assert refused(session().get_parameter, Name=red) == "AccessDeniedException"
    assert session(Tags=tagged("red")).get_parameter(Name=red)["Parameter"]["Value"] == "r"
    assert refused(session, Tags=tagged("green")) == refused(session, Tags=[{"Key": "x", "Value": "y"}]) == "AccessDenied"
    # Whom the trust policy does not let tag, cannot.
    trust["Action"] = "sts:AssumeRole"
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=document(trust))
    assert refused(session, Tags=tagged("red")) == "AccessDenied"
    session()


def test_entities_of_iam(world):
    iam = world.client("iam")
    red, _ = world.user(Tags=tagged("red"))
    blue, _ = world.user(Tags=tagged("blue"))
    _, key = world.user(policy=(
        allow("iam:*"), deny("iam:DeleteUser", **equals(**{"iam:ResourceTag/team": "red"})),
        deny("iam:CreateUser", **{"Condition": {"Null": {"aws:RequestTag/team": "true"}}}),
    ))  # fmt: skip
    mine = world.client("iam", key)
    assert refused(mine.delete_user, UserName=red) == "AccessDenied"
    assert refused(mine.create_user, UserName=f"n-{uuid.uuid4().hex[:8]}") == "AccessDenied"
    mine.create_user(UserName=f"n-{uuid.uuid4().hex[:8]}", Tags=tagged("red"))
    found = iam.simulate_principal_policy(
        PolicySourceArn=iam.get_user(UserName=blue)["User"]["Arn"], ActionNames=["ssm:GetParameter"],
        PolicyInputList=[document(allow("ssm:GetParameter", **equals(**{"aws:PrincipalTag/team": "blue", "aws:ResourceTag/a": "b"})))],
        ContextEntries=[{"ContextKeyName": "aws:ResourceTag/a", "ContextKeyValues": ["b"], "ContextKeyType": "string"}],
    )  # fmt: skip
    assert found["EvaluationResults"][0]["EvalDecision"] == "allowed"


def test_aliases_of_a_key(world):
    kms = world.client("kms")
    root = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "kms:*", "Resource": "*"}
    key = kms.create_key(Policy=document(root))["KeyMetadata"]["KeyId"]
    name = f"alias/{uuid.uuid4().hex[:8]}"
    _, who = world.user(policy=(
        allow("kms:Encrypt", Condition={"ForAnyValue:StringEquals": {"kms:ResourceAliases": [name]}}),
    ))  # fmt: skip
    mine = world.client("kms", who)
    assert refused(mine.encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
    kms.create_alias(AliasName=name, TargetKeyId=key)
    mine.encrypt(KeyId=key, Plaintext=b"x")
    other = kms.create_key(Policy=document(root))["KeyMetadata"]["KeyId"]
    kms.update_alias(AliasName=name, TargetKeyId=other)
    assert refused(mine.encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
    mine.encrypt(KeyId=other, Plaintext=b"x")
    kms.delete_alias(AliasName=name)
    assert refused(mine.encrypt, KeyId=other, Plaintext=b"x") == "AccessDeniedException"
    assert json.loads(kms.get_key_policy(KeyId=key)["Policy"])["Statement"]


@pytest.mark.parametrize("kind", ["user", "role", "policy", "mfa_device"])
def test_tags_of_iam_come_and_go(world, kind):
    iam, name = world.client("iam"), f"n-{uuid.uuid4().hex[:8]}"
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    make = {
        "user": lambda **more: {"UserName": iam.create_user(UserName=name, **more)["User"]["UserName"]},
        "role": lambda **more: {"RoleName": iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust, **more)["Role"]["RoleName"]},
        "policy": lambda **more: {"PolicyArn": iam.create_policy(PolicyName=name, PolicyDocument=document(allow("kms:*")), **more)["Policy"]["Arn"]},
        "mfa_device": lambda **more: {"SerialNumber": iam.create_virtual_mfa_device(VirtualMFADeviceName=name, **more)["VirtualMFADevice"]["SerialNumber"]},
    }[kind]  # fmt: skip
    named = make(Tags=tagged("red"))
    give, take, listing = (getattr(iam, text) for text in (f"tag_{kind}", f"untag_{kind}", f"list_{kind}_tags"))
    assert listing(**named)["Tags"] == tagged("red")
    # The case of a key does not count; the newer spelling stays.
    give(**named, Tags=[{"Key": "Team", "Value": "blue"}, {"Key": "a", "Value": ""}])
    assert listing(**named)["Tags"] == [{"Key": "Team", "Value": "blue"}, {"Key": "a", "Value": ""}]
    first = listing(**named, MaxItems=1)
    assert first["IsTruncated"]
    assert listing(**named, Marker=first["Marker"])["Tags"] == [{"Key": "a", "Value": ""}]
    take(**named, TagKeys=["A", "none"])
    assert listing(**named)["Tags"] == [{"Key": "Team", "Value": "blue"}]
    assert refused(give, **named, Tags=[{"Key": "k", "Value": "1"}, {"Key": "K", "Value": "2"}]) == "InvalidInput"
    assert refused(give, **named, Tags=[{"Key": "aws:x", "Value": "1"}]) == "InvalidInput"
    give(**named, Tags=[{"Key": f"k{number}", "Value": ""} for number in range(49)])
    assert refused(give, **named, Tags=[{"Key": "one-more", "Value": ""}]) == "LimitExceeded"
    assert len(listing(**named)["Tags"]) == 50
    other = {key: value.replace(name, "nobody-at-all") for key, value in named.items()}
    assert refused(give, **other, Tags=tagged("red")) == refused(listing, **other) == "NoSuchEntity"
    # Who may not, cannot.
    _, key = world.user(policy=(allow("iam:Get*"),))
    mine = world.client("iam", key)
    for act, more in (("tag", {"Tags": tagged("red")}), ("untag", {"TagKeys": ["team"]})):
        assert refused(getattr(mine, f"{act}_{kind}"), **named, **more) == "AccessDenied"
    assert refused(getattr(mine, f"list_{kind}_tags"), **named) == "AccessDenied"


def test_transitive_tags_go_on_from_role_to_role(world):
    """IAM user guide, "Chaining roles with session tags": they stay through every role, and nobody replaces them."""
    iam, admin = world.client("iam"), world.client("ssm")
    red = fresh()
    admin.put_parameter(Name=red, Value="r", Type="String", Tags=tagged("red"))
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": ["sts:AssumeRole", "sts:TagSession"]}
    same = allow("ssm:GetParameter", **equals(**{"aws:ResourceTag/team": "${aws:PrincipalTag/team}"}))
    roles = []
    for _ in range(3):
        name = f"r-{uuid.uuid4().hex[:8]}"
        roles.append(iam.create_role(RoleName=name, AssumeRolePolicyDocument=document(trust), Tags=tagged("green"))["Role"]["Arn"])
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=document(same, allow(["sts:AssumeRole", "sts:TagSession"])))
    _, user = world.user(policy=(
        allow("sts:AssumeRole"), allow("sts:TagSession", **{"Condition": {"ForAllValues:StringEquals": {"sts:TransitiveTagKeys": ["team", "Case"]}}}),
    ))  # fmt: skip

    def assume(who, role, **options):
        made = world.client("sts", who).assume_role(RoleArn=role, RoleSessionName="chained", **options)["Credentials"]
        return made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]

    def reads(who):
        return "refused" if refused_at(world.client("ssm", who).get_parameter, Name=red) else "reads"

    def refused_at(call, **parameters):
        try:
            call(**parameters)
        except Exception as error:
            assert "AccessDenied" in str(error)
            return True
        return False

    once = assume(user, roles[0], Tags=tagged("red"))
    assert reads(once) == "reads" and reads(assume(once, roles[1])) == "refused"  # not transitive: the second role has its own tag
    first = assume(user, roles[0], Tags=tagged("red"), TransitiveTagKeys=["team"])
    second = assume(first, roles[1])
    third = assume(second, roles[2], Tags=[{"Key": "other", "Value": "x"}])
    assert [reads(who) for who in (first, second, third)] == ["reads"] * 3
    for who in (first, second, third):
        for key in ("team", "TEAM"):
            assert refused(world.client("sts", who).assume_role, RoleArn=roles[0], RoleSessionName="chained", Tags=[{"Key": key, "Value": "blue"}]) == "InvalidParameterValue"
    assert refused(world.client("sts", user).assume_role, RoleArn=roles[0], RoleSessionName="chained", TransitiveTagKeys=["team"]) == "InvalidParameterValue"
    # Which keys may go on is a condition of the policy that lets tag.
    other = {"Tags": [{"Key": "loose", "Value": "x"}], "TransitiveTagKeys": ["loose"]}
    assert refused(world.client("sts", user).assume_role, RoleArn=roles[0], RoleSessionName="chained", **other) == "AccessDenied"
