"""Operations over a real socket, as one user and as another."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from kmsfs import errors
from kmsfs.api.registry import OPERATIONS
from kmsfs.client.boto import make_client
from kmsfs.client.datakeys import DataKeyCache
from kmsfs.client.transport import Transport
from kmsfs.client.watch import LOST, RESUMED, KeyWatcher
from kmsfs.formats.frame import encode_request
from kmsfs.formats.packing import pack
from support.peers import as_user
from support.waiting import soon


@pytest.fixture
def key(call):
    return call("CreateKey", Description="test")["KeyMetadata"]


def principal(call, uid):
    return f"arn:kmsfs:iam::{call('GetStatus')['Account']}:uid/{uid}"


def test_encrypt_decrypt_with_context(call, key):
    blob = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x" * 4096, EncryptionContext={"a": "bc"})["CiphertextBlob"]
    assert call("Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "bc"})["Plaintext"] == b"x" * 4096
    for context in ({"ab": "c"}, {}, {"a": "bc", "d": ""}, {"A": "bc"}):
        with pytest.raises(errors.InvalidCiphertext):
            call("Decrypt", CiphertextBlob=blob, EncryptionContext=context)
    other = call("CreateKey")["KeyMetadata"]["KeyId"]
    with pytest.raises(errors.IncorrectKey):
        call("Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "bc"}, KeyId=other)
    moved = call("ReEncrypt", CiphertextBlob=blob, SourceEncryptionContext={"a": "bc"}, DestinationKeyId=other)
    assert call("Decrypt", CiphertextBlob=moved["CiphertextBlob"])["KeyId"].endswith(other)


def test_data_keys(call, key):
    made = call("GenerateDataKey", KeyId=key["Arn"], KeySpec="AES_128")
    assert len(made["Plaintext"]) == 16
    assert call("Decrypt", CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    assert "Plaintext" not in call("GenerateDataKeyWithoutPlaintext", KeyId=key["Arn"], NumberOfBytes=1024)
    batch = call("GenerateDataKeyBatch", KeyId=key["Arn"], EncryptionContexts=[{"n": str(n)} for n in range(5)])
    items = [
        {"CiphertextBlob": item["CiphertextBlob"], "EncryptionContext": {"n": str(n)}}
        for n, item in enumerate(batch["DataKeys"])
    ]
    items.append({"CiphertextBlob": items[0]["CiphertextBlob"], "EncryptionContext": {"n": "9"}})
    answers = call("DecryptBatch", Items=items)["Items"]
    assert [a.get("Plaintext") for a in answers[:5]] == [item["Plaintext"] for item in batch["DataKeys"]]
    assert answers[5] == {"ErrorCode": "InvalidCiphertextException"}
    assert len(call("GenerateRandom", NumberOfBytes=1024)["Plaintext"]) == 1024


@pytest.mark.parametrize(
    ("operation", "parameters", "text"),
    [
        ("GenerateRandom", {"NumberOfBytes": 1025}, "less than or equal to 1024"),
        ("GenerateRandom", {}, "NumberOfBytes is required."),
        ("GenerateDataKey", {"KeyId": "x"}, "number of bytes or key spec"),
        ("GenerateDataKey", {"KeyId": "x", "KeySpec": "AES_256", "NumberOfBytes": 1}, "number of bytes or key spec"),
        ("Encrypt", {"KeyId": "x", "Plaintext": b"y" * 4097}, "'plaintext' failed to satisfy constraint"),
        ("Encrypt", {"KeyId": "x", "Plaintext": b""}, "greater than or equal to 1"),
        ("Encrypt", {"KeyId": "x", "Plaintext": b"y", "Colour": 1}, "Unknown parameter"),
        ("Encrypt", {"KeyId": "x"}, "must not be null"),
        ("ScheduleKeyDeletion", {"KeyId": "x", "PendingWindowInDays": 6}, "greater than or equal to 7"),
        ("CreateKey", {"KeySpec": "RSA_1024"}, "enum value set"),
        ("RetireGrant", {}, "GrantToken"),
    ],
)
def test_bad_requests(call, operation, parameters, text):
    with pytest.raises(errors.InvalidRequest, match=text) as caught:
        call(operation, **parameters)
    assert "yyyy" not in str(caught.value)


def test_unknown_things(call):
    for operation, parameters, kind in [
        ("DescribeKey", {"KeyId": "alias/none"}, errors.NotFound),
        ("DescribeKey", {"KeyId": "e0c3c3a0-0000-4000-8000-000000000000"}, errors.NotFound),
        ("DescribeKey", {"KeyId": "rubbish"}, errors.NotFound),
        ("Decrypt", {"CiphertextBlob": b"rubbish" * 30}, errors.InvalidCiphertext),
        ("DeleteAlias", {"AliasName": "alias/none"}, errors.NotFound),
        ("RetireGrant", {"GrantToken": "rubbish"}, errors.InvalidGrantToken),
        ("ListKeys", {"Marker": "rubbish"}, errors.InvalidMarker),
    ]:
        with pytest.raises(kind):
            call(operation, **parameters)


def test_key_states(call, key):
    name = key["KeyId"]
    blob = call("Encrypt", KeyId=name, Plaintext=b"x")["CiphertextBlob"]
    call("DisableKey", KeyId=name)
    for operation, parameters in [
        ("Encrypt", {"KeyId": name, "Plaintext": b"x"}),
        ("Decrypt", {"CiphertextBlob": blob}),
        ("GenerateDataKey", {"KeyId": name, "KeySpec": "AES_256"}),
        ("RotateKeyOnDemand", {"KeyId": name}),
        ("CreateGrant", {"KeyId": name, "GranteePrincipal": principal(call, 1), "Operations": ["Decrypt"]}),
    ]:
        with pytest.raises(errors.KeyDisabled, match="is disabled"):
            call(operation, **parameters)
    with pytest.raises(errors.KeyInvalidState):
        call("CancelKeyDeletion", KeyId=name)
    call("EnableKey", KeyId=name)
    answer = call("ScheduleKeyDeletion", KeyId=name, PendingWindowInDays=7)
    assert 6.9 < (answer["DeletionDate"] - time.time()) / 86400 < 7.1
    for operation, parameters in [
        ("Decrypt", {"CiphertextBlob": blob}),
        ("EnableKey", {"KeyId": name}),
        ("DisableKey", {"KeyId": name}),
        ("ScheduleKeyDeletion", {"KeyId": name}),
        ("UpdateKeyDescription", {"KeyId": name, "Description": ""}),
        ("CreateAlias", {"AliasName": "alias/pending", "TargetKeyId": name}),
    ]:
        with pytest.raises(errors.KeyInvalidState, match="pending deletion"):
            call(operation, **parameters)
    call("CancelKeyDeletion", KeyId=name)
    assert call("DescribeKey", KeyId=name)["KeyMetadata"]["KeyState"] == "Disabled"
    call("EnableKey", KeyId=name)
    assert call("Decrypt", CiphertextBlob=blob)["Plaintext"] == b"x"


def test_rotation_keeps_old_ciphertext_readable(call, key):
    old = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"old")["CiphertextBlob"]
    for _ in range(25):
        call("RotateKeyOnDemand", KeyId=key["KeyId"])
    with pytest.raises(errors.LimitExceeded, match="on-demand rotations limit"):
        call("RotateKeyOnDemand", KeyId=key["KeyId"])
    new = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"new")["CiphertextBlob"]
    assert old[20:24] != new[20:24]
    first, second = call("Decrypt", CiphertextBlob=old), call("Decrypt", CiphertextBlob=new)
    assert (first["Plaintext"], second["Plaintext"]) == (b"old", b"new")
    assert first["KeyMaterialId"] != second["KeyMaterialId"]


def test_aliases(call, key):
    call("CreateAlias", AliasName="alias/t/one", TargetKeyId=key["KeyId"])
    with pytest.raises(errors.AlreadyExists):
        call("CreateAlias", AliasName="alias/t/one", TargetKeyId=key["KeyId"])
    other = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("UpdateAlias", AliasName="alias/t/one", TargetKeyId=other)
    assert call("DescribeKey", KeyId="alias/t/one")["KeyMetadata"]["KeyId"] == other
    listed = call("ListAliases", KeyId=other)["Aliases"]
    assert [entry["AliasName"] for entry in listed] == ["alias/t/one"]
    call("DeleteAlias", AliasName="alias/t/one")
    for bad, error in (("nope", errors.InvalidRequest), ("alias/aws/x", errors.ReservedAlias)):
        with pytest.raises(error):
            call("CreateAlias", AliasName=bad, TargetKeyId=other)


def test_pages(call):
    wanted = {call("CreateKey")["KeyMetadata"]["KeyId"] for _ in range(5)}
    found, marker = set(), None
    while True:
        page = call("ListKeys", Limit=2, **({"Marker": marker} if marker else {}))
        assert len(page["Keys"]) <= 2
        found |= {entry["KeyId"] for entry in page["Keys"]}
        marker = page.get("NextMarker")
        if not marker:
            break
    assert wanted <= found


@pytest.mark.root
def test_another_user_gets_nothing_by_default(daemon, call, key):
    blob = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x")["CiphertextBlob"]
    with as_user(daemon, 4321) as other:
        assert other("GetStatus")["Principal"].endswith(":uid/4321")
        for operation, parameters in deny_table(key["KeyId"], blob, principal(call, 4321)):
            with pytest.raises(errors.AccessDenied):
                other(operation, **parameters)
        assert key["KeyId"] not in {entry["KeyId"] for entry in other("ListKeys", Limit=1000)["Keys"]}


def deny_table(key_id, blob, who):
    """A call of every operation on a key that a stranger must be denied."""
    volume = "ab" * 16
    return [
        ("DescribeKey", {"KeyId": key_id}),
        ("UpdateKeyDescription", {"KeyId": key_id, "Description": ""}),
        ("EnableKey", {"KeyId": key_id}),
        ("DisableKey", {"KeyId": key_id}),
        ("ScheduleKeyDeletion", {"KeyId": key_id}),
        ("CancelKeyDeletion", {"KeyId": key_id}),
        ("RotateKeyOnDemand", {"KeyId": key_id}),
        ("PutKeyPolicy", {"KeyId": key_id, "Policy": "{}"}),
        ("GetKeyPolicy", {"KeyId": key_id}),
        ("CreateAlias", {"AliasName": "alias/steal", "TargetKeyId": key_id}),
        ("Encrypt", {"KeyId": key_id, "Plaintext": b"x"}),
        ("Decrypt", {"CiphertextBlob": blob}),
        ("ReEncrypt", {"CiphertextBlob": blob, "DestinationKeyId": key_id}),
        ("GenerateDataKey", {"KeyId": key_id, "KeySpec": "AES_256"}),
        ("GenerateDataKeyWithoutPlaintext", {"KeyId": key_id, "KeySpec": "AES_256"}),
        ("GenerateDataKeyBatch", {"KeyId": key_id, "EncryptionContexts": [{}]}),
        ("CreateGrant", {"KeyId": key_id, "GranteePrincipal": who, "Operations": ["Decrypt"]}),
        ("ListGrants", {"KeyId": key_id}),
        ("RevokeGrant", {"KeyId": key_id, "GrantId": "1" * 64}),
        ("Sign", {"KeyId": key_id, "Message": b"x", "SigningAlgorithm": "ECDSA_SHA_256"}),
        ("Verify", {"KeyId": key_id, "Message": b"x", "Signature": b"x", "SigningAlgorithm": "ECDSA_SHA_256"}),
        ("GenerateMac", {"KeyId": key_id, "Message": b"x", "MacAlgorithm": "HMAC_SHA_256"}),
        ("VerifyMac", {"KeyId": key_id, "Message": b"x", "MacAlgorithm": "HMAC_SHA_256", "Mac": b"x"}),
        ("GetPublicKey", {"KeyId": key_id}),
        ("DeriveSharedSecret", {"KeyId": key_id, "KeyAgreementAlgorithm": "ECDH", "PublicKey": b"x"}),
        ("Encapsulate", {"KeyId": key_id, "EncapsulationAlgorithm": "ML_KEM"}),
        ("Decapsulate", {"KeyId": key_id, "EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": b"x"}),
        ("GenerateDataKeyPair", {"KeyId": key_id, "KeyPairSpec": "ECC_NIST_P256"}),
        ("GenerateDataKeyPairWithoutPlaintext", {"KeyId": key_id, "KeyPairSpec": "ECC_NIST_P256"}),
        ("EnableKeyRotation", {"KeyId": key_id}),
        ("DisableKeyRotation", {"KeyId": key_id}),
        ("GetKeyRotationStatus", {"KeyId": key_id}),
        ("ListKeyRotations", {"KeyId": key_id}),
        ("GetKeyLastUsage", {"KeyId": key_id}),
        ("ListKeyDependents", {"KeyId": key_id}),
        ("TagResource", {"KeyId": key_id, "Tags": [{"TagKey": "a", "TagValue": "b"}]}),
        ("UntagResource", {"KeyId": key_id, "TagKeys": ["a"]}),
        ("ListResourceTags", {"KeyId": key_id}),
        ("ListKeyPolicies", {"KeyId": key_id}),
        ("GetParametersForImport", {"KeyId": key_id, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}),
        ("ImportKeyMaterial", {"KeyId": key_id, "ImportToken": b"x", "EncryptedKeyMaterial": b"x"}),
        ("DeleteImportedKeyMaterial", {"KeyId": key_id}),
        ("ReplicateKey", {"KeyId": key_id, "ReplicaRegion": "eu-west-1"}),
        ("UpdatePrimaryRegion", {"KeyId": key_id, "PrimaryRegion": "eu-west-1"}),
        ("Watch", {"KeyIds": [key_id]}),
        ("OpenVolumeSession", {"KeyId": key_id, "VolumeId": volume}),
        ("CloseVolumeSession", {"KeyId": key_id, "VolumeId": volume, "Session": 1}),
        ("MoveVolume", {"KeyId": key_id, "VolumeId": volume, "Session": 1, "TargetKeyId": key_id}),
        ("AcceptVolumeRestore", {"KeyId": key_id, "VolumeId": volume}),
        ("SetDirectoryKey", {"KeyId": key_id, "VolumeId": volume, "Session": 1, "DirectoryId": "0" * 32, "TargetKeyId": key_id}),
        ("SimulateKeyAccess", {"KeyId": key_id, "Principal": who, "Action": "kms:Decrypt"}),
        ("ListAuthorizedPrincipals", {"KeyId": key_id, "Action": "kms:Decrypt"}),
        ("DestroyKeyMaterial", {"KeyId": key_id, "KeyMaterialId": "a" * 64}),
        ("HealVolume", {"KeyId": key_id, "VolumeId": volume, "Session": 1, "HealedSessions": [1]}),
    ]


def test_the_deny_table_misses_no_key_operation():
    covered = {operation for operation, _ in deny_table("", b"", "")}
    rest = {name for name, op in OPERATIONS.items() if op.service not in ("ssm", "secretsmanager", "iam")} - covered
    assert rest == {
        "CreateKey", "ListKeys", "ListAliases", "UpdateAlias", "DeleteAlias", "GenerateRandom", "DecryptBatch",
        "RetireGrant", "ListRetirableGrants", "GetStatus", "GetCallerIdentity", "GetSessionToken", "AssumeRole",
        "GetAccessKeyInfo", "PutAccessKey", "CreateAccount", "DescribeCreateAccountStatus", "DescribeAccount", "ListAccounts",
        "CreateCustomKeyStore", "DescribeCustomKeyStores", "ConnectCustomKeyStore", "DisconnectCustomKeyStore", "UpdateCustomKeyStore",
        "DeleteCustomKeyStore", "DescribeOrganization", "CloseAccount", "ReopenAccount", "AssignLocalUser", "ExplainDecision", "ListDueRotations",
        "GetMetrics", "WatchChanges", "RaiseAlarm", "Seal", "GetSealStatus", "Unseal",
    }  # fmt: skip


@pytest.mark.root
def test_grants_work_and_end(daemon, call, key):
    who = principal(call, 4321)
    blob = call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x", EncryptionContext={"a": "b"})["CiphertextBlob"]
    made = call(
        "CreateGrant", KeyId=key["KeyId"], GranteePrincipal=who, Operations=["Decrypt", "RetireGrant"], Name="n",
        Constraints={"EncryptionContextSubset": {"a": "b"}},
    )  # fmt: skip
    again = call(
        "CreateGrant", KeyId=key["KeyId"], GranteePrincipal=who, Operations=["RetireGrant", "Decrypt"], Name="n",
        Constraints={"EncryptionContextSubset": {"a": "b"}},
    )  # fmt: skip
    assert again["GrantId"] == made["GrantId"]
    with as_user(daemon, 4321) as other:
        request = {"CiphertextBlob": blob, "EncryptionContext": {"a": "b"}, "GrantTokens": [made["GrantToken"]]}
        assert other("Decrypt", **request)["Plaintext"] == b"x"
        with pytest.raises(errors.AccessDenied):
            other("Encrypt", KeyId=key["KeyId"], Plaintext=b"x", EncryptionContext={"a": "b"})
        with pytest.raises(errors.InvalidGrantToken):
            other("Decrypt", **{**request, "GrantTokens": ["AAAA"]})
        other("RetireGrant", GrantToken=made["GrantToken"])
        with pytest.raises(errors.AccessDenied):
            other("Decrypt", CiphertextBlob=blob, EncryptionContext={"a": "b"})
    second = call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=who, Operations=["Decrypt"], RetiringPrincipal=who)
    with as_user(daemon, 4321) as other:
        listed = other("ListRetirableGrants", RetiringPrincipal=who)["Grants"]
        assert [entry["GrantId"] for entry in listed] == [second["GrantId"]]
        with pytest.raises(errors.AccessDenied):
            other("ListRetirableGrants", RetiringPrincipal=principal(call, 0))
    call("RevokeGrant", KeyId=key["KeyId"], GrantId=second["GrantId"])
    with pytest.raises(errors.InvalidGrantId):
        call("RevokeGrant", KeyId=key["KeyId"], GrantId=second["GrantId"])
    assert call("ListGrants", KeyId=key["KeyId"])["Grants"] == []


@pytest.mark.root
def test_a_grant_made_through_a_grant_cannot_exceed_it(daemon, call, key):
    who = principal(call, 4321)
    call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=who, Operations=["Decrypt", "CreateGrant"])
    with as_user(daemon, 4321) as other:
        friend = principal(call, 4322)
        other("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=friend, Operations=["Decrypt"])
        with pytest.raises(errors.AccessDenied):
            other("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=friend, Operations=["Encrypt"])


@pytest.mark.root
def test_a_grant_made_through_a_grant_does_not_outlive_it(daemon, call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    who, friend = principal(call, 4321), principal(call, 4322)
    call("CreateGrant", KeyId=key, GranteePrincipal=who, Operations=["Decrypt", "CreateGrant"], ExpiresInSeconds=600)
    with as_user(daemon, 4321) as other:
        other("CreateGrant", KeyId=key, GranteePrincipal=friend, Operations=["Decrypt"])
        other("CreateGrant", KeyId=key, GranteePrincipal=friend, Operations=["Decrypt"], ExpiresInSeconds=86_400)
    found = call("ListGrants", KeyId=key)["Grants"]
    parent = next(grant for grant in found if grant["GranteePrincipal"] == who)
    children = [grant for grant in found if grant["GranteePrincipal"] == friend]
    assert len(children) == 2 and {grant["ExpirationDate"] for grant in children} == {parent["ExpirationDate"]}


def policy_for(call, *statements):
    owner = {"Effect": "Allow", "Principal": {"AWS": principal(call, 0)}, "Action": "kms:*", "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [owner, *statements]})


@pytest.mark.root
def test_policies_are_evaluated(daemon, call, key):
    allow = {
        "Effect": "Allow", "Principal": "*", "Action": ["kms:Decrypt", "kms:Encrypt"], "Resource": "*",
        "Condition": {"StringEquals": {"kms:EncryptionContext:team": "red"}},
    }  # fmt: skip
    deny = {"Effect": "Deny", "Principal": {"AWS": principal(call, 4322)}, "Action": "kms:*", "Resource": "*"}
    call("PutKeyPolicy", KeyId=key["KeyId"], Policy=policy_for(call, allow, deny))
    request = {"KeyId": key["KeyId"], "Plaintext": b"x", "EncryptionContext": {"team": "red"}}
    with as_user(daemon, 4321) as friend, as_user(daemon, 4322) as foe:
        friend("Encrypt", **request)
        with pytest.raises(errors.AccessDenied):
            friend("Encrypt", **{**request, "EncryptionContext": {"team": "blue"}})
        with pytest.raises(errors.AccessDenied):
            foe("Encrypt", **request)
        call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=principal(call, 4322), Operations=["Encrypt"])
        with pytest.raises(errors.AccessDenied):
            foe("Encrypt", **request)
    assert json.loads(call("GetKeyPolicy", KeyId=key["KeyId"])["Policy"])["Version"] == "2012-10-17"


@pytest.mark.parametrize("text", ["no json", "{}", '{"Statement": []}'])
def test_bad_policies(call, key, text):
    with pytest.raises(errors.MalformedPolicy):
        call("PutKeyPolicy", KeyId=key["KeyId"], Policy=text)


def test_a_policy_that_locks_its_author_out(call, key):
    stranger = {"Effect": "Allow", "Principal": {"AWS": principal(call, 99)}, "Action": "kms:*", "Resource": "*"}
    text = json.dumps({"Statement": [stranger]})
    with pytest.raises(errors.MalformedPolicy, match="will not allow you"):
        call("PutKeyPolicy", KeyId=key["KeyId"], Policy=text)
    with pytest.raises(errors.MalformedPolicy):
        call("CreateKey", Policy=text)
    call("PutKeyPolicy", KeyId=key["KeyId"], Policy=text, BypassPolicyLockoutSafetyCheck=True)
    with pytest.raises(errors.AccessDenied):
        call("GetKeyPolicy", KeyId=key["KeyId"])


def test_dry_run(call, key):
    with pytest.raises(errors.DryRunSucceeded):
        call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x", DryRun=True)
    call("DisableKey", KeyId=key["KeyId"])
    with pytest.raises(errors.KeyDisabled):
        call("Encrypt", KeyId=key["KeyId"], Plaintext=b"x", DryRun=True)


# --- frames, limits, streams ------------------------------------------------------------------------------------


def raw(daemon):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(daemon.socket))
    return connection


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n", (4).to_bytes(4, "big") + b"\xc1\xc1\xc1\xc1",
     (200).to_bytes(4, "big") + pack({"v": 9, "id": 1, "op": "x", "p": {}}).ljust(200, b"\0")],
)  # fmt: skip
def test_rubbish_frames_get_one_answer_and_the_door(daemon, data):
    with raw(daemon) as connection:
        connection.sendall(data)
        seen = b""
        while piece := connection.recv(65536):
            seen += piece
        assert b"ProtocolException" in seen
    assert daemon.answers()


def test_half_frames_are_cut_off(daemon):
    with raw(daemon) as connection:
        connection.sendall(encode_request(1, "GetStatus", {})[:-3])
        start = time.monotonic()
        assert connection.recv(100) == b""
        assert 4 < time.monotonic() - start < 8


def test_a_passed_deadline_is_not_begun(daemon):
    with raw(daemon) as connection:
        connection.sendall(encode_request(1, "CreateKey", {}, deadline_ms=0))
        assert b"DeadlineExceededException" in connection.recv(4096)
        connection.sendall(encode_request(2, "GetStatus", {}, deadline_ms=5000))
        assert b"Principal" in connection.recv(4096)


def test_pipelining_answers_everything_in_order(daemon):
    with raw(daemon) as connection:
        connection.sendall(b"".join(encode_request(n, "GenerateRandom", {"NumberOfBytes": 8}) for n in range(500)))
        transport = Transport(str(daemon.socket), 10)
        transport._socket.close()
        transport._socket = connection
        assert [transport.receive()["id"] for _ in range(500)] == list(range(500))


def test_watch_tells_of_changes(daemon, call, key):
    events, seen = [], threading.Event()

    def on_event(event):
        events.append(event)
        seen.set()

    watcher = KeyWatcher(daemon.session(), [key["KeyId"]], on_event)
    watcher.start()
    call("DescribeKey", KeyId=key["KeyId"])
    call("DisableKey", KeyId=key["KeyId"])
    assert seen.wait(5)
    assert events[0]["kind"] == "disabled" and events[0]["key"] == key["Arn"]
    assert watcher.alive
    watcher.close()


def test_watch_tells_that_it_was_away(fresh_daemon):
    """What changed meanwhile is unknown: who holds a key because of it learns that he has to ask again."""
    fresh_daemon.start()
    key = fresh_daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    kinds = []
    watcher = KeyWatcher(fresh_daemon.session(), [key], lambda event: kinds.append(event["kind"]))
    watcher.start()
    assert not kinds
    fresh_daemon.stop(signal.SIGKILL)
    fresh_daemon.start()
    soon([LOST, RESUMED], lambda: kinds[:1] + kinds[-1:])
    watcher.close()


def test_data_key_cache_is_dropped_by_events(daemon, call, key):
    cache = DataKeyCache(daemon.session(), key["KeyId"], max_messages=3)
    first, blob = cache.for_sealing(10, {"a": "b"})
    secret = first.reveal()
    assert cache.for_sealing(10, {"a": "b"})[1] == blob
    assert cache.for_sealing(10, {"a": "c"})[1] != blob
    cache.for_sealing(10, {"a": "b"})
    assert cache.for_sealing(10, {"a": "b"})[1] != blob
    assert cache.for_opening(blob, {"a": "b"}).reveal() == secret
    call("DisableKey", KeyId=key["KeyId"])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            cache.for_opening(blob, {"a": "b"})
        except errors.KeyDisabled:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the cache outlived its key")
    cache.close()


def test_boto_manners(daemon, key):
    client = make_client("kms", socket=str(daemon.socket), autostart=False)
    answer = client.generate_data_key(KeyId=key["KeyId"], KeySpec="AES_256")
    assert set(answer) == {"CiphertextBlob", "Plaintext", "KeyId", "KeyMaterialId", "ResponseMetadata"}
    with pytest.raises(client.exceptions.NotFoundException) as caught:
        client.describe_key(KeyId="alias/none")
    assert caught.value.response["Error"]["Code"] == "NotFoundException"
    assert client.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["CreationDate"].tzinfo is not None
    assert sum(len(p["Keys"]) for p in client.get_paginator("list_keys").paginate(Limit=2)) >= 1
    with pytest.raises(AttributeError):
        client.no_such_operation
    with pytest.raises(errors.UsageError):
        make_client("s3", socket=None, autostart=False)


def test_the_client_is_thread_safe(daemon, key):
    client = make_client("kms", socket=str(daemon.socket), autostart=False)
    failures = []

    def work(number):
        for n in range(50):
            text = f"{number}-{n}".encode()
            blob = client.encrypt(KeyId=key["KeyId"], Plaintext=text)["CiphertextBlob"]
            if client.decrypt(CiphertextBlob=blob)["Plaintext"] != text:
                failures.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_volume_sessions(daemon, call, key):
    volume = os.urandom(16).hex()
    request = {"KeyId": key["KeyId"], "VolumeId": volume}
    one, two = Transport(str(daemon.socket), 10), Transport(str(daemon.socket), 10)
    nothing_known = {"FreshnessHead": b"", "FreshnessMayBegin": True}
    assert one.call("OpenVolumeSession", request)["r"] == {"Session": 1, "UncleanSessions": [], **nothing_known}
    assert two.call("OpenVolumeSession", request)["e"]["code"] == "VolumeBusyException"
    assert two.call("CloseVolumeSession", {**request, "Session": 1})["e"]["code"] == "VolumeBusyException"
    one.call("CloseVolumeSession", {**request, "Session": 1, "FreshnessHead": b"h" * 32})
    assert one.call("CloseVolumeSession", {**request, "Session": 1, "FreshnessHead": b"x" * 32})["e"]["code"] == "VolumeBusyException"
    known = {"FreshnessHead": b"h" * 32, "FreshnessMayBegin": False}
    assert two.call("OpenVolumeSession", request)["r"] == {"Session": 2, "UncleanSessions": [], **known}
    assert one.call("AcceptVolumeRestore", request)["e"]["code"] == "VolumeBusyException"
    two.close()
    deadline = time.monotonic() + 5
    while True:
        answer = one.call("OpenVolumeSession", {**request, "Resume": 2})
        if "r" in answer or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert answer["r"]["Session"] == 2
    one.call("CloseVolumeSession", {**request, "Session": 2})
    assert one.call("OpenVolumeSession", {**request, "ReadOnly": True})["r"]["FreshnessHead"] == b"h" * 32
    assert "r" in one.call("AcceptVolumeRestore", request)
    accepted = one.call("OpenVolumeSession", {**request, "ReadOnly": True})["r"]
    assert accepted["FreshnessMayBegin"] and accepted["FreshnessHead"] not in (b"", b"h" * 32)
    # Sessions that a restored state does not know of may have been: none of their numbers comes again.
    assert accepted["Session"] > 1_000_000 and accepted["UncleanSessions"] == list(range(3, 259))
    other = call("CreateKey")["KeyMetadata"]["KeyId"]
    assert one.call("OpenVolumeSession", {**request, "KeyId": other})["e"]["code"] == "IncorrectKeyException"
    one.close()


def test_a_client_with_thousands_of_open_files(daemon):
    """select(2) takes no descriptor past 1,023; a mount keeps thousands of files open."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    session = daemon.session()
    try:
        for _ in range(3):
            session.call("GetStatus", {})
            time.sleep(0.02)  # so long that the connection is looked at before it is used again
    finally:
        session.close()
        for descriptor in held:
            os.close(descriptor)


