"""The stream of changes: who is told of what, in which order, and what a reader that was away is told."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kmsfs import errors
from kmsfs.client.cache import ParameterCache
from kmsfs.client.changes import ChangeStream, following
from kmsfs.client.transport import Transport
from support.peers import as_user
from support.waiting import soon


class OneTransport:
    """A session of somebody else's, as far as a stream needs one."""

    def __init__(self, transport):
        self._transport = transport

    def patient(self):
        return self

    def open_transport(self):
        return self._transport


class Reader:
    """Reads a stream in a thread."""

    def __init__(self, session, **options):
        self.stream = ChangeStream(session, **options)
        self.events = queue.Queue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.events.get(timeout=10) == {"kind": "heard"}

    def _run(self):
        for event in self.stream:
            self.events.put(event)

    def next(self, timeout=10):
        deadline = time.monotonic() + timeout
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if event["kind"] != "heard":
                return event

    def several(self, count):
        events = [self.next() for _ in range(count)]
        return [(event["source"], event["operation"], event["name"]) for event in events]

    def nothing(self):
        with pytest.raises(queue.Empty):
            self.next(timeout=0.3)

    def close(self):
        self.stream.close()
        self.thread.join(timeout=5)
        assert not self.thread.is_alive()


@pytest.fixture
def follow(daemon):
    readers = []

    def make(session=None, **options):
        readers.append(Reader(session or daemon.session(), **options))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def test_parameters(call, follow):
    everything, below = follow(sources=["ssm"]), follow(path="/ev/app/", sources=["ssm"])
    call("PutParameter", Name="/ev/app/a", Value="1", Type="String")
    call("PutParameter", Name="/ev/app/a", Value="2", Overwrite=True)
    call("LabelParameterVersion", Name="/ev/app/a", Labels=["good"])
    call("AddTagsToResource", ResourceType="Parameter", ResourceId="/ev/app/a", Tags=[{"Key": "k", "Value": "v"}])
    call("PutParameter", Name="/ev/other", Value="1", Type="String")
    call("DeleteParameters", Names=["/ev/app/a", "/ev/other", "/ev/none"])
    operations = ["Create", "Update", "LabelParameterVersion", "AddTagsToResource", "Delete"]
    assert below.several(5) == [("ssm", operation, "/ev/app/a") for operation in operations]
    assert [name for _, _, name in everything.several(7)].count("/ev/other") == 2
    with pytest.raises(errors.ParameterAlreadyExists):
        call("PutParameter", Name="/ev/b", Value="1", Type="String") and call(
            "PutParameter", Name="/ev/b", Value="1", Type="String"
        )
    assert everything.several(1) == [("ssm", "Create", "/ev/b")]
    everything.nothing()
    below.nothing()


def test_secrets_and_keys(call, follow):
    reader = follow(sources=["secretsmanager", "kms"])
    key = call("CreateKey")["KeyMetadata"]
    made = call("CreateSecret", Name="ev-secret", SecretString="x", KmsKeyId=key["KeyId"])
    call("PutSecretValue", SecretId="ev-secret", SecretString="y")
    call("DeleteSecret", SecretId="ev-secret")
    call("RestoreSecret", SecretId="ev-secret")
    call("DeleteSecret", SecretId="ev-secret", ForceDeleteWithoutRecovery=True)
    call("DisableKey", KeyId=key["KeyId"])
    seen = []
    while not seen or seen[-1][1] != "disabled":
        seen += reader.several(1)
    assert {name for source, _, name in seen if source == "kms"} == {key["KeyId"]}
    secrets = [operation for source, operation, name in seen if source == "secretsmanager"]
    assert secrets == ["Create", "Update", "Delete", "Restore", "Delete"] and made["Name"] == "ev-secret"


