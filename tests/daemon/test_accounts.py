"""Several accounts in one realm: apart, and across what both sides allow."""

import json
import os
import subprocess
import sys

import botocore.exceptions
import botocore.session
import pytest

from conftest import DaemonProcess
from kmsfs import errors
from kmsfs.api.registry import OPERATIONS
from kmsfs.client.watch import KeyWatcher
from support.iamworld import World, allow, deny, document, refused
from support.peers import as_user
from support.waiting import soon
from support.wirefields import wire_fields

HOME, OTHER, THIRD = "111122223333", "444455556666", "777788889999"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0")
    assert made.init("--account", HOME).returncode == 0
    made.start()
    for account in (OTHER, THIRD):
        made.session().call("CreateAccount", {"AccountName": f"n{account[0]}", "Email": f"n{account[0]}@kmsfs.local", "AccountId": account})
    yield made
    made.stop()


@pytest.fixture
def world(daemon):
    return World(daemon)


def inside(world, account):
    """Credentials in a member account, as the managing account gets them."""
    role = f"arn:aws:iam::{account}:role/OrganizationAccountAccessRole"
    made = world.client("sts").assume_role(RoleArn=role, RoleSessionName="work")["Credentials"]
    return made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]


def user_in(world, account, name, *policy):
    iam = world.client("iam", inside(world, account))
    iam.create_user(UserName=name)
    if policy:
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(*policy))
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return made["AccessKeyId"], made["SecretAccessKey"]


def shared_key(world, *more):
    """A key of the managing account with further statements."""
    owner = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{HOME}:root"}, "Action": "kms:*", "Resource": "*"}
    return world.client("kms").create_key(Policy=document(owner, *more))["KeyMetadata"]["Arn"]


def with_principal(statement, *arns):
    return {**statement, "Principal": {"AWS": list(arns)}}


