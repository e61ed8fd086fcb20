"""AWS's own client against the HTTP door: boto3 with plain settings and endpoint_url, real signatures, real policy."""

import datetime
import subprocess
import sys
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from kmsd.door.listen import CONNECTIONS_MAX
from kmsfs.client.session import ClientSession
from kmsfs.errors import AccessDenied

REGION = "eu-central-1"


@pytest.fixture
def door(make_daemon):
    daemon = make_daemon("--aws-endpoint", "127.0.0.1:0")
    session = daemon.session()
    endpoint = session.call("GetStatus", {})["AwsEndpoint"]
    made = session.call("GetSessionToken", {})["Credentials"]
    return daemon, endpoint, made


def client(door, service, *, region=REGION, **changes):
    _, endpoint, made = door
    options = {
        "aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"],
        "aws_session_token": made["SessionToken"], **changes,
    }  # fmt: skip
    return boto3.client(service, endpoint_url=endpoint, region_name=region,
                        config=Config(retries={"max_attempts": 0}), **options)


def code_of(call, **parameters):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"]


def test_kms_from_key_to_plaintext(door):
    kms = client(door, "kms")
    key = kms.create_key(Description="over HTTP")["KeyMetadata"]
    account = key["AWSAccountId"]
    assert key["Arn"] == f"arn:aws:kms:{REGION}:{account}:key/{key['KeyId']}"
    assert isinstance(key["CreationDate"], datetime.datetime)
    kms.create_alias(AliasName="alias/door", TargetKeyId=key["KeyId"])
    context = {"purpose": "test", "arn": "arn:kmsfs:kms:local:untouched"}
    sealed = kms.encrypt(KeyId="alias/door", Plaintext=b"\0secret\xff", EncryptionContext=context)
    assert sealed["KeyId"] == key["Arn"]
    assert kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=context)["Plaintext"] == b"\0secret\xff"
    assert code_of(kms.decrypt, CiphertextBlob=sealed["CiphertextBlob"]) == "InvalidCiphertextException"
    data = kms.generate_data_key(KeyId=key["Arn"], KeySpec="AES_256")
    assert len(data["Plaintext"]) == 32
    assert kms.decrypt(CiphertextBlob=data["CiphertextBlob"], KeyId=key["Arn"])["Plaintext"] == data["Plaintext"]
    assert kms.describe_key(KeyId=f"arn:aws:kms:{REGION}:{account}:alias/door")["KeyMetadata"]["KeyId"] == key["KeyId"]
    assert [a["AliasArn"] for a in kms.list_aliases(KeyId=key["KeyId"])["Aliases"]] == [f"arn:aws:kms:{REGION}:{account}:alias/door"]


def test_policies_and_grants_speak_awss_arns(door):
    kms = client(door, "kms")
    key = kms.create_key()["KeyMetadata"]
    me = client(door, "sts").get_caller_identity()["Arn"]
    assert me.startswith("arn:aws:iam::")
    policy = json.loads(kms.get_key_policy(KeyId=key["KeyId"], PolicyName="default")["Policy"])
    assert policy["Statement"][0]["Principal"] == {"AWS": me}
    policy["Statement"].append({"Sid": "No", "Effect": "Deny", "Principal": {"AWS": me}, "Action": "kms:Encrypt", "Resource": "*"})
    kms.put_key_policy(KeyId=key["KeyId"], PolicyName="default", Policy=json.dumps(policy))
    assert code_of(kms.encrypt, KeyId=key["KeyId"], Plaintext=b"x") == "AccessDeniedException"
    grant = kms.create_grant(KeyId=key["KeyId"], GranteePrincipal=me, Operations=["Decrypt"])
    assert kms.list_grants(KeyId=key["KeyId"])["Grants"][0]["GranteePrincipal"] == me
    kms.revoke_grant(KeyId=key["Arn"], GrantId=grant["GrantId"])