@pytest.mark.root
def test_nobody_is_told_of_what_is_not_his(daemon, call, follow):
    with as_user(daemon, 4321) as other, as_user(daemon, 4321) as listening:
        theirs, ours = follow(OneTransport(listening.transport)), follow()
        key = call("CreateKey")["KeyMetadata"]["KeyId"]
        call("PutParameter", Name="/ev/mine", Value="1", Type="String")
        call("CreateSecret", Name="ev-mine", SecretString="x")
        other("PutParameter", Name="/ev/theirs", Value="1", Type="String")
        assert theirs.several(1) == [("ssm", "Create", "/ev/theirs")]
        # Who may describe a key is told of it from then on.
        policy = json.loads(call("GetKeyPolicy", KeyId=key)["Policy"])
        account = call("GetStatus")["Account"]
        policy["Statement"].append(
            {"Effect": "Allow", "Principal": {"AWS": f"arn:kmsfs:iam::{account}:uid/4321"}, "Action": "kms:DescribeKey", "Resource": "*"}
        )
        call("PutKeyPolicy", KeyId=key, Policy=json.dumps(policy))
        assert theirs.several(1) == [("kms", "policy", key)]
        call("PutResourcePolicy", SecretId="ev-mine", ResourcePolicy=json.dumps(
            {"Statement": [{"Effect": "Allow", "Principal": {"AWS": f"arn:kmsfs:iam::{account}:uid/4321"},
                            "Action": "secretsmanager:DescribeSecret", "Resource": "*"}]}))  # fmt: skip
        assert theirs.several(1) == [("secretsmanager", "Update", "ev-mine")]
        call("DeleteParameter", Name="/ev/mine")
        theirs.nothing()
        # An administrator is the account: he is told of everything.
        names = set()
        while "/ev/theirs" not in names:
            names |= {name for _, _, name in ours.several(1)}


def test_who_was_away_goes_on_where_it_was(daemon, call, follow):
    reader = follow(sources=["ssm"])
    call("PutParameter", Name="/ev/away/1", Value="1", Type="String")
    token = reader.next()["token"]
    for number in range(2, 5):
        call("PutParameter", Name=f"/ev/away/{number}", Value="1", Type="String")
    late = ChangeStream(daemon.session(), sources=["ssm"], after=token)
    found = iter(late)
    missed = [next(found) for _ in range(4)]
    assert [event.get("name") for event in missed] == [*(f"/ev/away/{number}" for number in range(2, 5)), None]
    assert missed[-1] == {"kind": "heard"} and late.token == missed[-2]["token"]
    late.close()


@pytest.mark.parametrize("token", ["", "x", "1-2-3", "00-1", "-1", "ff" * 8 + "-99999999", "é-1"])
def test_a_token_that_says_nothing_is_a_reset(daemon, token):
    stream = ChangeStream(daemon.session(), after=token)
    assert next(iter(stream)) == {"kind": "reset"}
    stream.close()


def test_bad_requests(call):
    with pytest.raises(errors.InvalidRequest, match="forward slash"):
        call("WatchChanges", Path="no/slash")
    for wrong in ({"Sources": []}, {"Sources": ["sqs"]}, {"After": "x" * 65}, {"Path": "/" + "x" * 2000}):
        with pytest.raises(errors.KmsfsError):
            call("WatchChanges", **wrong)


def test_a_connection_has_a_bounded_number_of_streams(daemon, call):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    transport = Transport(str(daemon.socket), 10.0)
    answers = [transport.call(*request) for request in [("WatchChanges", {}), ("Watch", {"KeyIds": [key]})] * 9]
    assert ["e" in answer for answer in answers] == [False] * 16 + [True] * 2
    assert {answer["e"]["code"] for answer in answers[16:]} == {"LimitExceededException"}
    assert "r" in transport.call("GetStatus", {})
    transport.close()


