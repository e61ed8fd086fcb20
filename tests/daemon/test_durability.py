"""What kmsd makes durable before it answers; each barrier missing would show here."""

import asyncio
import errno
import os
import socket
import subprocess
import sys

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kmsd.app import Daemon
from kmsd.authz.principal import make_caller
from kmsd.config import Config
from kmsd.door.app import Door
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsd.server.session import ServerState, Session
from kmsd.server.settling import Settlement
from kmsd.store import database
from kmsd.store.anchor import Anchor
from kmsd.store.sqlite import SqliteStore
from kmsd.store.schema import Table
from kmsd.store.sealing import RowSealer
from kmsfs.errors import KmsfsError, StorageError
from kmsfs.formats.frame import Request, decode_answer, encode_request
from kmsfs.secret import KeyMaterial
from support.waiting import soon


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


class FakeStore:
    def __init__(self, trace, *, dirty=False, broken=False):
        self.trace, self.dirty, self.broken = trace, dirty, broken

    def sync(self):
        if self.dirty:
            self.trace.append("fdatasync of the state")
            if self.broken:
                raise StorageError("the disk is gone")
            self.dirty = False


class FakeTransport:
    def __init__(self, trace, name="answer"):
        self.trace, self.name, self.data = trace, name, b""

    def write(self, data):
        self.trace.append(self.name)
        self.data += data

    def close(self):
        self.trace.append("close")

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return "close" in self.trace


class World:
    """Sessions over a state and an audit log that note what is made durable, and when who is answered."""

    def __init__(self, *, mutates=False, dirty=False, broken=False):
        self.trace = []
        self.store = FakeStore(self.trace, dirty=dirty, broken=broken)
        pipeline = FakePipeline(self.trace, mutates)
        self.settlement = Settlement(pipeline, self.store, lambda: self.trace.append("stop"))
        self.state = ServerState(pipeline, self.settlement, "0" * 12, lambda: 0.0, lambda _uid: "0" * 12)

    def session(self, name="answer"):
        made = Session(self.state)
        made._transport = FakeTransport(self.trace, name)
        return made


def answered(**facts):
    async def run():
        world = World(**facts)
        world.session()._send([("PutParameter", 1, b"frame")])
        await asyncio.sleep(0)
        return world.trace

    return asyncio.run(run())


def test_a_change_is_durable_in_state_and_audit_log_before_it_is_answered():
    assert answered(mutates=True, dirty=True) == ["fdatasync of the state", "fdatasync of the audit log", "answer"]


def test_a_read_is_in_the_audit_log_before_it_is_answered():
    assert answered() == ["write to the audit log", "answer"]


def test_a_read_of_what_is_not_durable_yet_waits_too():
    assert answered(dirty=True) == ["fdatasync of the state", "write to the audit log", "answer"]


def test_one_sync_serves_all_that_is_answered_in_one_turn_and_events_stay_behind_answers():
    async def run():
        world = World(mutates=True, dirty=True)
        first, second = world.session("first"), world.session("second")
        first._send([("PutParameter", 1, b"frame")])
        second._send([("GetParameter", 1, b"frame")])
        second._push(7, {"kind": "Update"})
        second._state.settlement.after(lambda _error: second._transport.close())
        assert world.trace == []
        await asyncio.sleep(0)
        return world.trace

    assert asyncio.run(run()) == [
        "fdatasync of the state", "fdatasync of the audit log", "first", "second", "second", "close",
    ]  # fmt: skip


def test_who_cannot_wait_settles_for_all():
    async def run():
        world = World(mutates=True, dirty=True)
        world.session("waits")._send([("PutParameter", 1, b"frame")])
        world.settlement.now()
        before = list(world.trace)
        await asyncio.sleep(0)
        return before, world.trace

    before, after = asyncio.run(run())
    assert before == after == ["fdatasync of the state", "fdatasync of the audit log", "waits"]


def test_a_connection_that_cannot_be_answered_keeps_nobody_from_his_answer():
    async def run():
        world = World(mutates=True, dirty=True)
        broken, other = world.session("broken"), world.session("other")
        broken._transport.write = None
        broken._send([("PutParameter", 1, b"frame")])
        other._send([("PutParameter", 1, b"frame")])
        await asyncio.sleep(0)
        return world.trace

    assert asyncio.run(run())[2:] == ["other"]


def test_what_waits_is_answered_though_the_other_end_has_said_all():
    async def run():
        world = World(mutates=True, dirty=True)
        session = world.session()
        assert session.eof_received() is False
        session._send([("PutParameter", 1, b"frame")])
        # True: asyncio does not close the transport by itself.
        assert session.eof_received() is True
        await asyncio.sleep(0)
        return world.trace

    assert asyncio.run(run())[2:] == ["answer", "close"]


