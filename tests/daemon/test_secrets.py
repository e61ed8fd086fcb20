"""Secrets Manager over the HTTP door with boto3, and over the socket."""

import json
import os
import sqlite3
import string
import time
import uuid

import boto3
import botocore.exceptions
import botocore.session
import pytest
from botocore.config import Config
from msgspec import NODEFAULT

import kmsfs
from kmsfs.api.registry import OPERATIONS

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    from conftest import DaemonProcess

    daemon = DaemonProcess(tmp_path_factory.mktemp("kmsd"), "--aws-endpoint", "127.0.0.1:0", "--aws-region", REGION)
    assert daemon.init().returncode == 0
    daemon.start()
    session = daemon.session()
    made = session.call("GetSessionToken", {})["Credentials"]
    yield daemon, session.call("GetStatus", {})["AwsEndpoint"], made
    daemon.stop()


def client(endpoint, service, region=REGION):
    _, url, made = endpoint
    return boto3.client(
        service, endpoint_url=url, region_name=region, aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["SessionToken"],
        config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip


@pytest.fixture
def secrets(endpoint):
    return client(endpoint, "secretsmanager")


def refused(call, **parameters):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"]


def name():
    return f"app/{uuid.uuid4()}"


def test_a_value_comes_back_and_is_kept_sealed(endpoint, secrets):
    made = secrets.create_secret(Name=name(), SecretString="very secret words", Description="d", Tags=[{"Key": "a", "Value": "b"}])
    assert made["ARN"].startswith(f"arn:aws:secretsmanager:{REGION}:") and len(made["ARN"].rpartition("-")[2]) == 6
    for secret_id in (made["Name"], made["ARN"], made["ARN"][:-7]):
        read = secrets.get_secret_value(SecretId=secret_id)
        assert (read["SecretString"], read["VersionId"], read["VersionStages"]) == ("very secret words", made["VersionId"], ["AWSCURRENT"])
    told = secrets.describe_secret(SecretId=made["Name"])
    assert told["Tags"] == [{"Key": "a", "Value": "b"}] and told["VersionIdsToStages"] == {made["VersionId"]: ["AWSCURRENT"]}
    assert told["Description"] == "d" and "RotationEnabled" not in told
    binary = secrets.create_secret(Name=name(), SecretBinary=b"\0\xff" * 32_768)
    assert secrets.get_secret_value(SecretId=binary["ARN"])["SecretBinary"] == b"\0\xff" * 32_768
    daemon = endpoint[0]
    stored = b"".join((daemon.state / file).read_bytes() for file in os.listdir(daemon.state) if file.startswith("state.db"))
    assert b"very secret" not in stored and made["Name"].encode() not in stored
    audit = (daemon.state / "audit" / "audit.jsonl").read_text()
    assert "very secret" not in audit and '"svc":"secretsmanager"' in audit.replace(" ", "")


def test_versions_and_stages(secrets):
    made = secrets.create_secret(Name=name())
    secret_id = made["Name"]
    assert "VersionId" not in made and refused(secrets.get_secret_value, SecretId=secret_id) == "ResourceNotFoundException"
    ids = [secrets.put_secret_value(SecretId=secret_id, SecretString=text)["VersionId"] for text in ("one", "two", "three")]
    assert secrets.describe_secret(SecretId=secret_id)["VersionIdsToStages"] == {ids[1]: ["AWSPREVIOUS"], ids[2]: ["AWSCURRENT"]}
    assert secrets.get_secret_value(SecretId=secret_id, VersionStage="AWSPREVIOUS")["SecretString"] == "two"
    assert secrets.get_secret_value(SecretId=secret_id, VersionId=ids[0])["SecretString"] == "one"
    pending = secrets.put_secret_value(SecretId=secret_id, SecretString="four", VersionStages=["AWSPENDING"])
    assert pending["VersionStages"] == ["AWSPENDING"]
    assert secrets.get_secret_value(SecretId=secret_id)["SecretString"] == "three"
    move = {"SecretId": secret_id, "VersionStage": "AWSCURRENT", "MoveToVersionId": pending["VersionId"]}
    assert refused(secrets.update_secret_version_stage, **move) == "InvalidParameterException"
    assert refused(secrets.update_secret_version_stage, **move, RemoveFromVersionId=ids[0]) == "InvalidParameterException"
    secrets.update_secret_version_stage(**move, RemoveFromVersionId=ids[2])
    stages = secrets.describe_secret(SecretId=secret_id)["VersionIdsToStages"]
    assert stages == {ids[2]: ["AWSPREVIOUS"], pending["VersionId"]: ["AWSPENDING", "AWSCURRENT"]}
    assert refused(secrets.update_secret_version_stage, SecretId=secret_id, VersionStage="AWSCURRENT",
                   RemoveFromVersionId=pending["VersionId"]) == "InvalidParameterException"  # fmt: skip
    assert refused(secrets.get_secret_value, SecretId=secret_id, VersionId=ids[2], VersionStage="AWSCURRENT") == "InvalidRequestException"
    listed = secrets.list_secret_version_ids(SecretId=secret_id)["Versions"]
    everything = secrets.list_secret_version_ids(SecretId=secret_id, IncludeDeprecated=True)["Versions"]
    assert [v["VersionId"] for v in listed] == [ids[2], pending["VersionId"]] and len(everything) == 4
    updated = secrets.update_secret(SecretId=secret_id, SecretString="five", Description="new")
    assert secrets.get_secret_value(SecretId=secret_id)["VersionId"] == updated["VersionId"]
    assert secrets.describe_secret(SecretId=secret_id)["Description"] == "new"


def test_repeated_requests_are_one(secrets):
    token, secret_id = str(uuid.uuid4()), name()
    request = {"Name": secret_id, "SecretString": "x", "ClientRequestToken": token}
    first = secrets.create_secret(**request)
    again = secrets.create_secret(**request)
    assert (again["ARN"], again["VersionId"]) == (first["ARN"], token)
    assert refused(secrets.create_secret, **{**request, "SecretString": "y"}) == "ResourceExistsException"
    assert refused(secrets.create_secret, Name=secret_id, SecretString="x") == "ResourceExistsException"
    put = {"SecretId": secret_id, "SecretString": "z", "ClientRequestToken": str(uuid.uuid4())}
    assert secrets.put_secret_value(**put)["VersionId"] == secrets.put_secret_value(**put)["VersionId"]
    assert refused(secrets.put_secret_value, **{**put, "SecretString": "w"}) == "ResourceExistsException"
    assert len(secrets.list_secret_version_ids(SecretId=secret_id, IncludeDeprecated=True)["Versions"]) == 2


def test_old_versions_without_a_stage_go(secrets):
    secret_id = secrets.create_secret(Name=name(), SecretString="0")["Name"]
    for number in range(1, 105):
        secrets.put_secret_value(SecretId=secret_id, SecretString=str(number))
    found = secrets.list_secret_version_ids(SecretId=secret_id, IncludeDeprecated=True, MaxResults=60)
    more = secrets.list_secret_version_ids(SecretId=secret_id, IncludeDeprecated=True, NextToken=found["NextToken"])
    assert len(found["Versions"]) + len(more["Versions"]) == 100
    assert secrets.get_secret_value(SecretId=secret_id, VersionStage="AWSPREVIOUS")["SecretString"] == "103"


def test_deletion_and_restoring(secrets):
    secret_id = secrets.create_secret(Name=name(), SecretString="x")["Name"]
    assert refused(secrets.delete_secret, SecretId=secret_id, RecoveryWindowInDays=6) == "InvalidParameterException"
    assert refused(secrets.delete_secret, SecretId=secret_id, RecoveryWindowInDays=7, ForceDeleteWithoutRecovery=True) == "InvalidParameterException"
    gone = secrets.delete_secret(SecretId=secret_id, RecoveryWindowInDays=7)
    assert abs(gone["DeletionDate"].timestamp() - time.time() - 7 * 86_400) < 60
    for call, extra in ((secrets.get_secret_value, {}), (secrets.put_secret_value, {"SecretString": "y"}),
                        (secrets.update_secret, {"Description": "d"}), (secrets.delete_secret, {}),
                        (secrets.tag_resource, {"Tags": [{"Key": "a", "Value": "b"}]})):  # fmt: skip
        assert refused(call, SecretId=secret_id, **extra) == "InvalidRequestException"
    assert refused(secrets.create_secret, Name=secret_id) == "InvalidRequestException"
    assert "DeletedDate" in secrets.describe_secret(SecretId=secret_id)
    filters = [{"Key": "name", "Values": [secret_id]}]
    assert secrets.list_secrets(Filters=filters)["SecretList"] == []
    assert len(secrets.list_secrets(Filters=filters, IncludePlannedDeletion=True)["SecretList"]) == 1
    secrets.restore_secret(SecretId=secret_id)
    assert secrets.get_secret_value(SecretId=secret_id)["SecretString"] == "x"
    secrets.delete_secret(SecretId=secret_id, ForceDeleteWithoutRecovery=True)
    assert refused(secrets.describe_secret, SecretId=secret_id) == "ResourceNotFoundException"
    assert secrets.delete_secret(SecretId="never-there", ForceDeleteWithoutRecovery=True)["Name"] == "never-there"
    assert refused(secrets.delete_secret, SecretId="never-there") == "ResourceNotFoundException"


def test_listing_filters_and_pages(endpoint):
    secrets = client(endpoint, "secretsmanager", "ap-south-1")
    for number in range(7):
        secrets.create_secret(Name=f"n{number}", Description=f"The quick {number}", Tags=[{"Key": f"k{number % 2}", "Value": f"v{number}"}])
    def found(key, *values):  # noqa: E306
        return {entry["Name"] for entry in secrets.list_secrets(Filters=[{"Key": key, "Values": list(values)}])["SecretList"]}

    assert found("name", "n3") == {"n3"} and found("name", "!n3") == {f"n{n}" for n in range(7)} - {"n3"}
    secrets.create_secret(Name="SecretTwo"), secrets.create_secret(Name="uat/COMPANYthings", Description="Thirdsecret")
    assert found("all", "two") == found("all", "SecretTwo") == found("all", "s t") == {"SecretTwo"}
    assert found("all", "Ythings") == {"uat/COMPANYthings"} and not found("all", "company") | found("all", "things") | found("all", "+")
    for extra in ("SecretTwo", "uat/COMPANYthings"):
        secrets.delete_secret(SecretId=extra, ForceDeleteWithoutRecovery=True)
    assert found("name", "!n3", "n3") == {f"n{n}" for n in range(7)}  # one value must hold
    assert found("description", "QUI 4") == {"n4"} and found("description", "ick") == set()
    assert found("tag-key", "k1") == {"n1", "n3", "n5"} and found("tag-value", "v2", "v3") == {"n2", "n3"}
    assert found("all", "v6") == {"n6"} and found("owning-service", "x") == set()
    assert [e["Name"] for e in secrets.list_secrets(SortOrder="asc")["SecretList"]] == [f"n{n}" for n in range(7)]
    pages = list(secrets.get_paginator("list_secrets").paginate(PaginationConfig={"PageSize": 3}))
    assert [len(page["SecretList"]) for page in pages] == [3, 3, 1]
    assert refused(secrets.list_secrets, NextToken="rubbish") == "InvalidNextTokenException"


def test_batches(secrets):
    made = [secrets.create_secret(Name=name(), SecretString=text)["Name"] for text in ("a", "b")]
    found = secrets.batch_get_secret_value(SecretIdList=[*made, "missing"])
    assert [value["SecretString"] for value in found["SecretValues"]] == ["a", "b"]
    assert [(e["SecretId"], e["ErrorCode"]) for e in found["Errors"]] == [("missing", "ResourceNotFoundException")]
    assert len(secrets.batch_get_secret_value(Filters=[{"Key": "name", "Values": [made[0]]}])["SecretValues"]) == 1
    assert refused(secrets.batch_get_secret_value) == "InvalidParameterException"


def test_random_passwords(secrets):
    password = secrets.get_random_password()["RandomPassword"]
    assert len(password) == 32 and all(set(password) & set(kind) for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits))
    plain = secrets.get_random_password(PasswordLength=500, ExcludePunctuation=True, ExcludeNumbers=True, ExcludeUppercase=True,
                                        ExcludeCharacters="abc", IncludeSpace=True)["RandomPassword"]  # fmt: skip
    assert set(plain) <= set(string.ascii_lowercase + " ") - set("abc") and " " in plain and len(plain) == 500
    for bad in (4097, 3):
        assert refused(secrets.get_random_password, PasswordLength=bad) in ("InvalidParameterException", "ValidationException")