def test_where_a_request_comes_from_decides(door):
    daemon, _, _ = door
    kms, session = client(door, "kms", region="us-east-1"), daemon.session()
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    document = json.loads(session.call("GetKeyPolicy", {"KeyId": key})["Policy"])
    document["Statement"] += [
        {"Effect": "Deny", "Principal": "*", "Action": "kms:GenerateDataKey", "Resource": "*", "Condition": {"NotIpAddress": {"aws:SourceIp": ["127.0.0.0/8"]}}},
        {"Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*", "Condition": {"IpAddress": {"aws:SourceIp": ["127.0.0.1"]}}},
    ]
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(document))
    assert kms.generate_data_key(KeyId=key, KeySpec="AES_256")["Plaintext"]
    # A header says nothing of it.
    kms.meta.events.register("before-sign.kms.*", lambda request, **_: request.headers.add_header("X-Forwarded-For", "198.51.100.7"))
    assert code_of(kms.encrypt, KeyId=key, Plaintext=b"x") == "AccessDeniedException"
    assert kms.generate_data_key(KeyId=key, KeySpec="AES_256")["Plaintext"]
    # What comes over the Unix socket comes from nowhere.
    assert session.call("Encrypt", {"KeyId": key, "Plaintext": b"x"})["CiphertextBlob"]
    with pytest.raises(AccessDenied):
        session.call("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"})
    document["Statement"][-1]["Condition"] = {"IpAddress": {"aws:SourceIp": "127.0.0.1/40"}}
    assert code_of(kms.put_key_policy, KeyId=key, PolicyName="default", Policy=json.dumps(document)) == "MalformedPolicyDocumentException"


def test_parameters(door):
    ssm = client(door, "ssm")
    value = "arn:kmsfs:kms:local:000000000000:key/is-a-value"
    assert ssm.put_parameter(Name="/door/db", Value=value, Type="SecureString")["Version"] == 1
    got = ssm.get_parameter(Name="/door/db", WithDecryption=True)["Parameter"]
    assert got["Value"] == value and got["ARN"].startswith(f"arn:aws:ssm:{REGION}:") and got["Type"] == "SecureString"
    assert ssm.get_parameters_by_path(Path="/door")["Parameters"][0]["Name"] == "/door/db"
    assert code_of(ssm.get_parameter, Name="/door/none") == "ParameterNotFound"
    # The owner opens the ciphertext with KMS alone, in AWS's words.
    import base64

    stored = ssm.get_parameter(Name="/door/db")["Parameter"]
    opened = client(door, "kms").decrypt(
        CiphertextBlob=base64.b64decode(stored["Value"]), EncryptionContext={"PARAMETER_ARN": stored["ARN"]}
    )
    assert opened["Plaintext"].decode() == value


def test_what_the_door_takes_as_a_key(door):
    kms = client(door, "kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/strict", TargetKeyId=key)
    assert kms.describe_key(KeyId="alias/strict")["KeyMetadata"]["KeyId"] == key
    # AWS KMS API reference: these take the key's id or ARN alone.
    for call, parameters in (
        (kms.enable_key_rotation, {}), (kms.put_key_policy, {"Policy": "{}"}), (kms.tag_resource, {"Tags": []}),
    ):  # fmt: skip
        assert code_of(call, KeyId="alias/strict", **parameters) == "NotFoundException"
        assert code_of(call, KeyId="unknown", **parameters) == "NotFoundException"
    assert code_of(kms.create_alias, AliasName="alias/other", TargetKeyId="alias/strict") == "ValidationException"
    assert code_of(kms.update_alias, AliasName="alias/strict", TargetKeyId=f"arn:aws:kms:{REGION}:1:alias/strict") == "ValidationException"


def test_parameters_by_arn_and_by_key(door):
    ssm = client(door, "ssm", region="us-east-1")
    ssm.put_parameter(Name="/one", Value="1", Type="SecureString", KeyId="alias/aws/ssm")
    arn = ssm.get_parameter(Name="/one")["Parameter"]["ARN"]
    assert arn.startswith("arn:aws:ssm:us-east-1:")
    got = ssm.get_parameters(Names=[arn, arn + "-not"])
    assert [p["Name"] for p in got["Parameters"]] == ["/one"] and got["InvalidParameters"] == [arn + "-not"]
    found = ssm.describe_parameters(ParameterFilters=[{"Key": "KeyId", "Values": ["alias/aws/ssm"]}])
    assert [p["Name"] for p in found["Parameters"]] == ["/one"]


def test_sts(door):
    sts = client(door, "sts")
    identity = sts.get_caller_identity()
    assert identity["Arn"] == f"arn:aws:iam::{identity['Account']}:uid/0" and identity["UserId"] == "0"
    assert code_of(sts.get_session_token) == "AccessDenied"


