"""Quotas in a running daemon: AWS's error, each principal for itself, and clients that wait."""

import os
import threading
import time

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from kmsfs.client.transport import Transport
from kmsfs.errors import ExitCode, Throttled
from support.peers import as_user


@pytest.fixture
def slow(make_daemon):
    return make_daemon("--quota", "management=20", "--quota", "asymmetric=1", "--aws-endpoint", "127.0.0.1:0")


def until_refused(transport, operation, most=200, **parameters):
    """How many calls went through, and the error that ended them."""
    for count in range(most):
        answer = transport.call(operation, parameters)
        if "e" in answer:
            return count, answer["e"]
    return most, None


def test_who_calls_too_often_is_told_so_and_goes_on_after_a_while(slow):
    transport = Transport(str(slow.socket), 10)
    count, error = until_refused(transport, "ListKeys")
    assert 30 <= count <= 60
    assert error["code"] == "ThrottlingException" and error["retryable"]
    assert error["message"] == "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
    assert "20 a second" in error["hint"]
    # Other classes have their own.
    assert "r" in transport.call("DescribeParameters", {})
    time.sleep(0.3)
    assert until_refused(transport, "ListKeys")[0] >= 4
    transport.close()


@pytest.mark.root
def test_others_are_not_slowed_down(slow):
    transport = Transport(str(slow.socket), 10)
    until_refused(transport, "ListKeys")
    with as_user(slow, 4321) as other:
        assert other("ListKeys")["Keys"] == []
    transport.close()


def test_the_client_waits_and_gets_through(slow):
    session = slow.session()
    begin = time.monotonic()
    for _ in range(60):
        session.call("ListKeys", {})
    assert time.monotonic() - begin > 0.5
    assert 'code="ThrottlingException"' in session.call("GetMetrics", {})["Text"]
    session.close()


def test_it_gives_up_in_the_end(slow, monkeypatch):
    from kmsfs.client import session as module

    pauses, me, sleep = [], threading.current_thread(), time.sleep

    def paused(seconds):
        # Threads that other tests left behind go on as they did.
        pauses.append(seconds) if threading.current_thread() is me else sleep(seconds)

    monkeypatch.setattr(module.time, "sleep", paused)
    talk = slow.session()
    with pytest.raises(Throttled):
        for _ in range(200):
            # On a slow machine an earlier call waits too, and gets through.
            pauses.clear()
            talk.call("ListKeys", {})
    assert len(pauses) == 8 and all(0 <= pause <= 1 for pause in pauses)
    talk.close()


def test_an_rsa_key_costs_what_key_pairs_cost(slow):
    session = slow.session()
    key = session.call("CreateKey", {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})["KeyMetadata"]["KeyId"]
    transport = Transport(str(slow.socket), 10)
    count, error = until_refused(
        transport, "Encrypt", KeyId=key, Plaintext=b"x", EncryptionAlgorithm="RSAES_OAEP_SHA_256"
    )
    assert count in (2, 3) and error["code"] == "ThrottlingException"
    transport.close()
    session.close()


@pytest.mark.parametrize("call", [lambda kms: kms.list_keys(), lambda kms: kms.get_key_rotation_status(KeyId="alias/x")])
def test_the_door_says_it_as_aws_does_of_refused_calls_too(slow, call):
    session = slow.session()
    endpoint = session.call("GetStatus", {})["AwsEndpoint"]
    made = session.call("GetSessionToken", {})["Credentials"]
    kms = boto3.client(
        "kms", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["SessionToken"],
        config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        for _ in range(200):
            try:
                call(kms)
            except kms.exceptions.NotFoundException:
                continue
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    session.close()


def test_a_wrong_quota_is_refused_at_start(fresh_daemon):
    fresh_daemon.start("--quota", "everything=1", wait=False)
    assert fresh_daemon.process.wait(20) == ExitCode.USAGE
    assert "cryptographic" in fresh_daemon.process.stderr.read()


def test_the_environment_says_it_too(fresh_daemon):
    os.environ["KMSD_QUOTAS"] = "parameters=1 management=5000"
    try:
        fresh_daemon.start()
    finally:
        del os.environ["KMSD_QUOTAS"]
    transport = Transport(str(fresh_daemon.socket), 10)
    count, error = until_refused(transport, "DescribeParameters")
    assert count in (2, 3) and "SSM" in error["message"]
    transport.close()
