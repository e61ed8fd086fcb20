"""Signed digests of the audit log: made in time, also when nothing happens; and what was changed afterwards is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from kmsd.audit.digests import AuditDigests
from kmsd.audit.journal import Journal
from kmsfs.aead.kdf import sha256
from kmsfs.errors import AuditChainBroken, AuditUnavailable
from kmsfs.formats.audit import join, parse_line, split
from kmsfs.formats.digest import parse_witness, witness_line
from kmsfs.trail.verify import verify_trail

SEED = b"s" * 32


@pytest.fixture
def folder(tmp_path):
    """A log with three digests: after 5 records, after none more, after 4 more; and 3 that no digest covers."""
    journal = Journal(tmp_path, b"k" * 32, os.urandom, first_key=b"f" * 32)
    digests = AuditDigests(tmp_path, SEED, journal, 3600)
    for hour, calls in enumerate((5, 0, 4)):
        for number in range(calls):
            journal.append({"ts": 1.0, "op": "Decrypt", "uid": number, "res": "ok"})
        now = 1e9 + 3600 * hour
        assert digests.due(now) and not (hour and digests.due(now - 1))
        digests.write(now)
    for _ in range(3):
        journal.append({"ts": 1.0, "op": "Encrypt", "uid": 0, "res": "ok"})
    journal.close()
    return tmp_path


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_a_whole_log_is_verified_with_the_public_key_alone(folder):
    key = AuditDigests(folder, SEED, Journal(folder, b"k" * 32, os.urandom), 3600).public_key
    for given in (None, key):
        found = verify_trail(folder / "audit.jsonl", given)
        # 5, then the record of the first digest, then that of the second and 4.
        assert (found.records, found.digests, found.signed_records, found.key) == (15, 3, 11, key)
        assert found.signed_until == 1e9 + 7200
    with pytest.raises(AuditChainBroken, match="another key"):
        verify_trail(folder / "audit.jsonl", "00" * 32)


def rechain(path, change):
    """Write the log anew with one record changed and everything after it chained to that, as who has no key can."""
    previous, out = "0" * 64, []
    for number, line in enumerate(lines(path)):
        record, _, mac = parse_line(line)
        change(number, record)
        record["prev"] = previous
        before, after = split(record)
        out.append(join(before, after, mac))
        previous = sha256(b"\0" + before + after).hex()
    path.write_bytes(b"".join(out))


@pytest.mark.parametrize("bad", [0, 4, 5, 8, 10])
def test_a_changed_record_is_not_what_was_signed(folder, bad):
    rechain(folder / "audit.jsonl", lambda number, record: record.update(uid=99) if number == bad else None)
    with pytest.raises(AuditChainBroken, match="is not the one that digest|missing or was changed|record 0 was changed"):
        verify_trail(folder / "audit.jsonl", None)


def test_every_damage_is_named(folder, tmp_path_factory):
    def broken(name, change, text):
        copy = tmp_path_factory.mktemp("copy")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        found = lines(copy / name)
        changed = change(found)
        (copy / name).write_bytes(b"".join(changed))
        with pytest.raises(AuditChainBroken, match=text):
            verify_trail(copy / "audit.jsonl", None)

    log, digests = "audit.jsonl", "digests.jsonl"
    broken(log, lambda found: found[:10], "record 10 is missing")
    broken(log, lambda found: found[:3] + found[4:], "record 3 was changed")
    broken(log, lambda found: [*found[:3], found[3].replace(b'"uid":3', b'"uid":4'), *found[4:]], "record 4 was changed")
    broken(log, lambda found: [*found[:3], b"{}\n", *found[4:]], "record 3 is damaged")
    broken(digests, lambda found: found[1:], "digest 0 is missing")
    broken(digests, lambda found: found[:1] + found[2:], "digest 1 is missing")
    broken(digests, lambda found: found[:2], "digest 2, which the log names, is missing")
    broken(digests, lambda _found: [], "digest 0, which the log names, is missing")
    broken(digests, lambda found: [*found[:2], found[2].replace(b'"made":1000007200.0', b'"made":1000007201.0')], "digest 2 is not signed")
    broken(digests, lambda found: [found[0].replace(b'{"digest"', b'{ "digest"'), *found[1:]], "not canonical")
    broken(digests, lambda found: [*found[:2], b"rubbish\n"], "is no digest")
    # What nobody has signed yet, and is not in the middle, cannot be missed: how much that is, is told.
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / log).write_bytes(b"".join(lines(copy / log)[:-2]))
    assert verify_trail(copy / log, None).document()["unsigned_records"] == 2


def test_a_torn_digest_is_cut_off_and_made_again(folder):
    path = folder / "digests.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + lines(path)[2][:70])
    journal = Journal(folder, b"k" * 32, os.urandom)
    digests = AuditDigests(folder, SEED, journal, 3600)
    assert path.read_bytes() == whole
    digests.write(2e9)
    journal.close()
    assert verify_trail(folder / "audit.jsonl", None).digests == 4
    assert digests.due(1e9)  # the clock went back: rather one too many


def test_a_damaged_last_digest_is_told_with_the_way_out(folder):
    path = folder / "digests.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 19 + b"\n")
    with pytest.raises(AuditChainBroken) as caught:
        AuditDigests(folder, SEED, Journal(folder, b"k" * 32, os.urandom), 3600)
    assert "put a whole copy back" in caught.value.hint
    path.unlink()
    journal = Journal(folder, b"k" * 32, os.urandom)
    AuditDigests(folder, SEED, journal, 3600).write(2e9)
    journal.close()
    with pytest.raises(AuditChainBroken, match="digest 0, which the log names"):
        verify_trail(folder / "audit.jsonl", None)


def test_what_is_signed_is_in_the_log_before(folder, monkeypatch):
    """A power cut between the two must leave a log that has all that a digest signs."""
    journal = Journal(folder, b"k" * 32, os.urandom)
    digests = AuditDigests(folder, SEED, journal, 3600)
    journal.append({"ts": 1.0, "op": "Decrypt", "uid": 7, "res": "ok"})
    seen, append = [], digests._append

    def spy(line):
        seen.append((json.loads(line)["digest"]["end"], len(lines(folder / "audit.jsonl")), journal.needs_sync))
        append(line)

    monkeypatch.setattr(digests, "_append", spy)
    digests.write(2e9)
    journal.close()
    assert seen == [(16, 16, False)]


def test_a_full_disk_leaves_no_part_of_one(folder, monkeypatch):
    journal = Journal(folder, b"k" * 32, os.urandom)
    digests = AuditDigests(folder, SEED, journal, 3600)
    before, real = (folder / "digests.jsonl").read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:40]))
    with pytest.raises(AuditUnavailable):
        digests.write(2e9)
    monkeypatch.undo()
    assert (folder / "digests.jsonl").read_bytes() == before
    digests.write(2e9)
    journal.close()
    assert verify_trail(folder / "audit.jsonl", None).digests == 4


def kmsfs(daemon, *words):
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_daemon_makes_them_over_restarts_and_new_logs(make_daemon):
    daemon = make_daemon("--digest-every", "1")
    path = daemon.state / "audit" / "digests.jsonl"

    def wait_for(count):
        deadline = time.monotonic() + 20
        while not path.exists() or len(lines(path)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(2)
    found = json.loads(kmsfs(daemon, "--json", "audit", "verify").stdout)
    assert found["digests"] >= 2 and found["signed_records"] >= 2
    key = daemon.session().call("GetStatus", {})["AuditDigestKey"]
    assert found["key"] == key
    daemon.stop(signal.SIGKILL)
    daemon.start()
    wait_for(found["digests"] + 2)
    daemon.stop()
    log = str(daemon.state / "audit" / "audit.jsonl")
    done = kmsfs(daemon, "audit", "verify", "--log", log, "--digest-key", key)
    assert done.returncode == 0 and "chain unbroken" in done.stdout, done.stderr
    count = len(lines(path))
    again = [sys.executable, "-m", "kmsd", "restart-audit", "--yes", "--state", str(daemon.state)]
    subprocess.run(again, check=True, capture_output=True)
    daemon.start()
    wait_for(count + 2)
    daemon.stop()
    found = json.loads(kmsfs(daemon, "--json", "audit", "verify", "--log", log, "--digest-key", key).stdout)
    assert found["digests"] >= count + 2 and 0 < found["signed_records"] <= found["records"]
    damaged = path.read_bytes().replace(b'"end":', b'"enD":', 1)
    path.write_bytes(damaged)
    done = kmsfs(daemon, "audit", "verify", "--log", log)
    assert done.returncode == 20 and "digest" in done.stderr, (done.returncode, done.stderr)


def test_a_witness_notices_a_log_that_was_signed_anew(tmp_path, caplog):
    """Whoever has the keys can make another log and sign it; what the journal was told he cannot take back."""
    caplog.set_level("INFO", "kmsd")

    def log_of(folder, uids):
        folder.mkdir()
        journal = Journal(folder, b"k" * 32, os.urandom, first_key=b"f" * 32)
        digests = AuditDigests(folder, SEED, journal, 3600)
        for hour in range(2):
            for uid in uids:
                journal.append({"ts": 1.0, "op": "Decrypt", "uid": uid, "res": "ok"})
            digests.write(1e9 + 3600 * hour)
        journal.close()
        return folder / "audit.jsonl"

    true = log_of(tmp_path / "true", (7, 8))
    told = parse_witness("Nov 27 host kmsd[1]: " + caplog.text)
    assert len(told) == 2 and verify_trail(true, None, told).witnessed == 2
    caplog.clear()
    forged = log_of(tmp_path / "forged", (7, 9))
    assert verify_trail(forged, None).digests == 2
    with pytest.raises(AuditChainBroken, match="digest 0 is not the one that the witness"):
        verify_trail(forged, None, told)
    with pytest.raises(AuditChainBroken, match="digest 5 .* is missing"):
        verify_trail(true, None, {**told, 5: "0" * 64})
    with pytest.raises(AuditChainBroken, match="two digests 0"):
        parse_witness("\n".join(witness_line(0, text * 64, 1) for text in "ab"))
    # By the command, from standard input.
    command = [sys.executable, "-m", "kmsfs.cli", "audit", "verify", "--log", str(true), "--witness", "-"]
    said = "\n".join(witness_line(number, hashed, 1) for number, hashed in told.items())
    done = subprocess.run(command, input=said, capture_output=True, text=True)
    assert done.returncode == 0 and "a witness confirms 2" in done.stdout, done.stderr
    command[command.index(str(true))] = str(forged)
    assert subprocess.run(command, input=said, capture_output=True, text=True).returncode == 20