def test_each_context_of_a_batch_is_asked_for_where_it_can_matter(daemon, call, key):
    """One decision is enough for a policy without conditions only: conditions, variables and grants look at each context."""
    who = call("GetStatus")["Principal"]
    mine = {"Effect": "Allow", "Principal": {"AWS": who}, "Action": "kms:*", "Resource": "*"}
    refused = {"Effect": "Deny", "Principal": "*", "Action": "kms:GenerateDataKey", "Resource": "*", "Condition": {"StringEquals": {"kms:EncryptionContext:tier": "secret"}}}
    policy = lambda *statements: json.dumps({"Version": "2012-10-17", "Statement": list(statements)})  # noqa: E731
    ask = lambda ask, *tiers: ask("GenerateDataKeyBatch", KeyId=key["KeyId"], EncryptionContexts=[{"tier": tier} for tier in tiers])  # noqa: E731
    made = ask(call, "open", "secret")["DataKeys"]
    assert len({each["Plaintext"] for each in made}) == 2
    for each, tier in zip(made, ("open", "secret"), strict=True):
        assert call("Decrypt", CiphertextBlob=each["CiphertextBlob"], EncryptionContext={"tier": tier})["Plaintext"] == each["Plaintext"]
    call("PutKeyPolicy", KeyId=key["KeyId"], Policy=policy(mine, refused))
    assert len(ask(call, "open", "open")["DataKeys"]) == 2
    for tiers in (("open", "secret"), ("secret", "open"), ("open", "open", "secret")):
        with pytest.raises(errors.AccessDenied):
            ask(call, *tiers)
    call("PutKeyPolicy", KeyId=key["KeyId"], Policy=policy(mine))
    if os.getuid() == 0:
        grantee = principal(call, 4321)
        call("CreateGrant", KeyId=key["KeyId"], GranteePrincipal=grantee, Operations=["GenerateDataKey"], Constraints={"EncryptionContextSubset": {"tier": "open"}})
        with as_user(daemon, 4321) as other:
            assert len(ask(other, "open", "open")["DataKeys"]) == 2
            with pytest.raises(errors.AccessDenied):
                ask(other, "open", "secret")
