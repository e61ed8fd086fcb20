"""The audit log as people and other tools read it: tail, SQL, CloudTrail's events."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kmsfs.errors import AccessDenied, AuditChainBroken, ExitCode, InvalidRequest, KeyInvalidState, StorageError
from kmsfs.trail.cloudtrail import cloudtrail_event
from kmsfs.trail.reading import follow_records, last_records, read_records
from kmsfs.trail.tables import TrailTable
from support.peers import as_user, let_others_in
from support.waiting import soon

ACCOUNT = "111122223333"


@pytest.fixture
def kmsfs(daemon):
    def run(*words):
        environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket), "NO_COLOR": "1"}
        return subprocess.run([sys.executable, "-m", "kmsfs.cli", *words], env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def used(daemon):
    """A key that was used, under a context and with secrets that the log must not have."""
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]
    session.call("Encrypt", {"KeyId": key["KeyId"], "Plaintext": b"hidden-plaintext", "EncryptionContext": {"stage": "prod"}})
    session.call("PutParameter", {"Name": "/trail/a", "Value": "hidden-value", "Type": "SecureString", "Overwrite": True})
    with pytest.raises(Exception):
        session.call("Encrypt", {"KeyId": "alias/none", "Plaintext": b"x"})
    daemon.session().call("GetStatus", {})
    return key


def test_questions_in_sql(kmsfs, used):
    done = kmsfs("--json", "audit", "query", f"SELECT operation, json_extract(context, '$.stage') AS stage, decided_by FROM records WHERE key = '{used['Arn']}' AND operation = 'Encrypt'")
    assert json.loads(done.stdout) == [{"operation": "Encrypt", "stage": "prod", "decided_by": "policy:Creator"}], done.stderr
    counted = json.loads(kmsfs("--json", "audit", "query", "SELECT count(*) AS n, max(seq) AS last FROM records").stdout)[0]
    assert counted["n"] == counted["last"] + 1
    assert "NotFoundException" in kmsfs("audit", "query", "SELECT operation, error FROM records WHERE result = 'error'").stdout
    everything = kmsfs("--json", "audit", "query", "SELECT * FROM records").stdout
    assert "hidden" not in everything and "/trail/a" in everything


@pytest.mark.parametrize("query", [
    "DELETE FROM records", "DROP TABLE records", "ATTACH '/etc/passwd' AS x", "PRAGMA writable_schema = 1", "SELECT 1; SELECT 2",
    "INSERT INTO records (seq) VALUES (1)", "SELECT nothing FROM records", "rubbish", "", "SELECT load_extension('x')",
])  # fmt: skip
def test_what_is_no_question_is_refused(query):
    table = TrailTable([{"seq": 0, "ts": 0.0, "op": "A", "uid": 1}], ACCOUNT)
    with pytest.raises(InvalidRequest):
        table.ask(query)
    assert table.ask("SELECT seq, time, principal FROM records")[1] == [(0, "1970-01-01T00:00:00Z", f"arn:kmsfs:iam::{ACCOUNT}:uid/1")]


def test_the_last_lines(kmsfs, used):
    out = kmsfs("audit", "tail", "-n", "3").stdout.splitlines()
    assert len(out) == 3 and "GetStatus" in out[-1] and "uid/" in out[-1]
    assert kmsfs("audit", "tail", "-n", "0").stdout == ""
    assert all("AccessDenied" in line for line in kmsfs("audit", "tail", "-n", "500", "--denied").stdout.splitlines())
    records = [json.loads(line) for line in kmsfs("--json", "audit", "tail", "-n", "5").stdout.splitlines()]
    assert [r["seq"] for r in records] == list(range(records[0]["seq"], records[0]["seq"] + 5))


def line(number, **more):
    return json.dumps({"seq": number, "ts": float(number), "op": "Encrypt", **more}) + "\n"


def test_the_end_of_a_long_log(tmp_path):
    log = tmp_path / "audit.jsonl"
    log.write_text("".join(line(number, pad="x" * 300) for number in range(3000)))
    assert [r["seq"] for r in last_records(log, 2000)] == list(range(1000, 3000))
    assert [r["seq"] for r in last_records(log, 5000)] == list(range(3000))
    with log.open("a") as stream:
        stream.write('{"seq": 3000, "ts"')
    # A line that is being written is not there yet.
    assert last_records(log, 1)[0]["seq"] == 2999 and sum(1 for _ in read_records(log)) == 3000
    with pytest.raises(StorageError):
        last_records(tmp_path / "none", 1)
    log.write_text("rubbish\n")
    with pytest.raises(AuditChainBroken):
        list(read_records(log))


def test_following_over_a_new_log(tmp_path):
    log = tmp_path / "audit.jsonl"
    log.write_text(line(0))
    seen = []

    def follow():
        for record in follow_records(log):
            seen.append(record["seq"])
            if record["seq"] == 9:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    time.sleep(0.4)

    def append(text):
        with log.open("a") as stream:
            stream.write(text)

    append(line(1))
    append(line(2)[:10])
    time.sleep(0.5)
    append(line(2)[10:])
    time.sleep(0.5)
    log.rename(tmp_path / "old")
    log.write_text(line(8) + line(9))
    thread.join(10)
    assert seen == [1, 2, 8, 9]


def test_events_of_cloudtrail(kmsfs, used, tmp_path):
    target = tmp_path / "trail.json"
    done = kmsfs("audit", "export", str(target), "--region", "eu-west-1")
    assert done.returncode == 0, done.stderr
    events = json.loads(target.read_text())["Records"]
    [event] = [e for e in events if e["eventName"] == "Encrypt" and e["resources"] and e["resources"][0]["ARN"] == used["Arn"]]
    assert event["eventSource"] == "kms.amazonaws.com" and event["awsRegion"] == "eu-west-1"
    assert event["requestParameters"]["encryptionContext"] == {"stage": "prod"} and event["requestParameters"]["keyId"]
    assert event["userIdentity"]["type"] == "LocalUser" and event["readOnly"] and event["eventType"] == "AwsApiCall"
    assert event["resources"][0]["type"] == "AWS::KMS::Key" and event["eventTime"].endswith("Z")
    [failed] = [e for e in events if e["eventName"] == "Encrypt" and e.get("errorCode") == "NotFound"][-1:]
    assert failed["resources"] == []
    assert next(e for e in events if e["eventName"] == "CreateKey")["readOnly"] is False
    assert next(e for e in events if e["eventName"] == "DaemonStarted")["eventType"] == "AwsServiceEvent"
    assert len({e["eventID"] for e in events}) == len(events) and "hidden" not in target.read_text()
    assert kmsfs("audit", "export", str(target)).returncode == ExitCode.STORAGE


def test_identities_of_iam():
    record = {"seq": 1, "ts": 1.0, "op": "Decrypt", "req": "r", "uid": 0, "akid": "AKIAX", "prev": "0" * 64}
    for who, kind in (("user/ann", "IAMUser"), ("assumed-role/ops/s", "AssumedRole"), ("root", "Root"), ("uid/5", "LocalUser")):
        identity = cloudtrail_event({**record, "who": f"arn:aws:iam::{ACCOUNT}:{who}"}, ACCOUNT, "r")["userIdentity"]
        assert (identity["type"], identity["accessKeyId"]) == (kind, "AKIAX")


@pytest.mark.root
def test_who_may_not_read_the_log_is_told(fresh_daemon, tmp_path):
    fresh_daemon.start()
    let_others_in(tmp_path)
    os.chmod(fresh_daemon.socket, 0o666)
    done = subprocess.run(
        ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", sys.executable, "-m", "kmsfs.cli", "audit", "tail"],
        env={**os.environ, "KMSFS_SOCKET": str(fresh_daemon.socket), "HOME": "/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == ExitCode.STORAGE and "run this as root" in done.stderr


# --- alarms ---------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_alarms_are_raised_as_the_log_grows(fresh_daemon, tmp_path):
    daemon = fresh_daemon.start()
    key = daemon.session().call("CreateKey", {})["KeyMetadata"]["KeyId"]
    rules, out = tmp_path / "alarms.toml", tmp_path / "out"
    rules.write_text(
        f'''
        [[alarm]]
        name = "refused"
        on = "denied"
        more_than = 1
        per = "principal"
        operation = "Decrypt"
        run = ["sh", "-c", "cat >> {out}"]

        [[alarm]]
        name = "dying"
        on = "pending-deletion"
        '''
    )
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", "--json", "audit", "watch", "--rules", str(rules)]
    watcher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "2 alarms" in watcher.stderr.readline()
        time.sleep(0.5)
        blob = daemon.session().call("Encrypt", {"KeyId": key, "Plaintext": b"x"})["CiphertextBlob"]
        with as_user(daemon, 4321) as other:
            for _ in range(3):
                with pytest.raises(AccessDenied):
                    other("Decrypt", CiphertextBlob=blob)
        daemon.session().call("ScheduleKeyDeletion", {"KeyId": key})
        with pytest.raises(KeyInvalidState):
            daemon.session().call("Encrypt", {"KeyId": key, "Plaintext": b"x"})
        first, second = (json.loads(watcher.stdout.readline()) for _ in range(2))
        assert (first["alarm"], first["group"], first["count"]) == ("refused", "uid/4321", 2)
        assert second["alarm"] == "dying" and second["record"]["key"].endswith(key)
        soon("refused", lambda: json.loads(out.read_text() or "{}").get("alarm"))
    finally:
        watcher.terminate()
        watcher.wait(10)
        watcher.stdout.close()
        watcher.stderr.close()
    past = subprocess.run([*command, "--past"], env=environment, capture_output=True, text=True, timeout=60)
    assert past.returncode == ExitCode.WARNINGS_FOUND and len(past.stdout.splitlines()) == 2
