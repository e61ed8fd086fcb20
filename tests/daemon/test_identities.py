"""Whom policies, grants and trust mean when a user or role goes, or gets another name."""

import base64
import json
import signal
import time

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from conftest import DaemonProcess
from support.iamworld import World, allow, document, refused

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


def key_for(world, arn, *more):
    """A key whose policy lets its maker and `arn` use it."""
    kms = world.client("kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    policy = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    policy["Statement"] += [{"Sid": "him", "Effect": "Allow", "Principal": {"AWS": arn}, "Action": ["kms:Encrypt", "kms:DescribeKey"], "Resource": "*"}, *more]
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    return key


def him_in(text):
    return next(statement for statement in json.loads(text)["Statement"] if statement.get("Sid") == "him")["Principal"]["AWS"]


def without_keys(world, name):
    iam = world.client("iam")
    for each in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]:
        iam.delete_access_key(UserName=name, AccessKeyId=each["AccessKeyId"])


def test_who_is_made_anew_under_a_name_has_nothing_of_who_had_it_before(world, daemon):
    iam, kms, secrets = (world.client(service) for service in ("iam", "kms", "secretsmanager"))
    name, credentials = world.user()
    user = iam.get_user(UserName=name)["User"]
    key = key_for(world, user["Arn"])
    grant = kms.create_grant(KeyId=key, GranteePrincipal=user["Arn"], RetiringPrincipal=user["Arn"], Operations=["Decrypt", "GenerateDataKey"])["GrantId"]
    secret = secrets.create_secret(Name=f"of-{name}", SecretString="x")["ARN"]
    statement = {"Sid": "him", "Effect": "Allow", "Principal": {"AWS": user["Arn"]}, "Action": "secretsmanager:*", "Resource": "*"}
    secrets.put_resource_policy(SecretId=secret, ResourcePolicy=document(statement))
    trust = {"Sid": "him", "Effect": "Allow", "Principal": {"AWS": [user["Arn"], f"arn:aws:iam::{ACCOUNT}:root"]}, "Action": "sts:AssumeRole"}
    role = iam.create_role(RoleName=f"r-{name}", AssumeRolePolicyDocument=document(trust))["Role"]["Arn"]

    def allowed(who):
        return [
            may(world.client("kms", who).encrypt, KeyId=key, Plaintext=b"x"), may(world.client("kms", who).generate_data_key, KeyId=key, KeySpec="AES_256"),
            may(world.client("secretsmanager", who).describe_secret, SecretId=secret), may(world.client("sts", who).assume_role, RoleArn=role, RoleSessionName="session"),
        ]  # fmt: skip

    assert allowed(credentials) == [True] * 4
    without_keys(world, name)
    iam.delete_user(UserName=name)
    assert him_in(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == user["UserId"]
    assert him_in(secrets.get_resource_policy(SecretId=secret)["ResourcePolicy"]) == user["UserId"]
    trusted = iam.get_role(RoleName=f"r-{name}")["Role"]["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["AWS"]
    assert trusted == [user["UserId"], f"arn:aws:iam::{ACCOUNT}:root"]
    [listed] = kms.list_grants(KeyId=key)["Grants"]
    assert (listed["GrantId"], listed["GranteePrincipal"], listed["RetiringPrincipal"]) == (grant, user["UserId"], user["UserId"])
    _, again = world.user(name)
    assert allowed(again) == [False] * 4
    assert refused(world.client("kms", again).retire_grant, KeyId=key, GrantId=grant) == "AccessDeniedException"
    # Nor after a restart, nor after a kill.
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon.stop(number)
        daemon.start()
        world = World(daemon)
        assert allowed(again) == [False] * 4
    session = daemon.session()
    # Nor does a grant to one who never was keep anybody from being told.
    never = session.call("CreateGrant", {"KeyId": key, "GranteePrincipal": f"arn:kmsfs:iam::{ACCOUNT}:user/never", "Operations": ["Encrypt"]})["GrantId"]
    answer = session.call("ListAuthorizedPrincipals", {"KeyId": key, "Action": "kms:Encrypt"})
    told = {each["Principal"] for each in answer["Principals"]}
    assert told and user["UserId"] not in told and not any("never" in each for each in told)
    session.call("RevokeGrant", {"KeyId": key, "GrantId": never})
    # Whom a policy means is said anew, not by the id of who is gone.
    text = world.client("kms").get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    assert refused(world.client("kms").put_key_policy, KeyId=key, PolicyName="default", Policy=text) == "MalformedPolicyDocumentException"
    world.client("kms").put_key_policy(KeyId=key, PolicyName="default", Policy=text.replace(user["UserId"], user["Arn"]))
    assert allowed(again) == [True, False, False, False]
    world.client("kms").revoke_grant(KeyId=key, GrantId=grant)


def may(call, **parameters):
    try:
        call(**parameters)
    except Exception as error:
        assert "AccessDenied" in str(error) or "find the specified secret" in str(error), error
        return False
    return True


def test_so_with_roles_and_with_what_was_excepted(world):
    iam, kms = world.client("iam"), world.client("kms")
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    role = iam.create_role(RoleName="auditor", AssumeRolePolicyDocument=trust)["Role"]
    deny_others = {
        "Effect": "Deny", "NotPrincipal": {"AWS": [role["Arn"], f"arn:aws:iam::{ACCOUNT}:root", f"arn:aws:iam::{ACCOUNT}:uid/0"]}, "Action": "kms:Encrypt", "Resource": "*",
        "Condition": {"StringNotEquals": {"kms:EncryptionContext:who": role["Arn"]}},
    }  # fmt: skip
    key = key_for(world, role["Arn"], deny_others)
    before = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    _, caller = world.user(policy=[allow("sts:AssumeRole")])

    def assumed():
        made = world.client("sts", caller).assume_role(RoleArn=role["Arn"], RoleSessionName="session")["Credentials"]
        return made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]

    assert may(world.client("kms", assumed()).encrypt, KeyId=key, Plaintext=b"x")
    iam.delete_role(RoleName="auditor")
    after = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    said = json.loads(after)["Statement"]
    assert role["RoleId"].startswith("AROA") and him_in(after) == role["RoleId"]
    assert said[-1]["NotPrincipal"]["AWS"][0] == role["RoleId"]
    # A condition compares texts: it is not about who has the name now.
    assert said[-1]["Condition"] == deny_others["Condition"]
    assert len(json.loads(before)["Statement"]) == len(said)
    iam.create_role(RoleName="auditor", AssumeRolePolicyDocument=trust)
    assert not may(world.client("kms", assumed()).encrypt, KeyId=key, Plaintext=b"x")


def test_who_cannot_be_removed_stays_in_what_names_him(world):
    iam, kms = world.client("iam"), world.client("kms")
    name, _ = world.user()
    arn = iam.get_user(UserName=name)["User"]["Arn"]
    key = key_for(world, arn)
    assert refused(iam.delete_user, UserName=name) == "DeleteConflict"
    assert him_in(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == arn


def test_a_mount_of_who_was_removed_learns_of_it(world, daemon):
    """The key's generation grows, so that whoever holds what it opened asks again."""
    name, _ = world.user()
    iam = world.client("iam")
    key = key_for(world, iam.get_user(UserName=name)["User"]["Arn"])
    session = daemon.session()
    transport = session.open_transport()
    transport.call("Watch", {"KeyIds": [key]})
    without_keys(world, name)
    iam.delete_user(UserName=name)
    while True:
        event = transport.receive(timeout=10).get("ev")
        if event and event["kind"] != "heartbeat":
            break
    assert event["kind"] == "policy" and event["generation"] > 1
    transport.close()


def given_device(iam, name):
    """An MFA device of a user's."""
    made = iam.create_virtual_mfa_device(VirtualMFADeviceName=name)["VirtualMFADevice"]
    codes = TOTP(base64.b32decode(made["Base32StringSeed"]), 6, SHA1(), 30)
    now = int(time.time())
    first, second = (codes.generate(now + ahead).decode() for ahead in (0, 30))
    iam.enable_mfa_device(UserName=name, SerialNumber=made["SerialNumber"], AuthenticationCode1=first, AuthenticationCode2=second)
    return made["SerialNumber"]


# --- other names ------------------------------------------------------------------------------------------------


def test_a_user_with_another_name_stays_who_he_is(world, daemon):
    iam, kms = world.client("iam"), world.client("kms")
    name, credentials = world.user(policy=[allow(["sts:GetSessionToken", "iam:GetUser"])])
    before = iam.get_user(UserName=name)["User"]
    iam.create_group(GroupName=f"g-{name}")
    iam.add_user_to_group(GroupName=f"g-{name}", UserName=name)
    device = given_device(iam, name)
    key = key_for(world, before["Arn"])
    grant = kms.create_grant(KeyId=key, GranteePrincipal=before["Arn"], Operations=["Decrypt", "GenerateDataKey"])["GrantId"]
    session = world.client("sts", credentials).get_session_token()["Credentials"]
    session = session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"]
    new = f"new-{name}"
    iam.update_user(UserName=name, NewUserName=new, NewPath="/staff/")
    after = iam.get_user(UserName=new)["User"]
    assert after["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/staff/{new}" and after["UserId"] == before["UserId"]
    assert refused(iam.get_user, UserName=name) == "NoSuchEntity"
    assert him_in(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == after["Arn"]
    assert [each["GranteePrincipal"] for each in kms.list_grants(KeyId=key)["Grants"]] == [after["Arn"]]
    assert iam.get_mfa_device(SerialNumber=device, UserName=new)["UserName"] == new
    assert [each["SerialNumber"] for each in iam.list_mfa_devices(UserName=new)["MFADevices"]] == [device]
    assert [each["UserName"] for each in iam.get_group(GroupName=f"g-{name}")["Users"]] == [new]

    def works(world):
        for who in (credentials, session):
            assert world.client("sts", who).get_caller_identity()["Arn"] == after["Arn"]
            assert world.client("kms", who).generate_data_key(KeyId=key, KeySpec="AES_256")["Plaintext"]
            assert world.client("kms", who).encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        assert world.client("iam", credentials).get_user()["User"]["UserName"] == new

    works(world)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    world = World(daemon)
    works(world)
    iam = world.client("iam")
    # His path alone, and the case of his name alone.
    iam.update_user(UserName=new, NewPath="/")
    assert iam.get_user(UserName=new)["User"]["Path"] == "/"
    iam.update_user(UserName=new, NewUserName=new.upper())
    after = iam.get_user(UserName=new)["User"]
    assert after["UserName"] == new.upper()
    other, _ = world.user()
    assert refused(iam.update_user, UserName=new, NewUserName=other.upper()) == "EntityAlreadyExists"
    assert refused(iam.update_user, UserName="nobody", NewPath="/") == "NoSuchEntity"
    iam.update_user(UserName=new)
    # Who gets the old name is somebody else.
    _, somebody = world.user(name)
    assert not may(world.client("kms", somebody).encrypt, KeyId=key, Plaintext=b"x")
    world.client("kms").revoke_grant(KeyId=key, GrantId=grant)


def test_a_name_that_makes_a_policy_too_long_is_refused_and_nothing_has_changed(world):
    iam, kms = world.client("iam"), world.client("kms")
    name, _ = world.user(name="x")
    arn = iam.get_user(UserName=name)["User"]["Arn"]
    key = key_for(world, arn)
    policy = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    policy["Statement"][-1]["Condition"] = {"StringNotEquals": {"kms:EncryptionContext:a": ""}}
    policy["Statement"][-1]["Condition"]["StringNotEquals"]["kms:EncryptionContext:a"] = "x" * (32_768 - len(json.dumps(policy).replace("arn:aws:", "arn:kmsfs:")))
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
    assert refused(iam.update_user, UserName=name, NewUserName="a-longer-name") in ("LimitExceeded", "LimitExceededException")
    assert iam.get_user(UserName=name)["User"]["Arn"] == arn
    assert him_in(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == arn
    iam.update_user(UserName=name, NewUserName="y")
    without_keys(world, "y")
    iam.delete_user(UserName="y")


def test_groups_and_roles(world):
    iam = world.client("iam")
    name, credentials = world.user()
    iam.create_group(GroupName="before")
    iam.put_group_policy(GroupName="before", PolicyName="p", PolicyDocument=document(allow("kms:ListKeys")))
    iam.add_user_to_group(GroupName="before", UserName=name)
    iam.update_group(GroupName="before", NewGroupName="after", NewPath="/x/")
    assert [group["Arn"] for group in iam.list_groups_for_user(UserName=name)["Groups"]] == [f"arn:aws:iam::{ACCOUNT}:group/x/after"]
    assert may(world.client("kms", credentials).list_keys)
    assert refused(iam.get_group, GroupName="before") == "NoSuchEntity"
    iam.create_group(GroupName="third")
    assert refused(iam.update_group, GroupName="third", NewGroupName="AFTER") == "EntityAlreadyExists"
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    iam.create_role(RoleName="worker", AssumeRolePolicyDocument=trust, Description="old")
    iam.update_role(RoleName="worker", MaxSessionDuration=7200)
    assert (iam.get_role(RoleName="worker")["Role"]["Description"], iam.get_role(RoleName="worker")["Role"]["MaxSessionDuration"]) == ("old", 7200)
    iam.update_role(RoleName="worker", Description="new")
    assert (iam.get_role(RoleName="worker")["Role"]["Description"], iam.get_role(RoleName="worker")["Role"]["MaxSessionDuration"]) == ("new", 7200)
    assert iam.update_role_description(RoleName="worker", Description="newest")["Role"]["Description"] == "newest"
    assert refused(iam.update_role, RoleName="nobody") == "NoSuchEntity"


def test_who_renames_must_be_allowed_both_names(world):
    """Else whoever may rename below one path could take anybody to where other policies count."""
    team = f"arn:aws:iam::{ACCOUNT}:user/team/*"
    _, caller = world.user(policy=[
        allow("iam:UpdateUser", team), allow("iam:UpdateUser", f"arn:aws:iam::{ACCOUNT}:user/tagged/*", Condition={"StringEquals": {"aws:ResourceTag/team": "blue"}}),
        allow("iam:UpdateGroup", f"arn:aws:iam::{ACCOUNT}:group/team/*"),
    ])  # fmt: skip
    his, admin = world.client("iam", caller), world.client("iam")
    name, _ = world.user(Path="/team/", Tags=[{"Key": "team", "Value": "blue"}])
    assert refused(his.update_user, UserName=name, NewPath="/admin/") == "AccessDenied"
    his.update_user(UserName=name, NewPath="/team/sub/")
    his.update_user(UserName=name, NewUserName=f"{name}-2")
    his.update_user(UserName=f"{name}-2", NewPath="/tagged/")
    assert refused(his.update_user, UserName=f"{name}-2", NewPath="/") == "AccessDenied"
    assert admin.get_user(UserName=f"{name}-2")["User"]["Path"] == "/tagged/"
    admin.create_group(GroupName=f"g-{name}", Path="/team/")
    assert refused(his.update_group, GroupName=f"g-{name}", NewPath="/") == "AccessDenied"
    his.update_group(GroupName=f"g-{name}", NewGroupName=f"h-{name}")
    assert refused(his.update_user, UserName="nobody", NewPath="/team/") == "AccessDenied"


@pytest.mark.parametrize(
    "policy",
    ["{", '{"Version": "2012-10-17"}', document(allow("kms:*", Condition={"DateLessThan": {"aws:CurrentTime": "tomorrow"}})), document(allow("kms:*", "key/x"))],
)
def test_a_session_gets_no_policy_that_nobody_could_store(world, policy):
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    name, caller = world.user(policy=[allow("sts:AssumeRole")])
    role = world.client("iam").create_role(RoleName=f"s-{name}", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    sts = world.client("sts", caller)
    assert refused(sts.assume_role, RoleArn=role, RoleSessionName="session", Policy=policy) == "MalformedPolicyDocument"
    assert sts.assume_role(RoleArn=role, RoleSessionName="session", Policy=document(allow("kms:*")))["Credentials"]


# --- overviews --------------------------------------------------------------------------------------------------


def test_who_has_a_policy(world):
    iam = world.client("iam")
    arn = iam.create_policy(PolicyName="wanted", PolicyDocument=document(allow("kms:ListKeys")))["Policy"]["Arn"]
    name, _ = world.user()
    limited, _ = world.user(PermissionsBoundary=arn, Path="/limited/")
    iam.attach_user_policy(UserName=name, PolicyArn=arn)
    iam.create_group(GroupName="havers")
    iam.attach_group_policy(GroupName="havers", PolicyArn=arn)

    def found(**more):
        answer = iam.get_paginator("list_entities_for_policy").paginate(PolicyArn=arn, PaginationConfig={"PageSize": 1}, **more).build_full_result()
        return sorted(each.get("UserName") or each.get("GroupName") for kind in ("PolicyUsers", "PolicyGroups", "PolicyRoles") for each in answer[kind])

    assert found() == sorted([name, limited, "havers"])
    assert found(EntityFilter="User") == sorted([name, limited]) and found(EntityFilter="AWSManagedPolicy") == []
    assert found(PolicyUsageFilter="PermissionsBoundary") == [limited] and found(PolicyUsageFilter="PermissionsPolicy") == sorted([name, "havers"])
    assert found(PathPrefix="/limited/") == [limited]
    assert refused(iam.list_entities_for_policy, PolicyArn=arn + "x") == "NoSuchEntity"


def test_everybody_with_what_he_may_do(world):
    iam = world.client("iam")
    name, _ = world.user(policy=[allow("kms:ListKeys")], Tags=[{"Key": "a", "Value": "b"}])
    arn = iam.create_policy(PolicyName=f"p-{name}", PolicyDocument=document(allow("kms:ListAliases")))["Policy"]["Arn"]
    iam.attach_user_policy(UserName=name, PolicyArn=arn)
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/{name}"}, "Action": "sts:AssumeRole"})
    iam.create_role(RoleName=f"r-{name}", AssumeRolePolicyDocument=trust)
    pages = iam.get_paginator("get_account_authorization_details")
    whole = pages.paginate(PaginationConfig={"PageSize": 2}).build_full_result()
    [user] = [each for each in whole["UserDetailList"] if each["UserName"] == name]
    assert user["UserPolicyList"][0]["PolicyDocument"]["Statement"][0]["Action"] == "kms:ListKeys" and user["Tags"] == [{"Key": "a", "Value": "b"}]
    assert user["AttachedManagedPolicies"] == [{"PolicyName": f"p-{name}", "PolicyArn": arn}]
    [role] = [each for each in whole["RoleDetailList"] if each["RoleName"] == f"r-{name}"]
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["AWS"] == f"arn:aws:iam::{ACCOUNT}:user/{name}"
    [policy] = [each for each in whole["Policies"] if each["Arn"] == arn]
    assert policy["AttachmentCount"] == 1 and policy["PolicyVersionList"][0]["Document"]["Statement"][0]["Action"] == "kms:ListAliases"
    only = pages.paginate(Filter=["Group"]).build_full_result()
    assert only["UserDetailList"] == only["RoleDetailList"] == only["Policies"] == []
    summary = iam.get_account_summary()["SummaryMap"]
    assert summary["Users"] == len(whole["UserDetailList"]) and summary["UsersQuota"] == 5000 and summary["Policies"] == len(whole["Policies"])


def test_when_an_access_key_was_used_last(world, daemon):
    iam = world.client("iam")
    name, credentials = world.user()
    asked = lambda: iam.get_access_key_last_used(AccessKeyId=credentials[0])  # noqa: E731
    assert asked()["UserName"] == name and asked()["AccessKeyLastUsed"] == {"ServiceName": "N/A", "Region": "N/A"}
    assert not may(world.client("kms", credentials, region="eu-west-1").list_keys)
    used = asked()["AccessKeyLastUsed"]
    assert (used["ServiceName"], used["Region"]) == ("kms", "eu-west-1") and used["LastUsedDate"].year >= 2026
    # Not by who only says that he has it.
    refused(world.client("sts", (credentials[0], "wrong")).get_caller_identity)
    assert asked()["AccessKeyLastUsed"]["ServiceName"] == "kms"
    assert refused(iam.get_access_key_last_used, AccessKeyId="AKIAAAAAAAAAAAAAAAAA") == "AccessDenied"


def test_policies_are_tried_out_before_anybody_has_them(world):
    iam = world.client("iam")

    def said(policies, action="kms:Decrypt", limits=(), **more):
        answer = iam.simulate_custom_policy(PolicyInputList=[document(*policies)], ActionNames=[action], PermissionsBoundaryPolicyInputList=[document(*limits)] if limits else [], **more)
        return answer["EvaluationResults"][0]["EvalDecision"]

    assert said([allow("kms:*")]) == "allowed" and said([allow("kms:Encrypt")]) == "implicitDeny"
    assert said([allow("kms:*"), {**allow("kms:Decrypt"), "Effect": "Deny"}]) == "explicitDeny"
    assert said([allow("kms:*")], limits=[allow("ssm:*")]) == "implicitDeny" and said([allow("kms:*")], limits=[allow("kms:*")]) == "allowed"
    office = allow("kms:*", Condition={"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}})
    entry = lambda address: {"ContextEntries": [{"ContextKeyName": "aws:SourceIp", "ContextKeyType": "ip", "ContextKeyValues": [address]}]}  # noqa: E731
    assert said([office], **entry("203.0.113.4")) == "allowed" and said([office], **entry("198.51.100.4")) == "implicitDeny"
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/x"
    assert said([allow("kms:*", key)], ResourceArns=[key]) == "allowed" and said([allow("kms:*", key)], ResourceArns=[key + "y"]) == "implicitDeny"
    assert refused(iam.simulate_custom_policy, PolicyInputList=["{"], ActionNames=["kms:Decrypt"]) == "MalformedPolicyDocument"


def test_what_tools_ask_before_they_remove_somebody(world):
    iam = world.client("iam")
    name, credentials = world.user(policy=[allow("iam:*")])
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    iam.create_role(RoleName=f"r-{name}", AssumeRolePolicyDocument=trust)
    assert iam.list_instance_profiles_for_role(RoleName=f"r-{name}")["InstanceProfiles"] == [] == iam.list_instance_profiles()["InstanceProfiles"]
    assert iam.list_ssh_public_keys(UserName=name)["SSHPublicKeys"] == [] and iam.list_signing_certificates(UserName=name)["Certificates"] == []
    assert iam.list_service_specific_credentials(UserName=name)["ServiceSpecificCredentials"] == [] == iam.list_account_aliases()["AccountAliases"]
    his = world.client("iam", credentials)
    assert his.list_ssh_public_keys()["SSHPublicKeys"] == [] and refused(his.get_login_profile) == "NoSuchEntity"
    for call in (iam.list_ssh_public_keys, iam.list_signing_certificates, iam.list_service_specific_credentials, iam.get_login_profile):
        assert refused(call, UserName="nobody") == "NoSuchEntity"
    assert refused(iam.list_instance_profiles_for_role, RoleName="nobody") == "NoSuchEntity"
    device = iam.create_virtual_mfa_device(VirtualMFADeviceName=f"d-{name}")["VirtualMFADevice"]["SerialNumber"]
    assert iam.get_mfa_device(SerialNumber=device)["SerialNumber"] == device
    assert refused(iam.get_mfa_device, SerialNumber=device, UserName=name) == "NoSuchEntity" == refused(iam.get_mfa_device, SerialNumber=device + "x")


# --- as AWS's clients see it ------------------------------------------------------------------------------------------------


def test_lists_have_less_of_each_than_the_operation_that_gets_one(world):
    iam = world.client("iam")
    tags = [{"Key": "team", "Value": "a"}]
    boundary = iam.create_policy(PolicyName="b-lists", PolicyDocument=document(allow("*")), Description="all", Tags=tags)["Policy"]
    assert boundary["Tags"] == tags and "Description" not in boundary
    boundary = boundary["Arn"]
    trust = document({"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"})
    iam.create_user(UserName="u-lists", PermissionsBoundary=boundary, Tags=tags)
    iam.create_role(RoleName="r-lists", AssumeRolePolicyDocument=trust, PermissionsBoundary=boundary, Tags=tags, Description="a role")
    user, role = iam.get_user(UserName="u-lists")["User"], iam.get_role(RoleName="r-lists")["Role"]
    policy = iam.get_policy(PolicyArn=boundary)["Policy"]
    [listed] = [each for each in iam.list_users()["Users"] if each["UserName"] == "u-lists"]
    assert user == {**listed, "PermissionsBoundary": user["PermissionsBoundary"], "Tags": tags}
    [listed] = [each for each in iam.list_roles()["Roles"] if each["RoleName"] == "r-lists"]
    assert role == {**listed, "PermissionsBoundary": role["PermissionsBoundary"], "Tags": tags} and listed["Description"] == "a role"
    [listed] = [each for each in iam.list_policies()["Policies"] if each["Arn"] == boundary]
    assert policy == {**listed, "Description": "all", "Tags": tags}
    iam.untag_policy(PolicyArn=boundary, TagKeys=["team"])
    assert iam.get_policy(PolicyArn=boundary)["Policy"]["Tags"] == []


def test_tags_of_letters_digits_and_some_signs_alone(world):
    iam = world.client("iam")
    iam.create_user(UserName="u-tags", Tags=[{"Key": "Größe_1.:/=+-@ x", "Value": ""}])
    for key, value in (("a!", "x"), ("a", "x*"), ("b;", "")):
        assert refused(iam.tag_user, UserName="u-tags", Tags=[{"Key": key, "Value": value}]) == "ValidationError"
    assert refused(iam.untag_user, UserName="u-tags", TagKeys=["a!"]) == "ValidationError"
    assert iam.list_user_tags(UserName="u-tags")["Tags"] == [{"Key": "Größe_1.:/=+-@ x", "Value": ""}]


def test_policies_as_they_stand_in_accounts_of_aws(world):
    iam, kms = world.client("iam"), world.client("kms")
    name, credentials = world.user()
    key = kms.create_key()["KeyMetadata"]
    statement = {"Effect": "Allow", "Action": ["ec2:AssignIpv6Addresses", "execute-api:Invoke", "SSM:describeparameters"], "Resource": "*"}
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document(statement))
    assert "Parameters" in world.client("ssm", credentials).describe_parameters()
    assert refused(world.client("kms", credentials).list_aliases) == "AccessDeniedException"
    policy = json.loads(kms.get_key_policy(KeyId=key["KeyId"], PolicyName="default")["Policy"])
    policy["Statement"].append({"Effect": "Allow", "Principal": {"AWS": iam.get_user(UserName=name)["User"]["Arn"]}, "Action": "KMS:Encrypt", "Resource": "*"})
    kms.put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy=json.dumps(policy))
    assert world.client("kms", credentials).encrypt(KeyId=key["KeyId"], Plaintext=b"x")["KeyId"] == key["Arn"]
    for wrong in ({"Statement": [statement]}, {"Version": "2012-10-17", "Id": ["x"], "Statement": [statement]}, {"Version": "2012-10-17", "Statement": {**statement, "Action": "kms:de crypt"}}):
        assert refused(iam.put_user_policy, UserName=name, PolicyName="q", PolicyDocument=json.dumps(wrong)) == "MalformedPolicyDocument"
