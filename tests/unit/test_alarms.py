"""Alarms: which records make them, what a file of rules may say, and what is done."""

import contextlib
import http.server
import json
import os
import sys
import threading

import pytest

from kmsfs.alarms import actions as doing
from kmsfs.alarms import watching as counting
from kmsfs.alarms.actions import Doer
from kmsfs.alarms.following import past_alarms, watch_log
from kmsfs.alarms.rules import DEFAULT_RULES, Actions, Kind, Per, Rule, parse_rules
from kmsfs.alarms.watching import Alarm, Watching
from kmsfs.errors import StorageError, UsageError
from support.audittrail import make_log
from support.waiting import soon

ACCOUNT = "123456789012"
KEY = f"arn:kmsfs:kms:local:{ACCOUNT}:key/0f0e"


def record(ts, op="Decrypt", uid=1000, err=None, key=KEY, req="r-1"):
    made = {"seq": 0, "prev": "", "ts": ts, "req": req, "uid": uid, "op": op, "res": "error" if err else "ok"}
    return {**made, **({"err": err} if err else {}), **({"key": key} if key else {})}


def names(watching, records):
    return [(alarm.name, alarm.group, alarm.time) for one in records for alarm in watching.see(one)]


def denied(ts, **more):
    return record(ts, err="AccessDeniedException", **more)


def test_more_than_so_many_within_so_long_and_then_quiet():
    watching = Watching([Rule("d", Kind.DENIED, 2, 10.0, 100.0)], ACCOUNT)
    slow = [denied(ts) for ts in (0, 6, 12, 18, 24)]
    assert names(watching, slow) == []
    fast = [denied(ts) for ts in (30, 31, 32, 33, 34, 35)]
    assert names(watching, fast) == [("d", "", 31)]
    assert names(watching, [denied(ts) for ts in (130, 131, 132)]) == [("d", "", 132)]


def test_each_principal_or_key_by_itself():
    by_principal = Watching([Rule("d", Kind.DENIED, 1, 10.0, per=Per.PRINCIPAL)], ACCOUNT)
    assert names(by_principal, [denied(0, uid=1), denied(1, uid=2), denied(2, uid=2)]) == [("d", "uid/2", 2)]
    by_key = Watching([Rule("d", Kind.DENIED, 1, 10.0, per=Per.KEY)], ACCOUNT)
    assert names(by_key, [denied(0), denied(1, key=KEY + "1"), denied(2)]) == [("d", "0f0e", 2)]


def test_patterns_choose():
    rule = Rule("c", Kind.CALLS, operation="*crypt", principal="uid/1*", key="0f*")
    watching = Watching([rule], ACCOUNT)
    calls = [record(0), record(1, op="Sign"), record(2, uid=2000), record(3, key=KEY.replace("0f0e", "ff")), denied(4)]
    assert names(watching, calls) == [("c", "", 0)]


def test_the_use_of_a_key_in_its_deletion_window():
    watching = Watching([Rule("w", Kind.PENDING_DELETION, quiet_seconds=0)], ACCOUNT)
    refused = record(0, err="KMSInvalidStateException")
    assert names(watching, [refused]) == []
    watching.learn(record(1, op="ScheduleKeyDeletion"))
    assert names(watching, [refused, record(3, op="EnableKey", err="KMSInvalidStateException")]) == [("w", "", 0)]
    assert names(watching, [record(4, op="CancelKeyDeletion"), refused]) == []


def test_a_first_use_is_one_that_the_past_does_not_know():
    watching = Watching([Rule("n", Kind.NEW_PRINCIPAL, quiet_seconds=0)], ACCOUNT)
    watching.learn(record(0, uid=1))
    watching.learn(denied(0, uid=2))
    seen = [record(1, uid=1), record(2, uid=2), record(3, uid=2), record(4, uid=1, op="DescribeKey"), record(5, uid=3, op="ListKeys", key=None)]
    assert names(watching, seen) == [("n", "", 2)]
    assert names(watching, [record(6, uid=1, key=KEY + "2")]) == [("n", "", 6)]


def test_what_the_daemon_does_of_itself_is_nobodys_call():
    watching = Watching([Rule("c", Kind.CALLS)], ACCOUNT)
    assert names(watching, [record(0, op="DaemonStarted", req="-", key=None)]) == []