def test_values_that_may_not_be(secrets):
    secret_id = secrets.create_secret(Name=name(), SecretString="x")["Name"]
    assert refused(secrets.put_secret_value, SecretId=secret_id) == "InvalidRequestException"
    assert refused(secrets.put_secret_value, SecretId=secret_id, SecretString="a", SecretBinary=b"b") == "InvalidParameterException"
    assert refused(secrets.put_secret_value, SecretId=secret_id, SecretString="ä" * 32_769) == "InvalidParameterException"
    assert refused(secrets.put_secret_value, SecretId=secret_id, SecretString="a" * 65_537) == "ValidationException"
    assert refused(secrets.create_secret, Name="with space", SecretString="x") == "InvalidParameterException"
    assert secrets.get_secret_value(SecretId=secret_id)["SecretString"] == "x"


def test_keys_of_ones_own_and_what_happens_without_them(endpoint, secrets):
    kms = client(endpoint, "kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    secret_id = secrets.create_secret(Name=name(), SecretString="x", KmsKeyId=key)["Name"]
    assert secrets.describe_secret(SecretId=secret_id)["KmsKeyId"] == key
    kms.disable_key(KeyId=key)
    assert refused(secrets.get_secret_value, SecretId=secret_id) == "DecryptionFailure"
    assert refused(secrets.put_secret_value, SecretId=secret_id, SecretString="y") == "EncryptionFailure"
    kms.enable_key(KeyId=key)
    assert secrets.get_secret_value(SecretId=secret_id)["SecretString"] == "x"
    assert refused(secrets.create_secret, Name=name(), SecretString="x", KmsKeyId="alias/none") == "EncryptionFailure"
    assert kms.describe_key(KeyId="alias/aws/secretsmanager")["KeyMetadata"]["KeyState"] == "Enabled"


def test_resource_policies(endpoint, secrets):
    account = client(endpoint, "sts").get_caller_identity()["Account"]
    secret = secrets.create_secret(Name=name(), SecretString="x")
    def statement(effect, who, action):  # noqa: E306
        return {"Effect": effect, "Principal": who, "Action": action, "Resource": "*"}

    def document(*statements):
        return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})

    someone = {"AWS": f"arn:aws:iam::{account}:uid/1001"}
    policy = document(statement("Allow", someone, "secretsmanager:GetSecretValue"))
    secrets.put_resource_policy(SecretId=secret["ARN"], ResourcePolicy=policy)
    assert secrets.describe_secret(SecretId=secret["ARN"])["Name"] == secret["Name"]
    assert json.loads(secrets.get_resource_policy(SecretId=secret["ARN"])["ResourcePolicy"]) == json.loads(policy)
    me = {"AWS": client(endpoint, "sts").get_caller_identity()["Arn"]}
    assert refused(secrets.put_resource_policy, SecretId=secret["ARN"], ResourcePolicy=document(statement("Deny", me, "*"))) == "MalformedPolicyDocumentException"
    assert refused(secrets.put_resource_policy, SecretId=secret["ARN"], ResourcePolicy="{") == "MalformedPolicyDocumentException"
    public = document(statement("Allow", "*", "secretsmanager:*"))
    assert refused(secrets.put_resource_policy, SecretId=secret["ARN"], ResourcePolicy=public, BlockPublicPolicy=True) == "PublicPolicyException"
    assert not secrets.validate_resource_policy(ResourcePolicy=public)["PolicyValidationPassed"]
    secrets.put_resource_policy(SecretId=secret["ARN"], ResourcePolicy=document(statement("Deny", me, "secretsmanager:GetSecretValue")))
    assert refused(secrets.get_secret_value, SecretId=secret["ARN"]) == "AccessDeniedException"
    secrets.delete_resource_policy(SecretId=secret["ARN"])
    assert secrets.get_secret_value(SecretId=secret["ARN"])["SecretString"] == "x"