def test_a_restarted_daemon_resets(fresh_daemon):
    fresh_daemon.start()
    session = fresh_daemon.session()
    reader = Reader(session)
    session.call("PutParameter", {"Name": "/a", "Value": "1", "Type": "String"})
    assert reader.next()["operation"] == "Create"
    fresh_daemon.stop()
    fresh_daemon.start()
    assert reader.next() == {"kind": "lost"}
    event = reader.next(timeout=20)
    while event == {"kind": "lost"}:
        event = reader.next(timeout=20)
    assert event == {"kind": "reset"}
    session.close()
    session = fresh_daemon.session()
    session.call("PutParameter", {"Name": "/a", "Value": "2", "Overwrite": True})
    assert reader.next()["operation"] == "Update"
    reader.close()
    session.close()


def test_who_reads_nothing_is_cut_off(daemon, call):
    path = str(daemon.socket)
    deaf = Transport(path, 30.0)
    assert deaf.call("WatchChanges", {"Sources": ["ssm"]})["r"]["Complete"]
    call("PutParameter", Name="/ev/" + "x" * 900, Value="1", Type="String")
    with contextlib.suppress(errors.KmsfsError):
        for number in range(900):
            call("PutParameter", Name="/ev/" + "x" * 900, Value=str(number), Overwrite=True)
    events = 0
    with pytest.raises(errors.DaemonUnreachable):
        while True:
            deaf.receive(timeout=5)
            events += 1
    assert events < 901
    deaf.close()


# --- the cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(daemon):
    made = ParameterCache(session=daemon.session())
    yield made
    made.close()


def counting(cache):
    calls = []
    original = cache._session.call
    cache._session.call = lambda *words, **options: (calls.append(words), original(*words, **options))[1]
    return calls


def test_read_once_and_again_after_a_change(call, cache):
    call("PutParameter", Name="/ca/a", Value="1", Type="SecureString")
    call("PutParameter", Name="/ca/b", Value="b", Type="String")
    soon("1", lambda: cache.get("/ca/a"))
    time.sleep(0.1)
    calls = counting(cache)
    for _ in range(100):
        assert (cache.get("/ca/a"), cache.get("/ca/b"), cache.get("/ca/a:1")) == ("1", "b", "1")
    assert len(calls) <= 3
    call("PutParameter", Name="/ca/a", Value="2", Overwrite=True)
    soon("2", lambda: cache.get("/ca/a"))
    calls.clear()
    assert cache.get("/ca/b") == "b" and calls == []
    call("DeleteParameter", Name="/ca/b")
    with pytest.raises(errors.ParameterNotFound):
        soon(None, lambda: cache.get("/ca/b"))


def test_a_disabled_key_takes_its_parameters_along(call, cache):
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("PutParameter", Name="/ca/sealed", Value="1", Type="SecureString", KeyId=key)
    soon("1", lambda: cache.get("/ca/sealed"))
    call("DisableKey", KeyId=key)
    with pytest.raises(errors.KmsfsError):
        soon(None, lambda: cache.get("/ca/sealed"))


def test_nothing_is_served_from_memory_while_the_daemon_is_away(fresh_daemon):
    fresh_daemon.start()
    session = fresh_daemon.session()
    session.call("PutParameter", {"Name": "/a", "Value": "1", "Type": "String"})
    cache = ParameterCache(session=fresh_daemon.session())
    soon("1", lambda: cache.get("/a"))
    fresh_daemon.stop()
    with pytest.raises(errors.DaemonUnreachable):
        soon(None, lambda: cache.get("/a"), seconds=3)
    cache.close()
    session.close()


def test_a_value_that_was_read_before_a_change_is_not_held_after_it(daemon, call, cache):
    call("PutParameter", Name="/ca/race", Value="old", Type="String")
    time.sleep(0.1)
    original = cache._session.call

    def slow(*words, **options):
        answer = original(*words, **options)
        round_before = cache._round
        call("PutParameter", Name="/ca/race", Value="new", Overwrite=True)
        soon(True, lambda: cache._round != round_before)
        return answer

    cache._session.call = slow
    assert cache.get("/ca/race") == "old"
    cache._session.call = original
    assert cache.get("/ca/race") == "new"


