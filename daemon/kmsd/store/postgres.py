"""The sealed store in PostgreSQL: shared by the daemons of several hosts.

Everything is in each daemon's memory, as it is with a database of its own. All transactions are in one order, the commit number's;
with each stands a change record that says which rows it wrote, chained by the accumulator before and after it. A daemon writes only
when it knows all that was written before (`exclusive`), and takes over what others wrote by their change records (`catch_up`).
"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import cache
from typing import Any

from kmsd.store.database import ZERO, Changes, SealedStore, Statements, Transaction, statements
from kmsd.store.link import Link, database_errors, engine_of
from kmsd.store.schema import METADATA, SCHEMA_VERSION, SHARED, Table
from kmsd.store.sealing import RowSealer
from kmsfs.clock import passed
from kmsfs.errors import (
    Conflict,
    CorruptStore,
    DatabaseUnreachable,
    StateMoved,
    StorageError,
    UnsupportedFormat,
    UsageError,
)
from kmsfs.quantity import DATABASE_FRESH_SECONDS, DATABASE_LEASE_SECONDS

CHANNEL = "kmsd_state"
_LOCK = 0x6B6D7364
_LOAD = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_HEAD = 'SELECT blob FROM head WHERE "only" = 1'
_MISSED = "SELECT seq, blob FROM change WHERE seq > %s ORDER BY seq"
_FINISH = (
    'WITH moved AS (UPDATE head SET blob = %s WHERE "only" = 1 AND blob = %s RETURNING 1), '
    "noted AS (INSERT INTO change (seq, blob) SELECT %s, %s FROM moved RETURNING 1) "
    "SELECT 1 / (SELECT count(*) FROM noted), pg_notify(%s, '')"
)
"""One row if the head was the one that is known; an error otherwise, so that what comes behind it is not run."""
_CHANGES_KEPT = 100_000
_ROWS_AT_ONCE = 500
Statement = tuple[str, tuple[Any, ...]]


@cache
def _texts() -> Statements:
    # A daemon whose state is a file of its own need not know PostgreSQL.
    from sqlalchemy.dialects import postgresql

    return statements(postgresql.dialect(paramstyle="format"), postgresql.insert)  # type: ignore[no-untyped-call]


class _PostgresTransaction(Transaction):
    """Collects what it is told: a statement costs a round trip."""

    def __init__(self, sealer: RowSealer, accumulator: int, quarantined: AbstractSet[tuple[int, bytes]]) -> None:
        super().__init__(sealer, accumulator, quarantined)
        self._wanted: dict[tuple[Table, str], tuple[bytes, dict[str, Any]] | None] = {}
        """By table and natural key: a row's parent id and value, or None where it goes."""
        self.written: list[list[Any]] = []
        """[table, natural key, version, tag] of what each row is from now on; 0 and nothing of one that is gone."""

    def put(self, table: Table, natural_key: str, value: dict[str, Any], *, parent: str = "") -> None:
        """Insert or replace a row.

        Raises:
            CorruptStore: if it would be written over a damaged one.
        """
        self._place(table, natural_key)
        self._wanted[table, natural_key] = self._sealer.parent_id(table, parent), value

    def delete(self, table: Table, natural_key: str) -> None:
        """Remove a row; nothing happens if it is not there."""
        self._wanted[table, natural_key] = None

    def finds(self) -> list[Statement]:
        """Return what finds the rows that there are."""
        return [(_texts().find, (int(table), self._sealer.row_id(table, key))) for table, key in self._wanted]

    def writes(self, found: list[list[Any]]) -> list[Statement]:
        """Return what writes, given the rows that `finds` found."""
        statements: list[Statement] = []
        for ((table, natural_key), wanted), rows in zip(self._wanted.items(), found, strict=True):
            row_id = self._sealer.row_id(table, natural_key)
            before = self._drop_mark(table, row_id, rows[0] if rows else None)
            if wanted is not None:
                parent_id, value = wanted
                blob = self._sealed(table, row_id, parent_id, before + 1, value)
                statements.append((_texts().put, (int(table), row_id, parent_id, before + 1, blob)))
                self.written.append([int(table), natural_key, before + 1, blob[-16:]])
            elif before:
                statements.append((_texts().delete, (int(table), row_id)))
                self.written.append([int(table), natural_key, 0, b""])
        return statements