def test_other_users_do_not_even_learn_that_it_is_there(make_daemon, tmp_path):
    from support.peers import let_others_in

    daemon = make_daemon("--socket-mode", "0666")
    daemon.stop()
    daemon.options = ["--socket-mode", "0666"]
    daemon.start()
    let_others_in(daemon.folder)
    daemon.session().call("CreateSecret", {"Name": "mine", "SecretString": "x"})
    pid = os.fork()
    if not pid:
        os.setgroups([])
        os.setresgid(1001, 1001, 1001)
        os.setresuid(1001, 1001, 1001)
        other = kmsfs.client("secretsmanager", socket=str(daemon.socket))
        try:
            other.get_secret_value(SecretId="mine")
            os._exit(1)
        except other.exceptions.ResourceNotFoundException:
            os._exit(0 if other.list_secrets()["SecretList"] == [] else 2)
    assert os.waitpid(pid, 0)[1] == 0


def test_secrets_survive_a_restart_and_a_kill(make_daemon):
    daemon = make_daemon()
    session = daemon.session()
    for number in range(30):
        session.call("CreateSecret", {"Name": f"s{number}", "SecretString": str(number)})
        session.call("PutSecretValue", {"SecretId": f"s{number}", "SecretString": str(number + 1)})
    daemon.stop(9)
    daemon.start()
    again = kmsfs.client("secretsmanager", socket=str(daemon.socket))
    assert [again.get_secret_value(SecretId=f"s{n}")["SecretString"] for n in range(30)] == [str(n + 1) for n in range(30)]
    assert again.tag_resource(SecretId="s1", Tags=[{"Key": "a", "Value": "b"}]) is not None
    daemon.stop()
    database = sqlite3.connect(daemon.state / "state.db")
    database.execute("DELETE FROM row WHERE tbl = 9 AND ver = 1 AND id = (SELECT id FROM row WHERE tbl = 9 LIMIT 1)")
    database.commit()
    database.close()
    with pytest.raises(RuntimeError, match="removed"):
        daemon.start()