def test_accounts_are_made_and_listed_as_organizations_does(world):
    org = world.client("organizations")
    made = org.create_account(AccountName="Team A", Email="a@example.com", RoleName="Door", IamUserAccessToBilling="DENY")["CreateAccountStatus"]
    assert made["State"] == "SUCCEEDED" and len(made["AccountId"]) == 12 and made["Id"].startswith("car-")
    assert org.describe_create_account_status(CreateAccountRequestId=made["Id"])["CreateAccountStatus"] == made
    shown = org.describe_account(AccountId=made["AccountId"])["Account"]
    organization = org.describe_organization()["Organization"]
    assert shown["Arn"] == f"arn:aws:organizations::{HOME}:account/{organization['Id']}/{made['AccountId']}"
    assert organization["MasterAccountId"] == HOME and organization["MasterAccountArn"].endswith(f"/{organization['Id']}/{HOME}")
    assert (shown["Name"], shown["Status"], shown["JoinedMethod"]) == ("Team A", "ACTIVE", "CREATED")
    listed = {each["Id"]: each for page in org.get_paginator("list_accounts").paginate(MaxResults=2) for each in page["Accounts"]}
    assert {HOME, OTHER, THIRD, made["AccountId"]} <= set(listed) and listed[HOME]["JoinedMethod"] == "INVITED"
    again = org.create_account(AccountName="Team B", Email="A@example.com")["CreateAccountStatus"]
    assert again["State"] == "FAILED" and again["FailureReason"] == "EMAIL_ALREADY_EXISTS" and "AccountId" not in again
    assert refused(org.describe_account, AccountId="000000000000") == "AccountNotFoundException"
    assert refused(org.describe_create_account_status, CreateAccountRequestId="car-0123456789") == "CreateAccountStatusNotFoundException"
    assert refused(org.list_accounts, NextToken="x") == "InvalidInputException"
    assert refused(org.close_account, AccountId=HOME) == "ConstraintViolationException"
    door = world.client("sts").assume_role(RoleArn=f"arn:aws:iam::{made['AccountId']}:role/Door", RoleSessionName="work")
    assert door["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{made['AccountId']}:assumed-role/Door/work"


def test_only_the_managing_account_manages(world):
    member = inside(world, OTHER)
    org = world.client("organizations", member)
    assert refused(org.create_account, AccountName="x", Email="x@example.com") == "AccessDeniedException"
    assert refused(org.list_accounts) == refused(org.close_account, AccountId=THIRD) == "AccessDeniedException"
    assert org.describe_organization()["Organization"]["MasterAccountId"] == HOME
    _, ordinary = world.user()
    assert refused(world.client("organizations", ordinary).list_accounts) == "AccessDeniedException"
    _, reader = world.user(policy=[allow("organizations:List*")])
    assert world.client("organizations", reader).list_accounts()["Accounts"]
    assert refused(world.client("organizations", reader).close_account, AccountId=THIRD) == "AccessDeniedException"
    # Nobody of another account gets in where the role does not trust him.
    role = f"arn:aws:iam::{THIRD}:role/OrganizationAccountAccessRole"
    assert refused(world.client("sts", member).assume_role, RoleArn=role, RoleSessionName="xx") == "AccessDenied"


@pytest.mark.parametrize("name", sorted(name for name, op in OPERATIONS.items() if op.service == "organizations"))
def test_shapes_are_awss(name):
    ours, theirs = OPERATIONS[name], botocore.session.get_session().get_service_model("organizations").operation_model(name)
    mine = {field: needed for field, needed in wire_fields(ours.request).items() if (name, field) != ("CreateAccount", "AccountId")}
    members = set(theirs.input_shape.members) if theirs.input_shape else set()
    assert set(mine) <= members and members - set(mine) <= {"Tags"}
    assert {field for field, needed in mine.items() if needed} == set(theirs.input_shape.required_members if theirs.input_shape else ())
    assert set(wire_fields(ours.response)) <= set(theirs.output_shape.members if theirs.output_shape else ())
    declared = {error.code for error in ours.errors} - {"AccessDeniedException", "ValidationException"}
    assert declared <= {shape.name for shape in theirs.error_shapes}


def test_what_an_account_has_is_its_own(world):
    one, two = world.client("kms"), world.client("kms", inside(world, OTHER))
    key = two.create_key()["KeyMetadata"]
    assert key["AWSAccountId"] == OTHER and key["Arn"].split(":")[4] == OTHER
    two.create_alias(AliasName="alias/same", TargetKeyId=key["KeyId"])
    mine = one.create_key()["KeyMetadata"]
    one.create_alias(AliasName="alias/same", TargetKeyId=mine["KeyId"])
    assert two.describe_key(KeyId="alias/same")["KeyMetadata"]["Arn"] == key["Arn"] != one.describe_key(KeyId="alias/same")["KeyMetadata"]["Arn"]
    assert refused(one.describe_key, KeyId=key["KeyId"]) == "NotFoundException"  # an id alone is of one's own account
    assert refused(one.describe_key, KeyId=key["Arn"]) == "AccessDeniedException"
    assert {entry["KeyArn"].split(":")[4] for entry in two.list_keys()["Keys"]} == {OTHER}
    for service, put, get in (
        ("ssm", lambda c: c.put_parameter(Name="/same", Value=who, Type="SecureString"),
         lambda c: c.get_parameter(Name="/same", WithDecryption=True)["Parameter"]["Value"]),
        ("secretsmanager", lambda c: c.create_secret(Name="same", SecretString=who), lambda c: c.get_secret_value(SecretId="same")["SecretString"]),
    ):  # fmt: skip
        clients = {"one": world.client(service), "two": world.client(service, inside(world, OTHER))}
        for who, client in clients.items():
            put(client)
        assert {who: get(client) for who, client in clients.items()} == {"one": "one", "two": "two"}
    # Users of the same name, with policies of the same name, are two.
    allowed = user_in(world, OTHER, "sam", allow("kms:*"))
    denied = user_in(world, THIRD, "sam", deny("kms:*"))
    assert world.client("kms", allowed).list_keys()["Keys"]
    assert refused(world.client("kms", denied).list_keys) == "AccessDeniedException"
    assert world.client("kms", allowed).list_keys()["Keys"]


def test_another_accounts_key_needs_both_sides(world):
    may_use = with_principal(allow(["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"]), f"arn:aws:iam::{OTHER}:root")
    key, closed = shared_key(world, may_use), shared_key(world)
    free = world.client("kms", user_in(world, OTHER, "free", allow("kms:*")))
    bound = world.client("kms", user_in(world, OTHER, "bound"))
    blob = free.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert free.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x" and free.describe_key(KeyId=key)["KeyMetadata"]["AWSAccountId"] == HOME
    assert refused(free.generate_data_key, KeyId=key, KeySpec="AES_256") == "AccessDeniedException"  # the key does not say so
    assert refused(bound.encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"  # his account does not say so
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied.*does not exist in this region, or you are not allowed"):
        bound.decrypt(CiphertextBlob=blob)
    assert refused(free.encrypt, KeyId=closed, Plaintext=b"x") == "AccessDeniedException"
    third = world.client("kms", inside(world, THIRD))
    assert refused(third.decrypt, CiphertextBlob=blob) == "AccessDeniedException"
    # Naming the user himself does not spare him his own account's consent.
    named = shared_key(world, with_principal(allow("kms:Encrypt"), f"arn:aws:iam::{OTHER}:user/bound", f"arn:aws:iam::{OTHER}:user/free"))
    assert refused(bound.encrypt, KeyId=named, Plaintext=b"x") == "AccessDeniedException"
    assert free.encrypt(KeyId=named, Plaintext=b"x")["KeyId"] == named
    # The region is part of what is meant.
    far = world.client("kms", user_in(world, OTHER, "far", allow("kms:*")), region="eu-west-1")
    assert refused(far.decrypt, CiphertextBlob=blob) == "InvalidCiphertextException"


def test_administering_is_for_the_keys_own_account(world):
    everything = with_principal(allow("kms:*"), f"arn:aws:iam::{OTHER}:root")
    key = shared_key(world, everything)
    kms = world.client("kms", user_in(world, OTHER, "admin", allow("*")))
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    for call, more in (
        (kms.get_key_policy, {"PolicyName": "default"}), (kms.put_key_policy, {"PolicyName": "default", "Policy": document(everything)}),
        (kms.disable_key, {}), (kms.schedule_key_deletion, {}), (kms.enable_key_rotation, {}), (kms.update_key_description, {"Description": "x"}),
        (kms.tag_resource, {"Tags": [{"TagKey": "a", "TagValue": "b"}]}), (kms.list_key_rotations, {}), (kms.list_resource_tags, {}),
    ):  # fmt: skip
        assert refused(call, KeyId=key, **more) == "AccessDeniedException", call
    assert refused(kms.create_alias, AliasName="alias/theirs", TargetKeyId=key) == "AccessDeniedException"
    assert kms.list_aliases(KeyId=key)["Aliases"] == []


def test_grants_across_accounts(world):
    key = shared_key(world)
    grantee = f"arn:aws:iam::{OTHER}:user/grantee"
    kms = world.client("kms", user_in(world, OTHER, "grantee", allow("kms:*")))
    made = world.client("kms").create_grant(KeyId=key, GranteePrincipal=grantee, RetiringPrincipal=grantee, Operations=["Encrypt", "Decrypt"])
    blob = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    [listed] = kms.list_retirable_grants(RetiringPrincipal=grantee)["Grants"]
    assert listed["GrantId"] == made["GrantId"] and listed["KeyId"] == key
    kms.retire_grant(KeyId=key, GrantId=made["GrantId"])
    assert refused(kms.decrypt, CiphertextBlob=blob) == "AccessDeniedException"
    assert kms.list_retirable_grants(RetiringPrincipal=grantee)["Grants"] == []


def test_a_grant_to_an_account_is_for_whom_its_iam_lets(world):
    key = shared_key(world)
    free, bound = user_in(world, OTHER, "granted", allow("kms:Encrypt")), user_in(world, OTHER, "ungranted")
    forbidden = user_in(world, OTHER, "forbidden", allow("kms:*"), deny("kms:Encrypt"))
    stranger = user_in(world, THIRD, "stranger", allow("kms:*"))
    made = world.client("kms").create_grant(KeyId=key, GranteePrincipal=f"arn:aws:iam::{OTHER}:root", Operations=["Encrypt", "Decrypt"])
    blob = world.client("kms", free).encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert refused(world.client("kms", free).decrypt, CiphertextBlob=blob) == "AccessDeniedException"  # his account lets him encrypt only
    for who in (bound, forbidden, stranger):
        assert refused(world.client("kms", who).encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
    simulated = world.daemon.session().call("SimulateKeyAccess", {"KeyId": local(key), "Principal": f"arn:kmsfs:iam::{OTHER}:user/granted", "Action": "kms:Encrypt"})
    assert simulated["Allowed"] and any(step["Source"] == "grant" and step["Applies"] for step in simulated["Steps"])
    world.client("kms").revoke_grant(KeyId=key, GrantId=made["GrantId"])
    assert refused(world.client("kms", free).encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"


def local(arn):
    return arn.replace("arn:aws:kms:us-east-1", "arn:kmsfs:kms:local")


def test_a_secret_across_accounts(world):
    reader = f"arn:aws:iam::{OTHER}:user/reader"
    theirs = world.client("secretsmanager", user_in(world, OTHER, "reader", allow(["secretsmanager:*", "kms:*"])))
    key = shared_key(world, with_principal(allow("kms:Decrypt"), reader))
    owner = world.client("secretsmanager")
    shared = owner.create_secret(Name="shared", SecretString="s", KmsKeyId=key)["ARN"]
    by_default = owner.create_secret(Name="by-default", SecretString="s")["ARN"]
    hidden = owner.create_secret(Name="hidden", SecretString="s", KmsKeyId=key)["ARN"]
    for secret in (shared, by_default):
        owner.put_resource_policy(SecretId=secret, ResourcePolicy=document(with_principal(allow("secretsmanager:*"), reader)))
    assert theirs.get_secret_value(SecretId=shared)["SecretString"] == "s"
    assert theirs.describe_secret(SecretId=shared)["Name"] == "shared"
    assert refused(theirs.get_secret_value, SecretId="shared") == "ResourceNotFoundException"  # by ARN alone
    assert refused(theirs.get_secret_value, SecretId=hidden) == "ResourceNotFoundException"
    assert refused(theirs.get_secret_value, SecretId=by_default) == "AccessDeniedException"  # the default key is its account's own
    assert refused(theirs.put_secret_value, SecretId=shared, SecretString="t") == "ResourceNotFoundException"
    assert shared not in {each["ARN"] for each in theirs.list_secrets()["SecretList"]}
    admin = world.client("secretsmanager", inside(world, THIRD))
    assert refused(admin.get_secret_value, SecretId=shared) == "ResourceNotFoundException"


def test_an_accounts_root_rules_its_account_and_not_the_daemon(world, daemon):
    role = inside(world, OTHER)
    kms, iam = world.client("kms", role), world.client("iam", role)
    assert kms.create_key()["KeyMetadata"]["AWSAccountId"] == OTHER
    assert refused(iam.delete_user, UserName="nobody-of-home") == "NoSuchEntity"
    with as_user(daemon, 4323) as other:
        daemon.session().call("AssignLocalUser", {"Uid": 4323, "AccountId": HOME})
        for operation in ("Seal", "GetMetrics"):
            with pytest.raises(errors.AccessDenied):
                other(operation)


def test_a_closed_account_is_of_no_use_until_it_is_opened_again(world, daemon, tmp_path):
    org = world.client("organizations")
    role = inside(world, THIRD)
    theirs = world.client("kms", role)
    owner = with_principal(allow("kms:*"), f"arn:aws:iam::{THIRD}:root")
    key = theirs.create_key(Policy=document(owner, with_principal(allow(["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"]), f"arn:aws:iam::{HOME}:root")))
    arn = key["KeyMetadata"]["Arn"]
    mine = world.client("kms", world.user(policy=[allow("kms:*")])[1])
    blob = mine.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
    seen = []
    watch = KeyWatcher(daemon.session(), [arn.replace("arn:aws:kms:us-east-1", "arn:kmsfs:kms:local")], seen.append)
    watch.start()
    try:
        org.close_account(AccountId=THIRD)
        soon(["policy"], lambda: [event["kind"] for event in seen], 5)
    finally:
        watch.close()
    assert org.describe_account(AccountId=THIRD)["Account"]["Status"] == "SUSPENDED"
    assert refused(theirs.describe_key, KeyId=arn) == "AccessDeniedException"
    assert refused(world.client("ssm", role).get_parameter, Name="/x") == "AccessDeniedException"
    assert refused(mine.encrypt, KeyId=arn, Plaintext=b"x") == refused(mine.decrypt, CiphertextBlob=blob) == "AccessDeniedException"
    assert refused(org.close_account, AccountId=THIRD) == "AccountAlreadyClosedException"
    daemon.stop()
    daemon.start()
    world = World(daemon)
    mine = world.client("kms", (mine._request_signer._credentials.access_key, mine._request_signer._credentials.secret_key))
    assert refused(mine.decrypt, CiphertextBlob=blob) == "AccessDeniedException"
    daemon.session().call("ReopenAccount", {"AccountId": THIRD})
    assert mine.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"


@pytest.mark.root
def test_a_local_user_belongs_to_an_account(daemon):
    call = lambda operation, **parameters: daemon.session().call(operation, parameters)  # noqa: E731
    with as_user(daemon, 4321) as before:
        assert before("GetCallerIdentity")["Account"] == HOME
        old = before("CreateKey")["KeyMetadata"]["Arn"]
        call("AssignLocalUser", Uid=4321, AccountId=OTHER)
        with pytest.raises(errors.KmsfsError):  # who is connected is looked at anew
            for _ in range(50):
                before("GetCallerIdentity")
    with as_user(daemon, 4321) as after:
        identity = after("GetCallerIdentity")
        assert identity["Arn"] == f"arn:kmsfs:iam::{OTHER}:uid/4321" and after("GetStatus")["Account"] == OTHER
        key = after("CreateKey")["KeyMetadata"]
        assert key["Arn"].split(":")[4] == OTHER
        blob = after("Encrypt", KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
        with pytest.raises(errors.AccessDenied):
            after("Encrypt", KeyId=old, Plaintext=b"x")
        with pytest.raises(errors.AccessDenied):
            after("ListAccounts")
        call("CloseAccount", AccountId=OTHER)
        with pytest.raises(errors.KmsfsError):
            for _ in range(50):
                after("Decrypt", CiphertextBlob=blob)
    with as_user(daemon, 4321) as closed:
        with pytest.raises(errors.AccessDenied, match="is closed"):
            closed("Decrypt", CiphertextBlob=blob)
        with pytest.raises(errors.AccessDenied):
            closed("GetParameter", Name="/x")
    call("ReopenAccount", AccountId=OTHER)
    with as_user(daemon, 4321) as opened:
        assert opened("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"x"
    call("AssignLocalUser", Uid=4321, AccountId=HOME)
    with as_user(daemon, 4321) as home:
        assert home("Encrypt", KeyId=old, Plaintext=b"x")["KeyId"] == old
    for uid in (0, os.getuid()):
        with pytest.raises(errors.AccountConstraint):
            call("AssignLocalUser", Uid=uid, AccountId=OTHER)
    with pytest.raises(errors.AccountNotFound):
        call("AssignLocalUser", Uid=5, AccountId="0" * 12)
    log = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    [made] = [record for record in log if record["op"] == "Encrypt" and record.get("key") == key["Arn"]]
    assert made["who"] == f"arn:kmsfs:iam::{OTHER}:uid/4321"


def test_the_command_line(daemon):
    def run(*words, code=0):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    number = run("account", "create", "Staging team").split()[0]
    assert len(number) == 12 and number in run("account", "list")
    variables = json.loads(run("--json", "aws", "env", "--account", "Staging team"))
    assert variables["AWS_ENDPOINT_URL_ORGANIZATIONS"].startswith("http://127.0.0.1")
    who = (variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], variables["AWS_SESSION_TOKEN"])
    assert World(daemon).client("sts", who).get_caller_identity()["Account"] == number
    assert json.loads(run("aws", "credentials", "--role", f"arn:kmsfs:iam::{number}:role/OrganizationAccountAccessRole"))["Version"] == 1
    assert "no account was made" in run("account", "create", "staging-team", code=errors.AccountConstraint.exit_code)
    assert "is unreadable until" in run("account", "close", number, code=2)
    assert f"closed Staging team ({number})" in run("account", "close", number, "--yes")
    assert "suspended" in run("account", "list")
    run("account", "reopen", number)
    assert "daemon" in run("account", "assign", "daemon", number) and "daemon" in run("account", "list")
    run("account", "assign", "daemon", HOME)
    assert "there is no account" in run("account", "assign", "daemon", "nowhere", code=errors.AccountNotFound.exit_code)
    assert "has no user" in run("account", "assign", "nobody-here", number, code=2)