class PostgresStore(SealedStore):
    """A state database that several daemons write; this one's host is called `host` there."""

    def __init__(self, url: str, sealer: RowSealer, realm_id: bytes, host: str) -> None:
        """Open the state of a realm, and keep its view of this moment until `loaded`.

        Raises:
            DatabaseUnreachable: if there is no connection.
            UsageError: if it holds no state, or another realm's.
            UnsupportedFormat, CorruptStore: if the state is not what it should be.
        """
        super().__init__(sealer, _texts())
        self.url = url
        """Where the database is."""
        self._host = host
        self._depth = 0
        self._confirmed = passed()
        self._head = b""
        self._link = Link(url)
        self._link.open()
        try:
            self._link.run(_LOAD)
            # Whoever reads everything may think about it.
            self._link.run("SET LOCAL idle_in_transaction_session_timeout = 0")
            self._check_format(realm_id)
            self._verify(self._link.connection)
            self._head = bytes(self._link.run(_HEAD).scalar())
        except BaseException:
            self._link.close()
            raise

    @property
    def host(self) -> str:
        """What this daemon's host is called."""
        return self._host

    def own_process(self) -> int:
        """Return the server's process of this store's connection; 0 if there is none. For any thread."""
        return self._link.process

    def loaded(self) -> None:
        """End the view of one moment, and take over what was written since."""
        self._link.run("COMMIT")
        self.catch_up()

    def close(self) -> None:
        """Close the connection; later calls fail."""
        self._link.close()

    def sync(self) -> None:
        """Do nothing: each transaction is durable when it returns."""

    def probe(self) -> None:
        """Read the head record and open it."""
        self._open_head(self._link.run(_HEAD).first())

    # --- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Know everything that was written, and let nobody else write, until the end of the block."""
        if self._depth:
            yield
            return
        asked = passed()
        # Two round trips: what ends a pipeline keeps the server from noticing that a daemon which holds the lock does nothing any more.
        self._link.run(f"SELECT pg_advisory_lock({_LOCK})")
        head = list(self._link.run(_HEAD))
        number = self._link.number
        self._depth = 1
        try:
            self._take_head(head, asked)
            yield
        finally:
            self._depth = 0
            if self._link.up and self._link.number == number:
                try:
                    self._link.run(f"SELECT pg_advisory_unlock({_LOCK})")
                except DatabaseUnreachable:
                    # With its connection the lock is gone too.
                    self._link.drop()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run puts and deletes as one step, or none of them; durable when this returns.

        Raises:
            DatabaseUnreachable: if the database cannot be written. If the connection was lost just then, `catch_up` finds out later
                whether it was.
            StateMoved: if others have written since this daemon last looked.
        """
        known = self.commit_number
        with self.exclusive():
            if self.commit_number != known:
                raise StateMoved("another daemon has just written")
            used = self._sealer.usage.used
            number = known + 1
            work = _PostgresTransaction(self._sealer, self._accumulator, self.quarantined)
            yield work
            try:
                # Two round trips for all of it.
                _, *found = self._link.batch(("BEGIN", ()), *work.finds())
                writes = work.writes(found)
                change = self._seal_change(number, work)
                head = self._seal_head(number, work.accumulator)
                self._link.batch(*writes, (_FINISH, (head, self._head, number, change, CHANNEL)), ("COMMIT", ()))
            except BaseException:
                self._sealer.usage.used = used
                self._link.undo()
                raise
        self.commit_number, self._accumulator, self._head = number, work.accumulator, head

    def tidy(self) -> None:
        """Remove the oldest change records."""
        if self.commit_number > _CHANGES_KEPT:
            self._link.run("DELETE FROM change WHERE seq <= %s", (self.commit_number - _CHANGES_KEPT,))

    # --- what others wrote --------------------------------------------------------------------------------------

    def heard(self, number: int, asked: float) -> None:
        """Take notice of what another connection of ours saw: the newest commit number, at a time of `passed`.

        Raises:
            DatabaseUnreachable, CorruptStore, StorageError: as `catch_up`.
        """
        self._link.open()
        if number != self.commit_number:
            self.catch_up()
        else:
            self._confirmed = max(self._confirmed, asked)

    def catch_up(self) -> bool:
        """Take over what was written since the last look; return whether anything was.

        Raises:
            DatabaseUnreachable: if the database cannot be read.
            CorruptStore: if it is not the database that it was: older, or of another history.
            StorageError: if so much was written that not all of it is known any more: the daemon is to start anew.
        """
        asked = passed()
        return self._take_head(list(self._link.run(_HEAD)), asked)

    def _take_head(self, found: list[Any], asked: float) -> bool:
        if not found or bytes(found[0].blob) != self._head:
            self._take_changes()
            self._confirmed = max(self._confirmed, asked)
            return True
        self._confirmed = max(self._confirmed, asked)
        return False

    def _take_changes(self) -> None:
        try:
            _, heads, missed = self._link.batch((_LOAD, ()), (_HEAD, ()), (_MISSED, (self.commit_number,)))
            head = self._open_head(heads[0] if heads else None)
            changes = self._values_of(self._follow(head, missed))
        finally:
            # Whatever happened: who stayed in this view of one moment would take it for the present for ever.
            self._link.undo()
        self.on_changes(changes)
        self.commit_number, self._accumulator = head["commit"], int.from_bytes(head["acc"], "big")
        self._head = bytes(heads[0].blob)
        self._sealer.take_count(self._head, head["seals"])

    def _follow(self, head: dict[str, Any], missed: list[Any]) -> dict[tuple[Table, str], tuple[int, bytes]]:
        """Walk along the change records up to a head; return the last word on each row."""
        number, accumulator = self.commit_number, self._accumulator
        if head["commit"] < number:
            raise CorruptStore(
                f"the shared database is older (commit {head['commit']}) than what this daemon has seen (commit {number})",
                hint="if a standby without the last commits was promoted, find out what is lost, and start with --accept-rollback",
            )
        written: dict[tuple[Table, str], tuple[int, bytes]] = {}
        for seq, blob in missed:
            if seq != number + 1:
                raise StorageError("this daemon was away for longer than changes are kept", hint="it starts anew")
            change = self._sealer.open(Table.CHANGE, _id_of(seq), ZERO, 0, bytes(blob))
            if int.from_bytes(change["before"], "big") != accumulator:
                raise CorruptStore("the shared database has another history than the one that this daemon has seen")
            number, accumulator = seq, int.from_bytes(change["after"], "big")
            for table, natural_key, version, tag in change["rows"]:
                written[Table(table), natural_key] = version, tag
        if number != head["commit"] or accumulator != int.from_bytes(head["acc"], "big"):
            raise CorruptStore("the shared database's head is not what its changes lead to")
        return written

    def _values_of(self, written: dict[tuple[Table, str], tuple[int, bytes]]) -> Changes:
        """Read the rows that were written, each as its last record says that it is."""
        changes: dict[Table, dict[str, dict[str, Any] | None]] = {}
        # What is gone first: its name may be another row's by now.
        everything = sorted(written.items(), key=lambda item: item[1][0] > 0)
        for begin in range(0, len(everything), _ROWS_AT_ONCE):
            some = everything[begin : begin + _ROWS_AT_ONCE]
            ids = [self._sealer.row_id(table, natural_key) for (table, natural_key), _ in some]
            finds = [(_texts().find, (int(place[0]), row_id)) for (place, _), row_id in zip(some, ids, strict=True)]
            for ((table, natural_key), said), row_id, rows in zip(some, ids, self._link.batch(*finds), strict=True):
                row = rows[0] if rows else None
                if said != ((row.ver, bytes(row.blob[-16:])) if row is not None else (0, b"")):
                    raise CorruptStore("a row of the shared database is not the one that was last written")
                value = self._sealer.open(table, row_id, row.parent, row.ver, row.blob) if row is not None else None
                changes.setdefault(table, {})[natural_key] = value
        return changes

    def require_current(self, *, for_a_lease: bool = False) -> None:
        """Refuse to answer from memory once that is too old."""
        if passed() - self._confirmed > (DATABASE_FRESH_SECONDS if for_a_lease else DATABASE_LEASE_SECONDS):
            raise DatabaseUnreachable(
                "the database that this daemon shares has not answered for too long: what others revoked would not be known",
                hint="the daemon goes on by itself once its database answers",
            )

    def lately_current(self) -> bool:
        """Whether what is in memory was all that there is a moment ago."""
        return passed() - self._confirmed < DATABASE_FRESH_SECONDS

    def seconds_since(self, host: str) -> float | None:
        """Return for how long another host's daemon has not been heard of, by the database's clock; None if never."""
        found = self._link.run("SELECT extract(epoch FROM now() - seen)::float8 FROM host WHERE id = %s", (host,)).scalar()
        return float(found) if found is not None else None

    def get(self, table: Table, natural_key: str) -> dict[str, Any] | None:
        """Return a row's value, or None.

        Raises:
            CorruptStore: if the row does not open.
            StateMoved: if it is gone because of what others wrote.
        """
        value = super().get(table, natural_key)
        if value is None and self.catch_up():
            raise StateMoved("another daemon has just written")
        return value

    # --- inside ---------------------------------------------------------------------------------------------------

    def _rows(self, text: str, parameters: tuple[Any, ...]) -> list[Any]:
        return list(self._link.run(text, parameters))

    def _seal_change(self, number: int, work: "_PostgresTransaction") -> bytes:
        value = {
            "before": self._accumulator.to_bytes(32, "big"), "after": work.accumulator.to_bytes(32, "big"), "rows": work.written,
        }  # fmt: skip
        return self._sealer.seal(Table.CHANGE, _id_of(number), ZERO, 0, value)

    def _check_format(self, realm_id: bytes) -> None:
        if self._link.run("SELECT to_regclass('kmsfs_format')").scalar() is None:
            raise UsageError("the database holds no state of a key daemon", hint="kmsd init --database URL, or kmsd share-state URL")
        version, realm = self._link.run("SELECT version, realm FROM kmsfs_format").one()
        if version != SCHEMA_VERSION:
            raise UnsupportedFormat(f"the shared database has schema {version}, this kmsd knows {SCHEMA_VERSION}")
        if bytes(realm) != realm_id:
            raise UsageError("the database holds another realm's state", hint="each realm has a database of its own")


def create_shared(url: str, realm_id: bytes, rows: Iterable[Sequence[Any]], head: bytes) -> None:
    """Make the tables in an empty database, and put a state's rows and head into them, in one step.

    Raises:
        Conflict: if it holds a state.
        DatabaseUnreachable: if it cannot be written.
    """
    link = Link(url)
    try:
        link.open()
        if link.run("SELECT to_regclass('kmsfs_format')").scalar() is not None:
            raise Conflict("the database holds a state of a key daemon", hint="name an empty database, or join this one: kmsd join")
    finally:
        link.close()
    engine = engine_of(url).execution_options(isolation_level="READ COMMITTED")
    with database_errors(), engine.begin() as connection:
        METADATA.create_all(connection)
        SHARED.create_all(connection)
        for row in rows:
            connection.exec_driver_sql(_texts().put, tuple(row))
        connection.exec_driver_sql(_texts().put_head, (1, head))
        connection.exec_driver_sql('INSERT INTO kmsfs_format ("only", version, realm) VALUES (1, %s, %s)', (SCHEMA_VERSION, realm_id))


def _id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")
