"""The store in PostgreSQL by itself: what is refused, and what becomes of a commit whose answer is lost."""

import os
import signal
import time

import psycopg
import pytest

from kmsd.store.database import seal_head
from kmsd.store.postgres import PostgresStore, create_shared
from kmsd.store.schema import Table
from kmsd.store.sealing import RowSealer
from kmsfs.errors import Conflict, CorruptStore, DatabaseUnreachable, StateMoved, StorageError, UnsupportedFormat, UsageError
from kmsfs.secret import KeyMaterial
from support.databases import PostgresServer, new_database

REALM = b"r" * 16
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = PostgresServer(tmp_path_factory.mktemp("pg") / "server").make().start("fsync=off")
    yield made
    made.stop()


def sealer():
    return RowSealer({1: KeyMaterial(b"k" * 32)}, os.urandom)


class Daemon:
    """A store, and what its daemon would know."""

    def __init__(self, url, name):
        self.known = {}
        self.store = PostgresStore(url, sealer(), REALM, name)
        self.store.on_changes = self._take
        self.store.loaded()

    def _take(self, changes):
        for table, rows in changes.items():
            self.known |= {(table, key): value for key, value in rows.items()}

    def put(self, key, value):
        with self.store.exclusive(), self.store.transaction() as work:
            work.put(Table.ALIAS, key, {"v": value})


@pytest.fixture
def url(server):
    made = new_database(server.url)
    create_shared(made, REALM, (), seal_head(sealer(), 0, 0))
    return made


@pytest.fixture
def two(url):
    made = [Daemon(url, "a"), Daemon(url, "b")]
    yield made
    for daemon in made:
        daemon.store.close()


def execute(url, statement, parameters=()):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement, parameters)


def test_what_one_writes_the_other_takes(two):
    a, b = two
    a.put("x", 1)
    a.put("x", 2)
    a.put("y", 1)
    assert b.store.catch_up() and not b.store.catch_up()
    assert b.known == {(Table.ALIAS, "x"): {"v": 2}, (Table.ALIAS, "y"): {"v": 1}}
    assert (b.store.commit_number, b.store.digest) == (a.store.commit_number, a.store.digest)
    with b.store.exclusive(), b.store.transaction() as work:
        work.delete(Table.ALIAS, "x")
    a.store.catch_up()
    assert a.known == {(Table.ALIAS, "x"): None}


def test_a_transaction_that_changes_nothing_is_followed_too(two):
    a, b = two
    with a.store.exclusive(), a.store.transaction() as work:
        work.delete(Table.ALIAS, "never there")
    assert b.store.catch_up() and b.store.commit_number == 1
    a.put("x", 1)
    assert b.store.catch_up() and b.known == {(Table.ALIAS, "x"): {"v": 1}}


def test_what_is_gone_is_told_first(two):
    a, b = two
    order = []
    b.store.on_changes = lambda changes: order.extend(changes[Table.ALIAS].items())
    a.put("x", 1)
    a.put("y", 1)
    b.store.catch_up()
    order.clear()
    with a.store.exclusive(), a.store.transaction() as work:
        work.put(Table.ALIAS, "x", {"v": 2})
        work.delete(Table.ALIAS, "y")
    b.store.catch_up()
    assert order == [("y", None), ("x", {"v": 2})]


def test_without_the_driver_it_is_said_what_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match="psycopg"):
        PostgresStore("postgresql:///x", sealer(), REALM, "a")


def test_who_has_not_looked_cannot_write(two):
    a, b = two
    a.put("x", 1)
    with pytest.raises(StateMoved), b.store.transaction() as work:
        work.put(Table.ALIAS, "x", {"v": "of one who did not know"})
    assert b.known == {(Table.ALIAS, "x"): {"v": 1}}
    with b.store.transaction() as work:
        work.put(Table.ALIAS, "x", {"v": 2})
    assert a.store.get(Table.ALIAS, "x") == {"v": 2}


