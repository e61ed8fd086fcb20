"""RSA keys are made beside the daemon's thread: others are served meanwhile, and the order of one's own answers holds."""

import threading
import time

import boto3
import pytest
from botocore.config import Config

from kmsfs.client.transport import Transport
from support.waiting import soon


@pytest.fixture
def others_wait(make_daemon):
    """The longest that another connection waits for an answer while `work` runs."""

    def measure(daemon, work):
        thread = threading.Thread(target=work)
        transport = Transport(str(daemon.socket), 30)
        transport.call("GetStatus", {})
        thread.start()
        longest = 0.0
        while thread.is_alive():
            begin = time.monotonic()
            transport.call("GenerateRandom", {"NumberOfBytes": 16})
            longest = max(longest, time.monotonic() - begin)
        transport.close()
        return longest

    return measure


def test_others_are_served_while_big_keys_are_made(make_daemon, others_wait):
    daemon = make_daemon()
    took = []

    def work():
        for _ in range(3):
            begin = time.monotonic()
            daemon.session().call("CreateKey", {"KeySpec": "RSA_4096", "KeyUsage": "SIGN_VERIFY"})
            took.append(time.monotonic() - begin)

    longest = others_wait(daemon, work)
    assert longest < max(took) / 2, (longest, took)


def test_answers_come_in_the_order_of_the_questions(make_daemon):
    daemon = make_daemon()
    transport = Transport(str(daemon.socket), 60)
    asked = [transport.send("GenerateRandom", {"NumberOfBytes": 8})]
    asked += [transport.send("CreateKey", {"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}) for _ in range(3)]
    asked += [transport.send("ListKeys", {}), transport.send("Nonsense", {}), transport.send("CreateKey", {"KeySpec": "RSA_3072", "KeyUsage": "SIGN_VERIFY"})]
    answers = [transport.receive() for _ in asked]
    assert [answer["id"] for answer in answers] == asked
    assert len(answers[4]["r"]["Keys"]) == 3 and "e" in answers[5]
    assert len({answer["r"]["KeyMetadata"]["KeyId"] for answer in (*answers[1:4], answers[6])}) == 4
    transport.close()


def test_what_was_asked_is_done_though_who_asked_has_left(make_daemon):
    daemon = make_daemon()
    for _ in range(3):
        transport = Transport(str(daemon.socket), 30)
        transport.send("CreateKey", {"KeySpec": "RSA_4096", "KeyUsage": "SIGN_VERIFY"})
        transport.close()
    session = daemon.session()
    assert session.call("CreateKey", {"KeySpec": "RSA_4096", "KeyUsage": "SIGN_VERIFY"})
    soon(4, lambda: len(session.call("ListKeys", {})["Keys"]), seconds=30)
    session.close()


def test_refused_calls_make_no_keys(make_daemon):
    session = make_daemon().session()
    key = session.call("CreateKey", {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})["KeyMetadata"]["KeyId"]
    times = []
    for _ in range(4):
        begin = time.monotonic()
        with pytest.raises(Exception):
            session.call("GenerateDataKeyPair", {"KeyId": key, "KeyPairSpec": "RSA_4096"})
        times.append(time.monotonic() - begin)
    assert max(times[1:]) < 0.05
    session.close()


def test_the_same_through_the_door(make_daemon, others_wait):
    daemon = make_daemon("--aws-endpoint", "127.0.0.1:0")
    session = daemon.session()
    made = session.call("GetSessionToken", {})["Credentials"]
    kms = boto3.client(
        "kms", endpoint_url=session.call("GetStatus", {})["AwsEndpoint"], region_name="us-east-1", aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["SessionToken"], config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip
    took = []

    def work():
        for _ in range(3):
            begin = time.monotonic()
            kms.create_key(KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")
            took.append(time.monotonic() - begin)

    longest = others_wait(daemon, work)
    assert longest < max(took) / 2, (longest, took)
    session.close()