def test_a_cache_without_a_daemon_says_so(tmp_path):
    with pytest.raises(errors.DaemonUnreachable):
        ParameterCache(socket=str(tmp_path / "none.sock"))


def test_the_guides_example(daemon, call, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "events.md").read_text()
    cached, followed = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    monkeypatch.setenv("KMSFS_SOCKET", str(daemon.socket))
    call("PutParameter", Name="/app/db", Value="1", Type="SecureString")
    names = {}
    exec(cached, names)
    assert names["settings"].get("/app/db") == "1"
    names["settings"].close()
    timer = threading.Timer(0.5, lambda: call("PutParameter", Name="/app/db", Value="2", Overwrite=True))
    timer.start()
    with pytest.raises(StopIteration):
        exec(followed.replace("    print(", "    raise StopIteration("), {})
    timer.join()


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command(daemon, call):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "events", "--source", "ssm", "--path", "/cli", "--count", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    number = 0
    while process.poll() is None and time.monotonic() < deadline:
        number += 1
        call("PutParameter", Name="/cli/a", Value=str(number), Type="String", Overwrite=True)
        time.sleep(0.05)
    reader.join(timeout=5)
    assert process.returncode == 0
    events = [json.loads(line) for line in lines]
    assert [event["name"] for event in events] == ["/cli/a"] * 2
    again = subprocess.run(
        [*command[:-4], "--count", "1", "--after", events[0]["token"]], env=environment, capture_output=True, text=True, check=False, timeout=20
    )
    assert json.loads(again.stdout) == events[1]


@pytest.mark.root
def test_alarms_are_events_for_those_who_keep_the_daemon(daemon):
    """From the audit log, through `kmsfs audit watch`, to who follows the source; to nobody else, and only where it is named."""
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "PYTHONUNBUFFERED": "1"}
    rules = daemon.folder / "alarms.toml"
    rules.write_text('[[alarm]]\nname = "denied"\non = "denied"\nper = "principal"\nquiet = "0s"\n')
    watching = subprocess.Popen([sys.executable, "-m", "kmsfs.cli", "audit", "watch", "--rules", str(rules)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen, others = [], []
    stream, all_of_it = ChangeStream(daemon.session(), sources=["alarms"]), ChangeStream(daemon.session())
    threads = [threading.Thread(target=lambda s=s, into=into: [into.append(event) for event in following(s)], daemon=True)
               for s, into in ((stream, seen), (all_of_it, others))]  # fmt: skip
    try:
        assert "watching" in watching.stderr.readline()
        for thread in threads:
            thread.start()
        key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
        # Until the stream has begun nobody is told; and a key more does no harm.
        soon(True, lambda: bool(daemon.session().call("UpdateKeyDescription", {"KeyId": key, "Description": "x"}) is None or others), 10)
        with as_user(daemon, 4321) as other:
            with pytest.raises(errors.AccessDenied):
                other("Encrypt", KeyId=key, Plaintext=b"x")
            with pytest.raises(errors.AccessDenied):
                other("RaiseAlarm", AlarmName="x", About="denied")
            other("WatchChanges", Sources=["alarms"])  # begins, and tells him nothing
        soon(True, lambda: bool(seen), 20)
        first = seen[0]
        assert (first["source"], first["operation"], first["name"]) == ("alarms", "denied", "denied") and first["detail"]["group"] == "uid/4321"
        assert json.loads(first["detail"]["record"])["op"] in ("Encrypt", "RaiseAlarm")
        assert "alarms" not in {event["source"] for event in others}
    finally:
        stream.close()
        all_of_it.close()
        watching.send_signal(signal.SIGINT)
        watching.wait(20)
        watching.stdout.close()
        watching.stderr.close()
