"""The audit log in segments: the chain, the digests and every reader go on from one into the next, and old ones go when they may."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from kmsd.audit import journal as journals
from kmsd.audit import segments
from kmsd.audit.digests import AuditDigests
from kmsd.audit.journal import Journal, verify_log
from kmsd.audit.upkeep import AuditLimits, AuditUpkeep
from kmsd.backup import service as backups
from kmsd.config import Config
from kmsd.realm import open_realm, read_root

from kmsfs.aead.kdf import Label, derive
from kmsfs.alarms.following import watch_log
from kmsfs.alarms.rules import DEFAULT_RULES
from kmsfs.alarms.watching import Watching
from kmsfs.errors import AuditChainBroken, AuditUnavailable, StorageError
from kmsfs.trail import reading
from kmsfs.trail.reading import follow_records, last_lines, last_records, read_lines, read_records
from kmsfs.trail.verify import verify_trail

SEED, STATE_KEY, FIRST_KEY = b"s" * 32, b"k" * 32, b"f" * 32
DAY = 86_400.0


class Log:
    """A log whose clock the test winds."""

    def __init__(self, folder, *, first_key=FIRST_KEY, keep_days=None, segment_bytes=1 << 20):
        self.folder, self.path, self.now = folder, folder / "audit.jsonl", 1e9
        self.journal = Journal(folder, STATE_KEY, os.urandom, first_key=first_key)
        self.digests = AuditDigests(folder, SEED, self.journal, 3600)
        self.upkeep = AuditUpkeep(self.journal, self.digests, AuditLimits(segment_bytes, keep_days))

    def add(self, count):
        for _ in range(count):
            self.journal.append({"ts": self.now, "req": "r", "uid": 7, "op": "Decrypt", "res": "ok"})
        self.journal.flush()

    def pass_days(self, days, calls=3):
        for _ in range(days):
            self.add(calls)
            self.now += DAY
            self.upkeep.act(self.now)

    def files(self):
        return sorted(path.name for path in self.folder.glob("audit*.jsonl"))


def again(log, **more):
    """The log as the next start finds it."""
    found = Log(log.folder, first_key=None, **more)
    found.now = log.now
    return found


def numbers(log):
    return [record["seq"] for record in read_records(log.path)]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


def test_the_chain_goes_on_over_days_and_restarts(log):
    log.pass_days(3)
    # Each day: three calls, and what the log says of the digest.
    assert log.files() == ["audit-000000000000.jsonl", "audit-000000000004.jsonl", "audit-000000000008.jsonl", "audit.jsonl"]
    assert log.path.read_bytes() == b""
    second = again(log)
    assert second.journal.records == 12 and second.journal.last_time == log.now
    second.add(2)
    third = again(second)
    assert third.journal.records == 14
    third.journal.close()
    assert verify_log(log.path, FIRST_KEY) == 14
    found = verify_trail(log.path, None)
    assert (found.records, found.removed, found.digests, found.signed_records) == (14, 0, 3, 11)
    assert numbers(log) == list(range(14))
    assert [r["seq"] for r in last_records(log.path, 7)] == list(range(7, 14))
    assert [r["seq"] for r in last_records(log.path, 99)] == list(range(14))
    # From a time on, segments that are older are not even opened.
    (log.folder / "audit-000000000000.jsonl").write_text("rubbish\n")
    assert [r["seq"] for r in read_records(log.path, 1e9 + 1.5 * DAY)] == [7, *range(8, 14)]
    with pytest.raises(AuditChainBroken):
        list(read_records(log.path))


def test_a_large_file_is_closed_before_its_day(tmp_path):
    log = Log(tmp_path, segment_bytes=2000)
    log.add(3)
    log.upkeep.act(log.now)
    assert log.files() == ["audit.jsonl"]
    log.add(10)
    log.upkeep.act(log.now)
    log.upkeep.act(log.now)
    assert log.files() == ["audit-000000000000.jsonl", "audit.jsonl"]
    # It was signed as it was closed, an hour or not.
    assert verify_trail(log.path, None).digests == 2


@pytest.mark.parametrize("attack", ["first", "middle", "last", "swap", "cut", "other", "named"])
def test_segments_that_are_missing_or_others_are_named(log, attack):
    log.pass_days(3)
    log.add(2)
    log.journal.checkpoint()
    first, middle, last, now = (log.folder / name for name in log.files())
    if attack == "swap":
        whole = first.read_bytes()
        first.write_bytes(middle.read_bytes())
        middle.write_bytes(whole)
    elif attack == "cut":
        middle.write_bytes(b"".join(middle.read_bytes().splitlines(keepends=True)[:-1]))
    elif attack == "other":
        now.write_bytes(last.read_bytes())
    elif attack == "named":
        # Who has the folder alone says himself that the first was old: no digest covers that.
        lines = now.read_bytes().splitlines(keepends=True)
        record = json.loads(lines[-1]) | {"op": "AuditRetention", "params": {"before": 4}}
        now.write_bytes(lines[0] + json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        first.unlink()
    else:
        {"first": first, "middle": middle, "last": last}[attack].unlink()
    with pytest.raises(AuditChainBroken, match="missing|was changed"):
        verify_trail(log.path, None)
    with pytest.raises((AuditChainBroken, AuditUnavailable)):
        verify_log(log.path, FIRST_KEY)
    if attack == "other":
        with pytest.raises(AuditChainBroken):
            again(log)


def test_old_segments_go_and_the_log_says_so(tmp_path):
    log = Log(tmp_path, keep_days=2)
    log.pass_days(5)
    # The five days' segments but those of the last two, and of the one that ended within them.
    assert numbers(log)[0] > 0 and numbers(log) == list(range(numbers(log)[0], log.journal.records))
    first = numbers(log)[0]
    assert next(read_records(log.path))["ts"] >= log.now - 3 * DAY
    found = verify_trail(log.path, None)
    assert found.removed == first and found.records == log.journal.records
    log.journal.checkpoint()
    assert verify_log(log.path, FIRST_KEY) == log.journal.records
    with pytest.raises(AuditChainBroken, match="sealed"):
        verify_log(log.path, b"x" * 32)
    # The next start knows which log it is, though its first record is gone.
    second = again(log, keep_days=2)
    second.pass_days(2)
    found = verify_trail(log.path, None)
    assert found.removed > first and found.signed_records > 0
    assert len({json.loads(line)["digest"]["log"] for line in (tmp_path / "digests.jsonl").read_text().splitlines()}) == 1


def test_what_is_removed_beyond_what_the_log_says_is_missing(tmp_path):
    log = Log(tmp_path, keep_days=2)
    log.pass_days(5)
    first = numbers(log)[0]
    (tmp_path / log.files()[0]).unlink()
    with pytest.raises(AuditChainBroken, match=f"records {first} to .* are missing"):
        verify_trail(log.path, None)
    # Nor can the first record that is left be another one.
    other = tmp_path / "other"
    other.mkdir()
    log = Log(other, keep_days=2)
    log.pass_days(5)
    oldest = log.folder / log.files()[0]
    oldest.write_bytes(oldest.read_bytes().replace(b'"uid":7', b'"uid":8', 1))
    with pytest.raises(AuditChainBroken):
        verify_trail(log.path, None)


def test_nothing_goes_while_a_backup_copies_and_nothing_is_said(tmp_path):
    log = Log(tmp_path, keep_days=2)
    log.pass_days(2)
    records, files = log.journal.records, log.files()
    with segments.segments_held(tmp_path, alone=False) as held:
        assert held
        log.pass_days(3)
        assert log.files() == files
        assert "AuditRetention" not in log.path.read_text()
    log.upkeep.act(log.now)
    assert log.files() != files and log.journal.records > records
    assert verify_trail(log.path, None).records == log.journal.records


def test_where_a_segment_ends_without_saying_when_nothing_goes(tmp_path):
    log = Log(tmp_path, keep_days=1)
    log.journal.append({"req": "r", "uid": 7, "op": "Decrypt", "res": "ok"})
    log.journal.begin_segment()
    log.now += 30 * DAY
    log.add(1)
    log.upkeep.act(log.now)
    assert len(log.files()) == 2 and numbers_of(log.path.with_name(log.files()[0])) == [0]


def numbers_of(path):
    return [json.loads(line)["seq"] for line in path.read_bytes().splitlines()]


def test_what_is_written_after_a_new_segment_is_written_again_where_a_sync_failed(log, monkeypatch):
    log.add(50)
    assert log.journal.begin_segment()
    log.journal.append({"ts": 1.0, "op": "lost"})
    fails, wrote, real = [True], [], os.pwrite

    def fdatasync(_descriptor):
        if fails:
            fails.pop()
            raise OSError(5, "injected")

    monkeypatch.setattr(journals.os, "fdatasync", fdatasync)
    monkeypatch.setattr(journals.os, "pwrite", lambda fd, data, at: (wrote.append(at), real(fd, data, at))[1])
    with pytest.raises(AuditUnavailable):
        log.journal.sync()
    log.journal.sync()
    assert wrote == [0]


def test_a_cut_end_is_noticed_whatever_the_segment(log):
    log.pass_days(2)
    log.add(3)
    log.journal.checkpoint()
    whole = log.path.read_bytes()
    log.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(AuditChainBroken, match="cut off"):
        again(log)
    log.path.unlink()
    with pytest.raises(AuditChainBroken, match="cut off"):
        again(log)


STEPS = ("link", "sync 1", "rename", "sync 2")


class Stopped(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["killed", "refused"])
def test_a_new_segment_that_is_cut_short(log, monkeypatch, step, after, how):
    """Before or after each step: killed, and the next start goes on; or the disk refused, and this one does."""
    log.add(5)
    log.journal.checkpoint()
    count, fault = iter(STEPS), Stopped() if how == "killed" else OSError(5, "injected")

    def step_of(real):
        def wrapped(*args, **more):
            mine = next(count, None) == step
            if mine and not after:
                raise fault
            answer = real(*args, **more)
            if mine:
                raise fault
            return answer

        return wrapped

    monkeypatch.setattr(segments.os, "link", step_of(os.link))
    monkeypatch.setattr(segments, "sync_directory", step_of(segments.sync_directory))
    monkeypatch.setattr(segments.Path, "rename", step_of(segments.Path.rename))
    with pytest.raises(Stopped if how == "killed" else AuditUnavailable):
        log.journal.begin_segment()
    monkeypatch.undo()
    if how == "refused":
        assert log.files() == ["audit.jsonl"]
        log.add(2)
    assert numbers(log) == list(range(log.journal.records))
    if how == "refused" and not after:
        assert log.journal.begin_segment()
        log.add(1)
    second = again(log)
    assert second.journal.records == log.journal.records == verify_log(log.path, FIRST_KEY)
    second.add(2)
    assert second.journal.begin_segment()
    second.add(1)
    again(second)
    assert verify_log(log.path, FIRST_KEY) == second.journal.records == len(numbers(log))


def test_a_log_is_not_put_over_a_segment_that_has_its_name(log):
    log.add(5)
    held = log.folder / "audit-000000000000.jsonl"
    held.write_text("somebody's\n")
    with pytest.raises(AuditUnavailable, match="File exists"):
        log.journal.begin_segment()
    log.add(1)
    assert held.read_text() == "somebody's\n" and len(log.path.read_bytes().splitlines()) == 6


def test_a_sync_that_failed_before_is_not_mended_in_another_file(log, monkeypatch):
    log.add(3)
    monkeypatch.setattr(journals.os, "fdatasync", lambda _descriptor: (_ for _ in ()).throw(OSError(5, "injected")))
    with pytest.raises(AuditUnavailable):
        log.journal.begin_segment()
    monkeypatch.undo()
    assert log.files() == ["audit.jsonl"]
    assert log.journal.begin_segment()
    log.add(1)
    assert numbers(log) == [0, 1, 2, 3]


def test_followers_go_from_one_segment_into_the_next(log):
    log.add(2)
    seen, alarms, stop = [], [], threading.Event()

    def follow():
        for record in follow_records(log.path):
            seen.append(record["seq"])
            if len(seen) == 600:
                return

    def watch():
        watching = Watching(DEFAULT_RULES, "000000000000")
        for alarm in watch_log(watching, log.path, lambda: log.now):
            alarms.append(alarm)
            if alarm.record.get("op") == "End" or stop.is_set():
                return

    threads = [threading.Thread(target=target, daemon=True) for target in (follow, watch)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    log.journal.sync()
    for turn in range(60):
        log.add(10)
        if turn % 7 != 6:
            log.journal.begin_segment()
        time.sleep(0.01 if turn % 10 else 0.3)
    threads[0].join(20)
    assert seen == list(range(2, 602))
    # A break is told after all, and nothing was before it.
    assert alarms == []
    stop.set()
    with log.path.open("ab") as stream:
        stream.write(b'{"seq": 9999, "op": "End", "ts": 1}\n')
    threads[1].join(20)
    assert [alarm.record["why"] for alarm in alarms] == ["an audit line is not a record"]


def test_readers_take_each_record_once_while_segments_are_begun(log):
    log.add(50)
    done = threading.Event()

    def write():
        while not done.is_set():
            log.add(20)
            log.journal.begin_segment()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        for _ in range(60):
            found = [json.loads(line)["seq"] for line in read_lines(log.path)]
            assert found == list(range(len(found)))
            last = [record["seq"] for record in last_records(log.path, 45)]
            assert last == list(range(last[0], last[0] + 45))
    finally:
        done.set()
        thread.join(10)


def test_a_segment_that_goes_while_it_is_read(log):
    log.pass_days(3)
    lines = read_lines(log.path)
    next(lines)
    (log.folder / log.files()[1]).unlink()
    with pytest.raises(StorageError, match="No such file"):
        list(lines)


# --- the daemon ---------------------------------------------------------------------------------------------------


def run(daemon, program, *words, **more):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", program, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **more)


def closed(daemon):
    return sorted((daemon.state / "audit").glob("audit-*.jsonl"))


def fill(daemon, segments):
    """Call until so many segments are closed."""
    session = daemon.session()
    key = session.call("CreateKey", {})["KeyMetadata"]["KeyId"]
    deadline = time.monotonic() + 60
    while len(closed(daemon)) < segments:
        assert time.monotonic() < deadline
        for _ in range(50):
            session.call("Encrypt", {"KeyId": key, "Plaintext": b"x", "EncryptionContext": {"pad": "x" * 4000}})


def test_a_daemon_s_log_in_segments_from_its_start_to_a_restored_backup(fresh_daemon, tmp_path):
    daemon = fresh_daemon
    daemon.options = ("--digest-every", "1", "--audit-segment", "1")
    daemon.start()
    key = json.loads(daemon.init_output)["audit_verification_key"]
    fill(daemon, 1)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    fill(daemon, 2)
    found = json.loads(run(daemon, "kmsfs.cli", "--json", "audit", "verify").stdout)
    assert found["digests"] >= 2 and found["removed_records"] == 0
    # Every reader has all of it.
    [counted] = json.loads(run(daemon, "kmsfs.cli", "--json", "audit", "query", "SELECT count(*) c, min(seq) a, max(seq) z FROM records").stdout)
    assert counted["a"] == 0 and counted["c"] == counted["z"] + 1 >= found["records"]
    [recent] = json.loads(run(daemon, "kmsfs.cli", "--json", "audit", "query", "--days", "1e-6", "SELECT count(*) c FROM records").stdout)
    assert recent["c"] < counted["c"]
    assert run(daemon, "kmsfs.cli", "audit", "export", "--days", "1", tmp_path / "events.json").returncode == 0
    assert len(json.loads((tmp_path / "events.json").read_text())["Records"]) >= counted["c"]
    archive = tmp_path / "b.kmsbackup"
    made = run(daemon, "kmsd", "backup", archive, "--state", daemon.state, "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["audit_records"] >= counted["c"], made.stderr
    daemon.stop()
    names = [path.name for path in closed(daemon)]
    log = daemon.state / "audit" / "audit.jsonl"
    assert run(daemon, "kmsd", "verify-audit", log, "--key-file", "-", input=key).returncode == 0
    # The state is lost: the archive has all segments.
    os.rename(daemon.state, tmp_path / "lost")
    os.rename(tmp_path / "state-anchor", tmp_path / "lost-anchor")
    code = json.loads(daemon.init_output)["recovery_code"]
    done = run(daemon, "kmsd", "restore", archive, "--state", daemon.state, "--code-file", "-", input=code)
    assert done.returncode == 0, done.stderr
    assert set(names) >= {path.name for path in closed(daemon)} and len(closed(daemon)) >= 2
    assert run(daemon, "kmsd", "verify-audit", log, "--key-file", "-", input=key).returncode == 0
    # A chain that is begun anew takes none of the old one's segments for its own, and they stay readable where they are.
    done = run(daemon, "kmsd", "restart-audit", "--yes", "--state", daemon.state)
    assert done.returncode == 0 and closed(daemon) == []
    [kept] = (daemon.state / "audit").glob("audit.until-*Z.jsonl")
    first = json.loads(log.read_text().splitlines()[0])
    parts = [*sorted((daemon.state / "audit").glob("audit.until-*Z-*.jsonl")), kept]
    assert first["params"]["old_sha256"] == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert run(daemon, "kmsd", "verify-audit", kept, "--key-file", "-", input=key).returncode == 0
    daemon.start()
    [old] = json.loads(run(daemon, "kmsfs.cli", "--json", "audit", "query", "--log", kept, "SELECT count(*) c FROM records").stdout)
    assert old["c"] >= counted["c"]
    fill(daemon, 1)
    assert run(daemon, "kmsfs.cli", "audit", "verify").returncode == 0


def test_a_daemon_lets_old_segments_go_where_it_is_told_to(fresh_daemon):
    daemon = fresh_daemon
    realm = open_realm(Config(daemon.state, daemon.socket), None)
    domain_keys = realm.keyring.domain_keys
    journal = Journal(daemon.state / "audit", derive(domain_keys[min(domain_keys)].reveal(), Label.DOMAIN_AUDIT), os.urandom)
    for days in (30, 20, 1):
        journal.append({"ts": time.time() - days * DAY, "req": "r", "uid": 0, "op": "Decrypt", "res": "ok"})
        journal.begin_segment()
    journal.close()
    # Without a word from the operator, everything stays.
    daemon.options = ("--digest-every", "1")
    daemon.start()
    time.sleep(2.5)
    assert len(closed(daemon)) == 3
    daemon.stop()
    refused = run(daemon, "kmsd", "serve", "--state", daemon.state, "--socket", daemon.socket, "--audit-keep", "0")
    assert refused.returncode == 2
    daemon.options = ("--digest-every", "1", "--audit-keep", "10")
    daemon.start()
    deadline = time.monotonic() + 20
    while len(closed(daemon)) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = run(daemon, "kmsfs.cli", "audit", "verify")
    assert done.returncode == 0 and "the first 2 were removed" in done.stdout, done
    daemon.stop()
    key = json.loads(daemon.init_output)["audit_verification_key"]
    assert run(daemon, "kmsd", "verify-audit", daemon.state / "audit" / "audit.jsonl", "--key-file", "-", input=key).returncode == 0


# --- promises that only a crash or a race would show -----------------------------------------------------------------


def test_a_crash_right_after_a_segment_was_closed_and_removed(tmp_path):
    """What is stored of the log says that a segment is being closed, and by which name that is seen: it may not be gone before that is over."""
    log = Log(tmp_path, keep_days=2)
    log.add(3)
    assert log.journal.begin_segment()
    log.now += 30 * DAY
    log.upkeep.act(log.now)
    assert log.files() == ["audit.jsonl"]
    second = again(log)
    assert second.journal.records == log.journal.records and verify_log(log.path, FIRST_KEY) == log.journal.records


def test_a_follower_that_looks_just_as_the_next_segment_is_closed_too(log, monkeypatch):
    log.add(2)
    place = last_lines(log.path, 0)[1]
    log.add(3)
    assert log.journal.begin_segment()
    log.add(4)
    real, closing = reading.place_of, [True]

    def place_of(path):
        if path == log.path and closing:
            # The follower knows that this file is the next; now it is closed as well, and another has its name.
            closing.clear()
            assert log.journal.begin_segment()
            log.add(1)
        return real(path)

    monkeypatch.setattr(reading, "place_of", place_of)
    seen = []
    for line in reading.follow_lines(log.path, place):
        assert line != b""
        if line:
            seen.append(json.loads(line)["seq"])
        if seen and seen[-1] == 9:
            break
    assert seen == list(range(2, 10)) and not closing


def test_a_backup_holds_the_segments_while_it_copies(fresh_daemon, tmp_path, monkeypatch):
    config = Config(fresh_daemon.state, fresh_daemon.socket)
    domain_keys = open_realm(config, None).keyring.domain_keys
    journal = Journal(config.audit, derive(domain_keys[min(domain_keys)].reveal(), Label.DOMAIN_AUDIT), os.urandom)
    journal.append({"ts": 1.0, "op": "Decrypt", "req": "r"})
    journal.sync()
    real, tried = backups._add, []

    def add(tar, manifest, name, *rest):
        if name.startswith("audit/"):
            tried.append(journal.begin_segment())
        real(tar, manifest, name, *rest)

    monkeypatch.setattr(backups, "_add", add)
    key = read_root(config, None)
    made = backups.make_backup(config, key, tmp_path / "b")
    assert len(tried) >= 2 and not any(tried)
    assert journal.begin_segment()
    assert backups.verify_backup(made, key).counts["audit_records"] == journal.records


@pytest.mark.root
def test_what_root_does_to_a_daemon_s_state_stays_the_daemon_s(fresh_daemon):
    """Root changes the root key, begins a new log and a new key for the state: the daemon, which is another user, still reads it."""
    state, owner = fresh_daemon.state, 61_234
    anchor = state.with_name("state-anchor")
    fresh_daemon.start().stop()
    (state / "kmsd.lock").unlink()
    for path in (state, anchor, *state.rglob("*"), *anchor.rglob("*")):
        os.chown(path, owner, owner)
    for command in (["renew-state-key"], ["restart-audit", "--yes"], ["change-root", "--to", "keyfile"]):
        done = run(fresh_daemon, "kmsd", *command, "--state", state)
        assert done.returncode == 0, done.stderr
    strange = {str(path): path.stat().st_uid for folder in (state, anchor) for path in folder.rglob("*") if path.stat().st_uid != owner}
    assert strange == {}
