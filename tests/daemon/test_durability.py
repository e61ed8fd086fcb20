"""What kmsd makes durable before it answers; each barrier missing would show here."""

import os

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


def test_the_store_commits_durably(tmp_path):
    import sqlite3

    from kmsd.store.database import _configure

    connection = sqlite3.connect(tmp_path / "state.db")
    _configure(connection, None)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