def test_errors_have_awss_names_and_texts(door):
    kms = client(door, "kms")
    assert code_of(kms.describe_key, KeyId="alias/none") == "NotFoundException"
    with pytest.raises(kms.exceptions.NotFoundException) as caught:
        kms.describe_key(KeyId="alias/none")
    assert f"arn:aws:kms:{REGION}:" in str(caught.value)
    assert code_of(kms.generate_random, NumberOfBytes=1024 + 1) == "ValidationException"


def test_wrong_credentials_are_refused(door):
    assert code_of(client(door, "kms", aws_secret_access_key="x" * 40).list_keys) == "InvalidSignatureException"
    assert code_of(client(door, "kms", aws_access_key_id="ASIA" + "A" * 16).list_keys) == "UnrecognizedClientException"
    assert code_of(client(door, "kms", aws_session_token="rubbish").list_keys) == "UnrecognizedClientException"
    assert code_of(client(door, "kms", aws_session_token=None).list_keys) == "UnrecognizedClientException"


def post(endpoint, body, headers):
    request = urllib.request.Request(endpoint, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def signed(door, body, target="TrentService.ListKeys", service="kms", at=None, monkeypatch=None):
    _, endpoint, made = door
    request = AWSRequest("POST", endpoint + "/", data=body,
                         headers={"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"})
    signer = SigV4Auth(Credentials(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]), service, REGION)
    if at is not None:
        import botocore.auth

        moment = datetime.datetime.fromtimestamp(time.time() + at, datetime.UTC)
        for name in ("get_current_datetime",):
            if hasattr(botocore.auth, name):
                monkeypatch.setattr(botocore.auth, name, lambda remove_tzinfo=True: moment.replace(tzinfo=None) if remove_tzinfo else moment)
    signer.add_auth(request)
    return dict(request.headers.items())


def test_unsigned_changed_and_stale_requests_are_refused(door, monkeypatch):
    _, endpoint, _ = door
    status, answer = post(endpoint, b"{}", {"X-Amz-Target": "TrentService.ListKeys"})
    assert (status, answer["__type"]) == (400, "MissingAuthenticationTokenException")
    headers = signed(door, b"{}")
    assert post(endpoint, b"{}", headers)[0] == 200
    assert post(endpoint, b'{"Limit": 1}', headers)[1]["__type"] == "InvalidSignatureException"
    assert post(endpoint, b"{}", {**headers, "X-Amz-Target": "TrentService.ListAliases"})[1]["__type"] == "InvalidSignatureException"
    broken = headers["Authorization"].replace("host;", "")
    assert post(endpoint, b"{}", {**headers, "Authorization": broken})[1]["__type"] == "IncompleteSignatureException"
    assert post(endpoint, b"{}", {**headers, "Authorization": "Basic x"})[1]["__type"] == "IncompleteSignatureException"
    # A signature for another service does not open this one.
    assert post(endpoint, b"{}", signed(door, b"{}", service="ssm"))[1]["__type"] == "InvalidSignatureException"
    old = signed(door, b"{}", at=-1000, monkeypatch=monkeypatch)
    assert "Signature expired" in post(endpoint, b"{}", old)[1]["message"]
    early = signed(door, b"{}", at=1000, monkeypatch=monkeypatch)
    assert "not yet current" in post(endpoint, b"{}", early)[1]["message"]


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def presigned(door, at=None, monkeypatch=None, expires=3600, action="get_caller_identity", service="sts", **changes):
    if at is not None:
        import botocore.auth

        moment = datetime.datetime.fromtimestamp(time.time() + at, datetime.UTC)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: moment.replace(tzinfo=None) if remove_tzinfo else moment)
    made = client(door, service, **changes).generate_presigned_url(action, ExpiresIn=expires, HttpMethod="GET")
    if monkeypatch is not None:
        monkeypatch.undo()
    return made


