"""Whom policies, grants and trust mean when a user or role goes, or gets another name."""

import json
import signal

import pytest

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
    answer = session.call("ListAuthorizedPrincipals", {"KeyId": key, "Action": "kms:Encrypt"})
    assert user["UserId"] not in {each["Principal"] for each in answer["Principals"]}
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
