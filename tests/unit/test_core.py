"""Errors, secrets, identifiers, contexts, frames, blobs."""

import copy
import pickle

import os

import pytest

from kmsfs import errors, ids
from kmsfs.aead.selfcheck import run_self_check
from kmsfs.formats import frame
from kmsfs.formats.blob import BlobType, make_head, parse_blob
from kmsfs.formats.context import canonical, parse_canonical
from kmsfs.formats.packing import pack, unpack
from kmsfs.mount.errno_map import errno_of
from kmsfs.secret import DataKey, KeyMaterial


def test_self_check_passes():
    run_self_check()


def test_context_keys_and_values_are_not_interchangeable():
    assert canonical({"a": "bc"}) != canonical({"ab": "c"})
    assert canonical({"a": "b", "c": "d"}) == canonical({"c": "d", "a": "b"})
    assert canonical({}) == b"\0\0"


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\1", b"\0\0x", b"\0\2\0\1b\0\0\0\1a\0\0", b"\0\1\0\1\xff\0\0"])
def test_uncanonical_context_bytes_are_refused(data):
    with pytest.raises(errors.BadFrame):
        parse_canonical(data)


def test_context_limits():
    with pytest.raises(errors.ShapeError):
        canonical({str(i): "" for i in range(65)})
    with pytest.raises(errors.ShapeError):
        canonical({"a": "x" * 9000})
    with pytest.raises(errors.ShapeError):
        canonical({"a": "\ud800"})


def test_secrets_do_not_leak():
    key = DataKey(b"s" * 32)
    assert "ssss" not in repr(key) + str(key) + f"{key}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.copy(key)
    with pytest.raises(TypeError):
        hash(key)
    assert key != DataKey(b"s" * 32)
    assert key.matches(KeyMaterial(b"s" * 32))
    key.wipe()
    assert key.reveal() == b""


def test_every_error_has_code_exit_and_errno():
    for kind in errors.all_errors():
        assert kind.code and isinstance(kind.exit_code, errors.ExitCode) and kind.errno > 0
        assert kind.__doc__
    assert errno_of(errors.StorageError("x", os_errno=28)) == 28
    assert errno_of(ValueError()) == 5
    assert errno_of(errors.AccessDenied("x")) == 13


@pytest.mark.parametrize(
    "text", ["", "x", "alias", "ALIAS/x", "key/1", "e0c3c3a0-0000-0000-0000-00000000000", "E0C3C3A0-0000-0000-0000-000000000000"]
)
def test_bad_key_ids_are_not_found(text):
    with pytest.raises(errors.KeyNotFound):
        ids.parse_key_reference(text, "local:" + "1" * 12)


def test_key_references():
    account = ids.account_of_realm(bytes(16))
    key = "e0c3c3a0-0000-4000-8000-000000000000"
    scope = ids.scope_of(account)
    assert ids.parse_key_reference(key, scope).arn == ids.key_arn(scope, key)
    assert ids.parse_key_reference(ids.key_arn(scope, key), scope).key_id == key
    assert ids.parse_key_reference("alias/a/b", scope).arn == ids.alias_arn(scope, "alias/a/b")
    assert ids.parse_key_reference(ids.alias_arn(scope, "alias/a/b"), scope).alias
    with pytest.raises(errors.KeyNotFound):
        ids.parse_key_reference(ids.key_arn(ids.scope_of(account, "eu-west-1"), key), scope)
    with pytest.raises(errors.InvalidArn):
        ids.parse_key_reference("arn:aws:s3:::bucket", scope)


def test_a_realm_of_a_wanted_account():
    for account in ("000000000000", "123456789012", "999999999999"):
        made = {ids.realm_of_account(account, os.urandom) for _ in range(20)}
        assert {ids.account_of_realm(realm) for realm in made} == {account} and len(made) == 20
    for bad in ("12345678901", "x" * 12, "1234567890123"):
        with pytest.raises(errors.InvalidArn):
            ids.realm_of_account(bad, os.urandom)


@pytest.mark.parametrize("name", ["x", "alias/", "alias/aws/x", "alias/a b", "alias/" + "x" * 300, "alias/ä"])
def test_bad_aliases(name):
    with pytest.raises(errors.InvalidAliasName):
        ids.check_alias(name)


def test_parameter_arn_merges_the_slash():
    assert ids.parameter_arn("local:" + "1" * 12, "/a/b") == "arn:kmsfs:ssm:local:111111111111:parameter/a/b"
    assert ids.parameter_arn("local:" + "1" * 12, "a") == "arn:kmsfs:ssm:local:111111111111:parameter/a"


def test_blob_shapes():
    head = make_head(BlobType.KMS_CIPHERTEXT, bytes(range(16)), 7)
    blob = parse_blob(head + bytes(108))
    assert blob.term == 7 and blob.key_id == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    for bad in (b"", head, b"\2" + head[1:] + bytes(108), head[:1] + b"\3" + head[2:] + bytes(108), head + bytes(5000)):
        with pytest.raises(errors.InvalidCiphertext):
            parse_blob(bad)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\xc1", b"\x81", pack({"a": 1}) + b"x", b"\x82\xa1a\x01\xa1a\x02", b"\x81\x01\x02", b"\xc7\x01\x05x",
        b"\x91" * 40 + b"\x90", b"\xdf\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_rubbish_is_no_message(value):
    with pytest.raises(errors.BadFrame):
        unpack(value)


def test_frames():
    raw = frame.encode_request(3, "Encrypt", {"KeyId": "x"}, deadline_ms=5, context_uid=1000)
    assert frame.read_length(raw[:4]) == len(raw) - 4
    request = frame.decode_request(raw[4:])
    assert (request.request_id, request.operation, request.deadline_ms, request.context_uid) == (3, "Encrypt", 5, 1000)
    for odd in ({"KeyId": "\ud800"}, {"KeyId": object()}, {"Limit": 1 << 64}):
        with pytest.raises(errors.InvalidRequest):
            frame.encode_request(3, "Encrypt", odd)
    with pytest.raises(errors.FrameTooLarge):
        frame.read_length(b"\xff\xff\xff\xff")
    with pytest.raises(errors.BadFrame):
        frame.read_length(bytes(4))
    good = {"v": 1, "id": 1, "op": "X", "p": {}}
    for change in ({"v": 2}, {"v": True}):
        with pytest.raises(errors.VersionMismatch):
            frame.decode_request(pack({**good, **change}))
    for change in ({"id": -1}, {"id": "1"}, {"op": 1}, {"op": "x" * 65}, {"p": []}, {"zz": 1}, {"dl": -1}, {"uid": "0"}):
        with pytest.raises(errors.BadFrame):
            frame.decode_request(pack({**good, **change}))
    with pytest.raises(errors.FrameTooLarge):
        frame.decode_request(pack({**good, "p": {"x": bytes(300_000)}}))
    frame.decode_request(pack({**good, "op": "DecryptBatch", "p": {"x": bytes(300_000)}}))