def test_who_waits_for_a_writer_too_long_is_told(two):
    a, b = two
    with a.store.exclusive():
        began = time.monotonic()
        with pytest.raises(StateMoved):
            b.put("x", 1)
        assert 1 < time.monotonic() - began < 5
    b.put("x", 1)


def test_without_the_lock_no_write_is_lost_either(two, monkeypatch):
    """As under a pool that gives each statement another session: the head says who was first."""
    import kmsd.store.postgres as module

    a, b = two
    monkeypatch.setattr(module, "_LOCK", "1")
    plain = b.store._link.run
    monkeypatch.setattr(b.store._link, "run", lambda text, parameters=(): plain(text.replace("pg_advisory_lock(1)", "1"), parameters))
    with pytest.raises(StateMoved), a.store.exclusive(), a.store.transaction() as work:
        work.put(Table.ALIAS, "x", {"v": "a"})
        b.put("z", "b")
    a.store.catch_up()
    assert a.known == {(Table.ALIAS, "z"): {"v": "b"}} and a.store.get(Table.ALIAS, "x") is None
    a.put("x", "again")
    assert a.store.get(Table.ALIAS, "x") == {"v": "again"}


# --- somebody writes into the database -----------------------------------------------------------------------------


def rows(url):
    return execute(url, "SELECT tbl, id, parent, ver, blob FROM row").fetchall()


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("UPDATE row SET ver = %(ver)s, blob = %(blob)s", "not the one that was last written"),
        ("DELETE FROM row", "not the one that was last written"),
        ("DELETE FROM change WHERE seq = 2", "longer than changes are kept"),
        ("DELETE FROM change", "not what its changes lead to"),
        ("UPDATE change SET blob = (SELECT blob FROM change WHERE seq = 1)", "damaged or was changed"),
        ("UPDATE change SET blob = set_byte(blob, 40, (get_byte(blob, 40) + 1) % 256)", "damaged or was changed"),
        ("UPDATE head SET blob = set_byte(blob, 40, (get_byte(blob, 40) + 1) % 256)", "damaged or was changed"),
        ("UPDATE head SET blob = %(head)s", "older"),
        ("DELETE FROM head", "no head record"),
    ],
)
def test_what_was_put_back_or_changed_is_noticed(two, url, attack, said):
    a, b = two
    a.put("x", 1)
    b.store.catch_up()
    (old,) = rows(url)
    head = execute(url, "SELECT blob FROM head").fetchone()[0]
    a.put("x", 2)
    if "head)s" in attack:
        b.store.catch_up()
    a.put("x", 3)
    known = dict(b.known)
    execute(url, attack, {"ver": old[3], "blob": old[4], "head": head} if "%(" in attack else None)
    with pytest.raises((CorruptStore, StorageError), match=said):
        b.store.catch_up()
    assert b.known == known


def test_another_history_is_noticed(two, url, server):
    """A copy of the database in which others went on."""
    a, b = two
    a.put("x", 1)
    b.store.catch_up()
    execute(url, "CREATE TABLE kept AS SELECT * FROM change")
    execute(url, "CREATE TABLE kept_row AS SELECT * FROM row")
    execute(url, "CREATE TABLE kept_head AS SELECT * FROM head")
    a.put("x", 2)
    b.store.catch_up()
    execute(url, "TRUNCATE change, row, head")
    for name, kept in (("change", "kept"), ("row", "kept_row"), ("head", "kept_head")):
        execute(url, f"INSERT INTO {name} SELECT * FROM {kept}")
    other = Daemon(url, "c")
    for value in ("other", "history"):
        other.put("x", value)
    with pytest.raises(CorruptStore, match="another history"):
        b.store.catch_up()
    other.store.close()


def test_at_the_start_everything_is_verified(two, url):
    a, _ = two
    a.put("x", 1)
    (old,) = rows(url)
    a.put("x", 2)
    execute(url, "UPDATE row SET ver = %s, blob = %s", (old[3], old[4]))
    with pytest.raises(CorruptStore, match="removed, added or put back"):
        PostgresStore(url, sealer(), REALM, "c")