def test_a_signed_url_tells_who_signed_it(door, monkeypatch):
    """As Vault, Kubernetes and others have clients prove who they are: a URL of GetCallerIdentity, which the other side asks for."""
    daemon, _, made = door
    iam = client(door, "iam")
    iam.create_user(UserName="ci")
    key = iam.create_access_key(UserName="ci")["AccessKey"]
    lasting = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"], "aws_session_token": None}
    for options, arn in (({}, "uid/0"), (lasting, "user/ci")):
        status, answer = get(presigned(door, **options))
        assert status == 200 and f"{arn}</Arn>" in answer and answer.startswith("<GetCallerIdentityResponse")
    status, answer = get(presigned(door, service="iam", action="list_users"))
    assert status == 200 and "<UserName>ci</UserName>" in answer
    whole = presigned(door)
    # As Kubernetes' aws-iam-authenticator reads it.
    status, answer = get(whole, Accept="application/json")
    told = json.loads(answer)["GetCallerIdentityResponse"]
    assert told["GetCallerIdentityResult"]["Arn"].endswith("uid/0") and told["ResponseMetadata"]["RequestId"]
    status, answer = get(whole.replace("Expires=3600", "Expires=3601"), Accept="application/json")
    assert status in (400, 403) and json.loads(answer)["Error"]["Type"] == "Sender"
    for change, says in (
        (("GetCallerIdentity", "GetAccessKeyInfo"), "does not match"), (("Expires=3600", "Expires=3601"), "does not match"),
        (("Version=", "Extra=1&Version="), "does not match"), (("X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm=AWS4-HMAC-SHA1"), "must be"),
        (("Expires=3600", "Expires=604801"), "X-Amz-Expires"), (("X-Amz-Expires=3600", "Y=1"), "X-Amz-Expires"), (("%2Fsts%2F", "%2Fiam%2F"), "does not match"),
        (("SignedHeaders=host", "SignedHeaders=x-a"), "SignedHeaders"), (("X-Amz-Date=20", "X-Amz-Date=19"), "X-Amz-Date"), (("Version=", "Action=GetUser&Version="), "twice"),
        (("X-Amz-Signature=", "X-Amz-Signature=A"), "no complete"), (("X-Amz-Security-Token=", "X-Amz-Security-Token=A"), "token"),
    ):  # fmt: skip
        assert change[0] in whole
        status, answer = get(whole.replace(*change))
        assert status in (400, 403) and says in answer and answer.startswith("<ErrorResponse" if says != "twice" else "{"), (change, answer)
    assert "and another one in its header" in get(whole, Authorization=signed(door, b"")["Authorization"])[1]
    assert "Signature expired" in get(presigned(door, at=-1000, monkeypatch=monkeypatch))[1]
    assert get(presigned(door, at=-600, monkeypatch=monkeypatch, expires=60))[0] == 200
    assert "is now earlier" in get(presigned(door, at=-1000, monkeypatch=monkeypatch))[1]
    assert get(whole.partition("?")[0])[0] in (400, 403) and get(whole.replace("/?", "/other?"))[0] in (400, 404)
    iam.delete_access_key(UserName="ci", AccessKeyId=key["AccessKeyId"])
    status, answer = get(presigned(door, **lasting))
    assert status in (400, 403) and "token" in answer
    assert made["SecretAccessKey"] not in whole


def test_no_sdk_speaks_another_protocol_here():
    """RPC v2 CBOR is spoken where the service's model offers it: of these no one does."""
    import botocore.session

    for service, protocol in (("kms", "json"), ("ssm", "json"), ("secretsmanager", "json"), ("sts", "query"), ("iam", "query")):
        assert botocore.session.get_session().get_service_model(service).metadata["protocols"] == [protocol]


def test_rubbish_is_refused(door):
    _, endpoint, _ = door
    for body, target, expected in (
        (b"{", "TrentService.ListKeys", "SerializationException"),
        (b"[]", "TrentService.ListKeys", "SerializationException"),
        (b"{}", "TrentService.NoSuch", "UnknownOperationException"),
        (b"{}", "Nonsense", "UnknownOperationException"),
        (b"{}", "TrentService.GetParameter", "UnknownOperationException"),
        (b"{}", "TrentService.GetStatus", "UnknownOperationException"),
        (b'{"Nonsense": 1}', "TrentService.ListKeys", "ValidationException"),
        (b'{"CiphertextBlob": "!!"}', "TrentService.Decrypt", "ValidationException"),
    ):
        status, answer = post(endpoint, body, signed(door, body, target))
        assert (status, answer["__type"]) == (400, expected), (body, target)
    signer = SigV4Auth(Credentials(door[2]["AccessKeyId"], door[2]["SecretAccessKey"], door[2]["SessionToken"]), "kms", REGION)
    asked = AWSRequest("POST", endpoint + "/?Limit=1", data=b"{}", headers={"X-Amz-Target": "TrentService.ListKeys", "Content-Type": "application/x-amz-json-1.1"})
    signer.add_auth(asked)
    assert post(asked.url, b"{}", dict(asked.headers.items()))[1]["__type"] == "UnknownOperationException"
    large = b'{"Description": "' + b"x" * (2 << 20) + b'"}'
    try:
        assert post(endpoint, large, signed(door, large, "TrentService.CreateKey"))[0] == 413
    except OSError:
        pass  # the door may close the connection while the body is still on its way