def test_an_unsigned_log_and_a_gap():
    watching = Watching(DEFAULT_RULES, ACCOUNT)
    assert watching.unsigned(20_000.0, 19_000.0) == []
    assert [alarm.name for alarm in watching.unsigned(20_000.0, 1_000.0)] == ["audit log not signed"]
    assert watching.unsigned(20_100.0, 1_000.0) == []
    assert [alarm.record for alarm in watching.gap(1.0, "cut")] == [{"why": "cut"}]


def test_what_is_counted_apart_is_bounded(monkeypatch):
    monkeypatch.setattr(counting, "_GROUPS_MAX", 10)
    watching = Watching([Rule("d", Kind.DENIED, 5, 10.0, per=Per.PRINCIPAL)], ACCOUNT)
    names(watching, [denied(0, uid=number) for number in range(100)])
    assert len(watching._counted) == 10


# --- files of rules -------------------------------------------------------------------------------------------

WHOLE = """
[[alarm]]
name = "decrypts"
on = "calls"
more_than = 1000
within = "1m"
quiet = "2h"
per = "principal"
operation = "Decrypt"
key = "0f*"
principal = "uid/*"
run = ["/usr/local/bin/page", "me"]
webhook = "http://127.0.0.1:9000/alarm"
mail = "root"

[[alarm]]
name = "gap"
on = "gap"
"""