def test_operations_are_those_of_awss_model():
    model = botocore.session.get_session().get_service_model("secretsmanager")
    ours = {operation.name: operation for operation in OPERATIONS.values() if operation.service == "secretsmanager"}
    replication = {"ReplicateSecretToRegions", "RemoveRegionsFromReplication", "StopReplicationToReplica",
                   "AssociateCrossAccountReplica", "DisassociateCrossAccountReplica"}  # fmt: skip
    assert set(model.operation_names) - set(ours) <= replication and set(ours) <= set(model.operation_names)
    for operation_name, operation in ours.items():
        wanted = model.operation_model(operation_name)
        for shape, found in ((wanted.input_shape, operation.request), (wanted.output_shape, operation.response)):
            members = set(shape.members) if shape is not None else set()
            assert set(found.__struct_encode_fields__) <= members | {"Type"}, operation_name
        names, defaults = operation.request.__struct_encode_fields__, operation.request.__struct_defaults__
        given = dict(zip(names[::-1], defaults[::-1], strict=False))
        required = {field for field in names if given.get(field, NODEFAULT) is NODEFAULT}
        assert required == set(wanted.input_shape.required_members), operation_name
        known = {error.name for error in wanted.error_shapes} | {"AccessDeniedException", "ValidationException", "UnsupportedOperationException"}
        assert {error.code for error in operation.errors} <= known | {"InvalidNextTokenException", "LimitExceededException", "DecryptionFailure", "InvalidRequestException", "InvalidParameterException", "ResourceNotFoundException"}, operation_name


def test_a_batch_that_does_not_fit_into_an_answer_goes_on_by_its_token(endpoint):
    session = endpoint[0].session()
    mark = name()
    made = [f"{mark}-{number:02d}" for number in range(20)]
    for one in made:
        session.call("CreateSecret", {"Name": one, "SecretString": one + "x" * (65_536 - len(one))})
    for request in ({"SecretIdList": made}, {"Filters": [{"Key": "name", "Values": [mark]}]}):
        found, pages, token = [], 0, None
        while pages == 0 or token:
            page = session.call("BatchGetSecretValue", {**request, **({"NextToken": token} if token else {})})
            found += [value["SecretString"][: len(made[0])] for value in page["SecretValues"]]
            pages, token = pages + 1, page.get("NextToken")
        assert found == made and pages == 3