def test_credentials_end(door, make_daemon):
    daemon, endpoint, _ = door
    made = daemon.session().call("GetSessionToken", {"DurationSeconds": 900})["Credentials"]
    assert 890 < made["Expiration"] - time.time() < 910
    with pytest.raises(Exception, match="DurationSeconds|durationSeconds"):
        daemon.session().call("GetSessionToken", {"DurationSeconds": 10})


def test_many_clients_at_once(door):
    kms = client(door, "kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    failures = []

    def work():
        mine = client(door, "kms")
        for number in range(20):
            blob = mine.encrypt(KeyId=key, Plaintext=bytes([number]))["CiphertextBlob"]
            if mine.decrypt(CiphertextBlob=blob)["Plaintext"] != bytes([number]):
                failures.append(number)

    threads = [threading.Thread(target=work) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx"])
def test_who_holds_connections_and_asks_nothing_keeps_nobody_out(door, said):
    _, endpoint, _ = door
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    kms = client(door, "kms")
    kms.list_keys()
    held = []
    try:
        for number in range(CONNECTIONS_MAX + 72):
            held.append(socket.create_connection((host, int(port))))
            held[-1].sendall(said)
            if number % 50 == 49:
                # Who asks now and then stays, whoever comes.
                kms.list_keys()
        assert kms.list_keys()["Keys"] == [] and client(door, "sts").get_caller_identity()["Account"]
        ended = [is_cut(each) for each in held]
        assert all(ended[:70]) and not any(ended[100:])
    finally:
        for each in held:
            each.close()


def test_of_those_who_came_at_one_moment_the_first_goes_first(door):
    daemon, endpoint, _ = door
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    held = []
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        held = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS_MAX + 100)]
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert client(door, "kms").list_keys()["Keys"] == []
    ended = [is_cut(each) for each in held]
    assert all(ended[:100]) and not any(ended[101:])
    for each in held:
        each.close()


def is_cut(connection):
    connection.settimeout(0.02)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_the_audit_log_names_the_credentials(door):
    daemon, _, made = door
    client(door, "kms").list_keys()
    daemon.stop()
    lines = [json.loads(line) for line in (daemon.state / "audit" / "audit.jsonl").read_text().splitlines()]
    assert any(line["op"] == "ListKeys" and line.get("akid") == made["AccessKeyId"] for line in lines)
    assert made["SecretAccessKey"] not in json.dumps(lines) and made["SessionToken"] not in json.dumps(lines)


def test_only_loopback(make_daemon):
    with pytest.raises(RuntimeError, match="loopback"):
        make_daemon("--aws-endpoint", "0.0.0.0:0")