def test_a_file_of_rules():
    decrypts, gap = parse_rules(WHOLE)
    done = Actions(("/usr/local/bin/page", "me"), "http://127.0.0.1:9000/alarm", "root")
    assert decrypts == Rule("decrypts", Kind.CALLS, 1000, 60.0, 7200.0, Per.PRINCIPAL, "Decrypt", "0f*", "uid/*", done)
    assert gap == Rule("gap", Kind.GAP)


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ('on = "nothing"', "denied, calls"), ('on = "gap"\nper = "uid"', "all, principal"), ('on = "gap"\nmore_than = -1', "more_than"),
        ('on = "gap"\nmore_than = true', "more_than"), ('on = "gap"\nwithin = 60', "within"), ('on = "gap"\nquiet = "1w"', "quiet"),
        ('on = "gap"\nrun = "rm -rf"', "list of words"), ('on = "gap"\nwebhook = "http://example.com/"', "loopback"),
        ('on = "gap"\nwebhook = "https://127.0.0.1/"', "loopback"), ('on = "gap"\nwebhook = "http://[::1"', "loopback"),
        ('on = "gap"\nmail = "-oQ/tmp x"', "one address"), ('on = "gap"\nmail = "-bs"', "one address"), ('on = "gap"\nkeys = "x"', "unknown fields: keys"), ('on = "gap"\nkey = 5', "text"),
        ("", "denied, calls"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_with_what_is_wrong(field, why):
    with pytest.raises(UsageError, match=f"(?s)'x'.*{why}"):
        parse_rules(f'[[alarm]]\nname = "x"\n{field}\n')


@pytest.mark.parametrize("text", ["", "rubbish", "[alarm]\nname='x'", "[[alarm]]\non='gap'", "[[alarm]]\nname=''\non='gap'", WHOLE + "[more]\n", WHOLE + WHOLE, "[[alert]]\nname='x'"])
def test_what_is_no_file_of_rules(text):
    with pytest.raises(UsageError):
        parse_rules(text)


# --- the log --------------------------------------------------------------------------------------------------


@pytest.fixture
def follow():
    """Watch a log in a thread, as its records come: returns the list that alarms are added to, once it is begun."""

    def begin(watching, log):
        found, begun = [], threading.Event()

        def clock():
            begun.set()
            return 0.0

        def work():
            with contextlib.suppress(StorageError):
                for made in watch_log(watching, log, clock):
                    found.append(made)

        threading.Thread(target=work, daemon=True).start()
        assert begun.wait(10)
        return found

    return begin


def test_records_that_come_and_records_that_are_gone(tmp_path, follow):
    log = make_log(tmp_path)
    log.add(denied(1.0))
    found = follow(Watching([Rule("d", Kind.DENIED, quiet_seconds=0), Rule("gap", Kind.GAP, quiet_seconds=0)], ACCOUNT), log.path)
    log.add(denied(2.0))
    soon([("d", 2.0)], lambda: [(alarm.name, alarm.time) for alarm in found])
    log.skip(denied(3.0))
    log.add(denied(4.0))
    soon(["d", "gap", "d"], lambda: [alarm.name for alarm in found])
    with log.path.open("ab") as stream:
        stream.write(b"rubbish\n")
    soon(["d", "gap", "d", "gap"], lambda: [alarm.name for alarm in found])
    os.truncate(log.path, 0)
    soon("the log was replaced by another one, or cut", lambda: found[-1].record.get("why"))
    assert len(found) == 5


def test_a_log_with_rubbish_in_its_past_is_watched_all_the_same(tmp_path, follow):
    log = make_log(tmp_path)
    log.add(record(1.0, uid=7))
    with log.path.open("ab") as stream:
        stream.write(b'rubbish\n[]\n{"op": 1, "ts": "x"}\n')
    log.add(record(2.0, uid=8))
    found = follow(Watching([Rule("new", Kind.NEW_PRINCIPAL, quiet_seconds=0), Rule("gap", Kind.GAP)], ACCOUNT), log.path)
    log.add(record(3.0, uid=7))
    log.add(record(4.0, uid=9))
    soon([("gap", "3 lines of the log are no records"), ("new", None)], lambda: [(made.name, made.record.get("why")) for made in found])


def test_the_past_is_told_too(tmp_path):
    log = make_log(tmp_path)
    for ts in (1.0, 2.0, 3.0):
        log.add(denied(ts))
    log.skip(denied(4.0))
    log.add(record(5.0))
    found = [(alarm.name, alarm.record.get("why", "")) for alarm in past_alarms(Watching([Rule("d", Kind.DENIED, 2), Rule("gap", Kind.GAP)], ACCOUNT), log.path)]
    assert found == [("d", ""), ("gap", "record 3 is missing or was changed")]


def test_a_log_that_is_not_there_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot read the audit log"):
        next(watch_log(Watching(DEFAULT_RULES, ACCOUNT), tmp_path / "none", lambda: 0.0))


# --- what is done ---------------------------------------------------------------------------------------------


def alarm(**done):
    return Alarm("name\nof it", Kind.DENIED, 1.0, "uid/1", 3, denied(1.0), Actions(**done))


def done_with(made):
    doer = Doer()
    doer.take(made)
    doer.close()


def test_a_program_gets_the_alarm(tmp_path):
    out = tmp_path / "out"
    script = f"import os,sys; open({str(out)!r},'w').write(os.environ['KMSFS_ALARM_ON'] + sys.stdin.read())"
    done_with(alarm(run=(sys.executable, "-c", script)))
    text = out.read_text()
    assert text.startswith("denied{") and json.loads(text[6:])["count"] == 3


def test_a_program_that_fails_is_logged_and_others_go_on(tmp_path, caplog):
    doer = Doer()
    doer.take(alarm(run=("/nonexistent/program",)))
    doer.take(alarm(run=(sys.executable, "-c", "raise SystemExit(3)")))
    doer.close()
    assert "No such file" in caplog.text and "ended with 3" in caplog.text


def test_a_webhook_gets_it_and_is_not_followed_elsewhere(caplog):
    got = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(302 if self.path == "/away" else 204)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done_with(alarm(webhook=f"http://127.0.0.1:{server.server_port}/here"))
    done_with(alarm(webhook=f"http://127.0.0.1:{server.server_port}/away"))
    server.shutdown()
    assert [path for path, _ in got] == ["/here", "/away"] and got[0][1]["group"] == "uid/1"
    assert "answered 302" in caplog.text


def test_a_mail_is_one_letter_whatever_the_name(tmp_path, monkeypatch):
    out = tmp_path / "letter"
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > {out}\ncat >> {out}\n')
    program.chmod(0o755)
    monkeypatch.setattr(doing, "SENDMAIL", str(program))
    done_with(alarm(mail="root"))
    lines = out.read_text().splitlines()
    assert lines[:5] == ["-i -- root", "To: root", "Subject: kmsfs alarm: name of it", "Content-Type: text/plain; charset=utf-8", ""]


def test_too_many_that_wait_are_dropped_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(doing, "_WAITING_MAX", 1)
    gate = threading.Event()
    monkeypatch.setattr(Doer, "_run", lambda *_: gate.wait(10))
    doer = Doer()
    for _ in range(5):
        doer.take(alarm(run=("x",)))
    gate.set()
    doer.close()
    assert "dropped" in caplog.text
