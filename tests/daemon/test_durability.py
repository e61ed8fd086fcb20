"""What kmsd makes durable before it answers; each barrier missing would show here."""

import errno
import os

import pytest

from kmsd.server.session import ServerState, Session


class Trace(list):
    pass


class FakeJournal:
    overdue = False

    def __init__(self, trace):
        self.trace = trace

    def sync(self):
        self.trace.append("fdatasync of the audit log")

    def flush(self):
        self.trace.append("write to the audit log")


class FakePipeline:
    def __init__(self, trace, mutates):
        self.journal = FakeJournal(trace)
        self.sync_wanted = mutates


class FakeTransport:
    def __init__(self, trace):
        self.trace = trace

    def write(self, _data):
        self.trace.append("answer")


def answered(mutates):
    trace = Trace()
    session = Session(ServerState(FakePipeline(trace, mutates), "0" * 12, lambda: 0.0))
    session._transport = FakeTransport(trace)
    session._send([("PutParameter", 1, b"frame")])
    return trace


def test_a_change_is_in_a_durable_audit_log_before_it_is_answered():
    assert answered(mutates=True) == ["fdatasync of the audit log", "answer"]


def test_a_read_is_in_the_audit_log_before_it_is_answered():
    assert answered(mutates=False) == ["write to the audit log", "answer"]


def test_the_audit_log_really_syncs(tmp_path, monkeypatch):
    from kmsd.audit.journal import Journal

    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal = Journal(tmp_path, bytes(32), os.urandom, first_key=bytes(32))
    journal.append({"op": "x"})
    journal.sync()
    assert synced == [journal._descriptor]


def test_an_audit_log_whose_sync_failed_is_written_again_before_the_next(tmp_path, monkeypatch):
    """The kernel takes for clean what it could not store: fdatasync alone would store nothing, and a power cut leave a hole."""
    from kmsd.audit.journal import Journal, verify_log
    from kmsfs.errors import AuditUnavailable

    journal = Journal(tmp_path, bytes(32), os.urandom, first_key=bytes(32))
    journal.append({"op": "stored"})
    journal.sync()
    log = tmp_path / "audit.jsonl"
    stored = log.read_bytes()
    fails, wrote, real = [True], [], os.pwrite

    def fdatasync(_descriptor):
        if fails:
            fails.pop()
            raise OSError(errno.EIO, "injected")

    def pwrite(descriptor, data, offset):
        wrote.append((bytes(data), offset))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "pwrite", pwrite)
    journal.append({"op": "lost"})
    with pytest.raises(AuditUnavailable):
        journal.sync()
    assert journal.needs_sync and not wrote
    journal.append({"op": "later"})
    journal.sync()
    whole = log.read_bytes()
    assert whole.startswith(stored) and wrote == [(whole[len(stored) :], len(stored))]
    assert not journal.needs_sync and verify_log(log, bytes(32)) == 3
    journal.append({"op": "x"})
    journal.sync()
    assert len(wrote) == 1


def test_the_store_commits_durably(tmp_path):
    import sqlite3

    from kmsd.store.database import _configure

    connection = sqlite3.connect(tmp_path / "state.db")
    _configure(connection, None)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