def test_regions_have_their_own_state_and_one_is_the_sockets(make_daemon):
    daemon = make_daemon("--aws-endpoint", "127.0.0.1:0", "--aws-region", "eu-west-1")
    session = daemon.session()
    door = daemon, session.call("GetStatus", {})["AwsEndpoint"], session.call("GetSessionToken", {})["Credentials"]
    home, away = client(door, "kms", region="eu-west-1"), client(door, "kms", region="us-east-1")
    local = session.call("CreateKey", {})["KeyMetadata"]
    session.call("CreateAlias", {"AliasName": "alias/both", "TargetKeyId": local["KeyId"]})
    far = away.create_key()["KeyMetadata"]
    away.create_alias(AliasName="alias/both", TargetKeyId=far["KeyId"])
    assert far["Arn"].startswith("arn:aws:kms:us-east-1:")
    assert home.describe_key(KeyId="alias/both")["KeyMetadata"]["KeyId"] == local["KeyId"]
    assert away.describe_key(KeyId="alias/both")["KeyMetadata"]["KeyId"] == far["KeyId"]
    assert code_of(home.describe_key, KeyId=far["KeyId"]) == "NotFoundException"
    assert code_of(home.describe_key, KeyId=far["Arn"]) == "NotFoundException"
    assert code_of(away.describe_key, KeyId=local["KeyId"]) == "NotFoundException"
    assert [key["KeyId"] for key in away.list_keys()["Keys"]] == [far["KeyId"]]
    sealed = away.encrypt(KeyId="alias/both", Plaintext=b"x")["CiphertextBlob"]
    assert code_of(home.decrypt, CiphertextBlob=sealed) == "InvalidCiphertextException"
    for region, value in (("eu-west-1", "here"), ("us-east-1", "there")):
        ssm = client(door, "ssm", region=region)
        ssm.put_parameter(Name="/a/b", Value=value, Type="SecureString")
        found = ssm.get_parameter(Name="/a/b", WithDecryption=True)["Parameter"]
        assert found["Value"] == value and found["ARN"].startswith(f"arn:aws:ssm:{region}:")
        assert ssm.describe_parameters()["Parameters"][0]["KeyId"] == "alias/aws/ssm"
    assert session.call("GetParameter", {"Name": "/a/b", "WithDecryption": True})["Parameter"]["Value"] == "here"
    daemon.stop()
    daemon.start()
    found = daemon.session().call("GetParameter", {"Name": "/a/b", "WithDecryption": True})["Parameter"]
    assert found["Value"] == "here" and local["KeyId"] in {key["KeyId"] for key in daemon.session().call("ListKeys", {})["Keys"]}
    door = daemon, daemon.session().call("GetStatus", {})["AwsEndpoint"], door[2]
    assert client(door, "ssm", region="us-east-1").get_parameter(Name="/a/b")["Parameter"]["Version"] == 1
    client(door, "ssm", region="us-east-1").delete_parameter(Name="/a/b")
    assert client(door, "kms", region="us-east-1").describe_key(KeyId="alias/both")["KeyMetadata"]["KeyId"] == far["KeyId"]


def test_an_ephemeral_daemon_of_a_named_account(tmp_path):
    socket = tmp_path / "s"
    command = [sys.executable, "-m", "kmsd", "serve", "--ephemeral", "--account", "123456789012", "--private",
               "--socket", str(socket), "--aws-endpoint", "127.0.0.1:0"]  # fmt: skip
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        session = ClientSession(socket=str(socket), autostart=False)
        assert session.call("GetStatus", {})["Account"] == "123456789012"
        folder = Path(session.call("GetStatus", {})["StateDirectory"])
        assert session.call("ListKeys", {})["Keys"] == []
        session.call("CreateKey", {})
        process.terminate()
        assert process.wait(20) == 0 and not folder.parent.exists()
        process.stderr.close()
    refused = subprocess.run([sys.executable, "-m", "kmsd", "serve", "--account", "1"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--ephemeral" in refused.stderr


def test_the_door_on_a_unix_socket(make_daemon, tmp_path):
    """Signed requests over a Unix socket: the same answers, the same refusals; and its file goes with the daemon."""
    path = tmp_path / "aws.sock"
    daemon = make_daemon("--aws-socket", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    made = daemon.session().call("GetSessionToken", {})["Credentials"]
    credentials = Credentials(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])

    def ask(secret=None, target="TrentService.CreateKey", body=b"{}"):
        request = AWSRequest("POST", "http://localhost/", data=body, headers={"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"})
        who = Credentials(credentials.access_key, secret, credentials.token) if secret else credentials
        SigV4Auth(who, "kms", "us-east-1").add_auth(request)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            connection.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{head}\r\n".encode() + body)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

    status, found = ask()
    assert status == 200 and found["KeyMetadata"]["Arn"].startswith("arn:aws:kms:us-east-1:")
    status, found = ask(secret="wrong")
    assert status == 400 and "Signature" in found["__type"]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /credentials HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n")
        assert b" 403 " in connection.recv(1 << 16)
    daemon.stop()
    daemon.start()
    assert ask()[0] == 200  # a socket file that is left behind is replaced