def test_other_databases_are_refused(url, server):
    with pytest.raises(UsageError, match="another realm"):
        PostgresStore(url, sealer(), b"o" * 16, "c")
    with pytest.raises(UsageError, match="no state"):
        PostgresStore(new_database(server.url), sealer(), REALM, "c")
    with pytest.raises(Conflict):
        create_shared(url, REALM, (), b"")
    execute(url, "UPDATE kmsfs_format SET version = 99")
    with pytest.raises(UnsupportedFormat, match="99"):
        PostgresStore(url, sealer(), REALM, "c")


# --- the connection is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrived", [True, False])
def test_a_commit_whose_answer_is_lost_is_found_out(two, monkeypatch, arrived):
    a, _ = two
    a.put("x", 1)
    plain = a.store._link.batch

    def lose(*statements):
        if statements[-1][0] == "COMMIT" and len(statements) > 2:
            plain(*(statements if arrived else statements[:-1]))
            a.store._link.drop()
            raise DatabaseUnreachable("lost")
        return plain(*statements)

    monkeypatch.setattr(a.store._link, "batch", lose)
    number = a.store.commit_number
    with pytest.raises(DatabaseUnreachable):
        a.put("x", 2)
    assert a.store.commit_number == number
    monkeypatch.setattr(a.store._link, "batch", plain)
    with pytest.raises(DatabaseUnreachable):
        a.put("x", 3)
    a.store.heard(number + arrived, time.monotonic())
    assert a.known == ({(Table.ALIAS, "x"): {"v": 2}} if arrived else {})
    a.put("x", 3)
    assert a.store.get(Table.ALIAS, "x") == {"v": 3}


def test_a_database_that_hangs_is_cut_off(two, server):
    a, b = two
    a.put("x", 1)
    backend = a.store._link.run("SELECT pg_backend_pid()").scalar()
    os.kill(backend, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable):
            a.put("x", 2)
        assert time.monotonic() - began < 5
        with pytest.raises(DatabaseUnreachable):
            a.put("x", 2)
        assert time.monotonic() - began < 6
    finally:
        os.kill(backend, signal.SIGCONT)
    a.store.heard(a.store.commit_number, time.monotonic())
    a.put("x", 2)
    b.store.catch_up()
    assert b.known[Table.ALIAS, "x"] == {"v": 2}


def test_a_daemon_that_stopped_while_it_wrote_does_not_stop_the_others(two, url, monkeypatch):
    monkeypatch.setattr("kmsd.store.link._IDLE_SECONDS", 4)
    sleeper = Daemon(url, "c")
    _, b = two
    with sleeper.store.exclusive():
        with pytest.raises(StateMoved):
            b.put("x", "too early")
        time.sleep(3)
        b.put("x", "of one who does not sleep")
        with pytest.raises(DatabaseUnreachable), sleeper.store.transaction() as work:
            work.put(Table.ALIAS, "x", {"v": "of one who slept"})
    assert b.store.get(Table.ALIAS, "x") == {"v": "of one who does not sleep"}
    sleeper.store.close()


def test_a_commit_is_durable_whatever_the_defaults_are(server):
    made = new_database(server.url)
    execute(made, f"ALTER DATABASE {made.rpartition('/')[2]} SET synchronous_commit = off")
    create_shared(made, REALM, (), seal_head(sealer(), 0, 0))
    daemon = Daemon(made, "a")
    assert daemon.store._link.run("SHOW synchronous_commit").scalar() == "on"
    daemon.store.close()


def test_old_change_records_go(two, monkeypatch):
    import kmsd.store.postgres as module

    a, b = two
    monkeypatch.setattr(module, "_CHANGES_KEPT", 3)
    for number in range(6):
        a.put("x", number)
    a.store.tidy()
    assert [seq for seq, in a.store._link.run("SELECT seq FROM change ORDER BY seq")] == [4, 5, 6]
    with pytest.raises(StorageError, match="longer than changes are kept"):
        b.store.catch_up()