def test_who_says_no_more_is_answered_before_the_connection_closes(daemon):
    for operation, parameters in (("PutParameter", {"Name": "/half", "Value": "x", "Type": "String", "Overwrite": True}), ("ListKeys", {})):
        with socket.socket(socket.AF_UNIX) as talk:
            talk.connect(str(daemon.socket))
            talk.settimeout(10)
            talk.sendall(encode_request(1, operation, parameters))
            talk.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: talk.recv(65536), b""))
        assert decode_answer(answer[4:])["r"]


def test_what_could_not_be_stored_is_answered_by_an_error_and_the_daemon_stops():
    async def run():
        world = World(mutates=True, dirty=True, broken=True)
        session = world.session()
        session._send([("DisableKey", 3, b"frame"), ("PutParameter", 4, b"frame")])
        await asyncio.sleep(0)
        return world.trace, session._transport.data

    trace, data = asyncio.run(run())
    assert trace == ["fdatasync of the state", "stop", "answer"]
    assert b"frame" not in data and data.count(b"the disk is gone") == 2


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


def sealer():
    return RowSealer({1: KeyMaterial(b"k" * 32)}, os.urandom)


def test_the_store_commits_durably(tmp_path, monkeypatch):
    """At each sync the database and its log are copied as they are: what the disk has. No transaction returns before its own."""
    import shutil

    copies, real = [], os.fdatasync

    def fdatasync(descriptor):
        real(descriptor)
        copy = tmp_path / f"copy{len(copies)}"
        copy.mkdir()
        for name in ("state.db", "state.db-wal"):
            shutil.copyfile(tmp_path / name, copy / name)
        copies.append(copy)

    store = SqliteStore(tmp_path / "state.db", sealer(), create=True)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    # Large rows: the log is copied into the database, and begun anew, on the way.
    for number in range(24):
        with store.transaction() as work:
            for part in range(20):
                work.put(Table.ALIAS, f"{number}/{part}", {"n": number, "x": os.urandom(16_000)})
        assert len(copies) == number + 1
    monkeypatch.undo()
    store.close()
    for number, copy in enumerate(copies):
        again = SqliteStore(copy / "state.db", sealer())
        assert again.commit_number == number + 1
        assert {row["n"] for row in again.scan(Table.ALIAS)} == set(range(number + 1))
        again.close()


def test_a_new_store_is_durable_when_it_is_made(tmp_path, monkeypatch):
    synced, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), real(descriptor)))
    SqliteStore(tmp_path / "state.db", sealer(), create=True).close()
    assert synced == [str(tmp_path / "state.db-wal")]


def test_a_table_is_read_whole_in_portions(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "READ_AT_ONCE", 10)
    store = SqliteStore(tmp_path / "state.db", sealer(), create=True)
    for count in (9, 10, 11, 35):
        with store.transaction() as work:
            for number in range(count):
                work.put(Table.ALIAS, f"alias/{number}", {"n": number})
        assert sorted(row["n"] for row in store.scan(Table.ALIAS)) == list(range(count))
    store.close()
    SqliteStore(tmp_path / "state.db", sealer()).close()


def test_the_daemon_syncs_once_for_two_connections(tmp_path, monkeypatch):
    """As it is put together: what two clients change in one turn is made durable by one sync of the state and one of the audit log."""
    config = Config(tmp_path / "state", tmp_path / "kmsd.sock")
    initialise(config, SealType.KEYFILE, None)
    daemon = Daemon(config, open_realm(config, None))
    synced, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), real(number)))
    log, audit = f"{config.database}-wal", str(config.audit / "audit.jsonl")
    caller = make_caller(daemon._account, 0, 0, 0, ())

    async def run():
        sessions = [Session(daemon._state) for _ in range(2)]
        for number, session in enumerate(sessions):
            session._transport = FakeTransport([])
            request = Request(1, "PutParameter", {"Name": f"/p{number}", "Value": "x", "Type": "String"}, None, None)
            session._send([session._answer(caller, request)])
        assert synced == [] and not any(session._transport.data for session in sessions)
        await asyncio.sleep(0)
        assert all(decode_answer(session._transport.data[4:])["r"]["Version"] == 1 for session in sessions)

    asyncio.run(run())
    assert synced == [log, audit]
    # What nobody waits for is made durable by the upkeep.
    daemon._parameters._remove(daemon._parameters._tree.get(daemon._parameters._home, "/p0"))
    assert daemon._store.dirty
    daemon._settle()
    assert not daemon._store.dirty and synced[2] == log
    daemon._close()


def test_the_door_answers_what_is_durable(tmp_path, monkeypatch):
    config = Config(tmp_path / "state", tmp_path / "kmsd.sock")
    initialise(config, SealType.KEYFILE, None)
    daemon = Daemon(config, open_realm(config, None))
    caller = make_caller(daemon._account, os.getuid(), 0, 0, ())
    made = daemon._pipeline.run(caller, Request(1, "GetSessionToken", {}, None, None), 0)[0]["Credentials"]
    body = '{"Name": "/p", "Value": "x", "Type": "String"}'
    headers = {"X-Amz-Target": "AmazonSSM.PutParameter", "Content-Type": "application/x-amz-json-1.1", "Host": "127.0.0.1:1"}
    request = AWSRequest("POST", "http://127.0.0.1:1/", headers, body)
    credentials = Credentials(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
    SigV4Auth(credentials, "ssm", "us-east-1").add_auth(request)
    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": b"",
        "headers": [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()],
    }  # fmt: skip
    seen, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: (seen.append(os.readlink(f"/proc/self/fd/{number}")), real(number)))

    async def receive():
        return {"type": "http.request", "body": body.encode(), "more_body": False}

    async def send(message):
        seen.append(message.get("status", message.get("body")))

    asyncio.run(Door(daemon._state, daemon._book, "us-east-1", daemon._config.socket)(scope, receive, send))
    assert seen[:3] == [f"{config.database}-wal", str(config.audit / "audit.jsonl"), 200]
    daemon._close()


FAILING = """
import os, pathlib, sys
flag, real = pathlib.Path(sys.argv.pop(1)), os.fdatasync
def fdatasync(number):
    if flag.exists() and os.readlink(f"/proc/self/fd/{number}").endswith("-wal"):
        raise OSError(5, "injected")
    real(number)
os.fdatasync = fdatasync
from kmsd.__main__ import main
main()
"""


def test_a_daemon_whose_disk_fails_says_so_ends_and_starts_on_what_the_disk_has(tmp_path, fresh_daemon):
    flag = tmp_path / "fails"
    command = [sys.executable, "-c", FAILING, str(flag), "serve", "--private", "--state", str(fresh_daemon.state), "--socket", str(fresh_daemon.socket)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    soon(True, fresh_daemon.socket.exists, 20)
    session = fresh_daemon.session()
    put = lambda name: session.call("PutParameter", {"Name": name, "Value": "x", "Type": "String"})  # noqa: E731
    put("/before")
    flag.touch()
    with pytest.raises(KmsfsError, match="could not be stored"):
        put("/lost")
    assert process.wait(20) != 0
    assert "could not be stored" in process.stderr.read()
    process.stderr.close()
    session.close()
    fresh_daemon.start()
    session = fresh_daemon.session()
    assert session.call("GetParameter", {"Name": "/before"})["Parameter"]["Value"] == "x"
    put("/after")
    session.close()


def test_deferred_transactions_survive_a_cut_in_order_and_whole(tmp_path):
    """What a power cut leaves of the log behind the last sync: any part of it. The state is that of one of its commits."""
    import shutil

    store = SqliteStore(tmp_path / "state.db", sealer(), create=True)
    store.deferring = True
    for number in range(6):
        with store.transaction() as work:
            work.put(Table.ALIAS, f"alias/{number}", {"n": number})
            work.put(Table.ALIAS, "last", {"n": number})
        assert store.dirty
        if number == 2:
            store.sync()
            synced = (tmp_path / "state.db-wal").stat().st_size
    whole = (tmp_path / "state.db-wal").stat().st_size
    seen = set()
    for cut in (*range(synced, whole, 512), whole):
        copy = tmp_path / f"cut{cut}"
        copy.mkdir()
        shutil.copyfile(tmp_path / "state.db", copy / "state.db")
        (copy / "state.db-wal").write_bytes((tmp_path / "state.db-wal").read_bytes()[:cut])
        again = SqliteStore(copy / "state.db", sealer())
        numbers = {row["n"] for row in again.scan(Table.ALIAS)}
        assert numbers == set(range(again.commit_number)) and again.get(Table.ALIAS, "last") == {"n": max(numbers)}
        seen.add(again.commit_number)
        again.close()
    store.close()
    assert seen == {3, 4, 5, 6}


def test_a_store_whose_sync_failed_takes_nothing_more_and_is_not_anchored(tmp_path, monkeypatch):
    store = SqliteStore(tmp_path / "state.db", sealer(), create=True)
    anchor = Anchor(tmp_path / "anchor.kms", bytes(32))
    anchor.write(store)
    anchored = (tmp_path / "anchor.kms").read_bytes()

    def fdatasync(_descriptor):
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fdatasync)
        with pytest.raises(StorageError), store.transaction() as work:
            work.put(Table.ALIAS, "alias/lost", {"name": "alias/lost"})
    # The kernel says so once: from then on it may take for stored what is not.
    with pytest.raises(StorageError), store.transaction():
        pytest.fail("a transaction began")
    with pytest.raises(StorageError):
        anchor.write(store)
    assert (tmp_path / "anchor.kms").read_bytes() == anchored
    store.close()
    again = SqliteStore(tmp_path / "state.db", sealer())
    with again.transaction() as work:
        work.put(Table.ALIAS, "alias/kept", {"name": "alias/kept"})
    again.close()
