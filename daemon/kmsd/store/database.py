"""The sealed store: transactions over sealed rows in SQLite (WAL, secure_delete).

SQLite syncs its log at checkpoints only (synchronous=NORMAL); that a commit is durable is done here, as one sync of the log
serves all commits before it (sqlite.org/wal.html, "Performance Considerations").
"""

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, create_engine, delete, event, select
from sqlalchemy.dialects.sqlite import dialect, insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.expression import ClauseElement

from kmsd.store.schema import HEAD, METADATA, ROW, SCHEMA_VERSION, Table
from kmsd.store.sealing import RowSealer
from kmsfs.aead.kdf import sha256
from kmsfs.errors import CorruptStore, StorageError, UnsupportedFormat

_ZERO = bytes(16)


def _compiled(statement: ClauseElement) -> str:
    """Return a statement's text for the driver: what runs thousands of times a second is put together once."""
    return str(statement.compile(dialect=dialect(), compile_kwargs={"render_postcompile": True}))


_THIS_ROW = (ROW.c.tbl == bindparam("tbl"), ROW.c.id == bindparam("id"))
_FIND = _compiled(select(ROW.c.ver, ROW.c.blob, ROW.c.parent).where(*_THIS_ROW))
_DELETE = _compiled(delete(ROW).where(*_THIS_ROW))
_NEXT = _compiled(
    select(ROW.c.id, ROW.c.parent, ROW.c.ver, ROW.c.blob)
    .where(ROW.c.tbl == bindparam("tbl"), ROW.c.id > bindparam("last"))
    .order_by(ROW.c.id)
    .limit(bindparam("most"))
)
_NEW_ROW = insert(ROW)
_PUT = _compiled(
    _NEW_ROW.on_conflict_do_update(
        index_elements=["tbl", "id"],
        set_={"parent": _NEW_ROW.excluded.parent, "ver": _NEW_ROW.excluded.ver, "blob": _NEW_ROW.excluded.blob},
    )
)
_NEW_HEAD = insert(HEAD)
_PUT_HEAD = _compiled(_NEW_HEAD.on_conflict_do_update(index_elements=["only"], set_={"blob": _NEW_HEAD.excluded.blob}))
_READ_AT_ONCE = 1000
_NEVER_LACKING = frozenset({Table.ACCOUNT})
"""Tables of which a lost row would let somebody do more: without one of theirs nothing is served."""


class Transaction:
    """Puts and deletes that become durable together."""

    def __init__(
        self, connection: Connection, sealer: RowSealer, accumulator: int, quarantined: AbstractSet[tuple[int, bytes]] = frozenset()
    ) -> None:
        self._quarantined = quarantined
        self._connection = connection
        self._sealer = sealer
        self.accumulator = accumulator

    def put(self, table: Table, natural_key: str, value: dict[str, Any], *, parent: str = "") -> None:
        """Insert or replace a row.

        Raises:
            CorruptStore: if it would be written over a damaged one, of which something may still be saved.
        """
        row_id = self._sealer.row_id(table, natural_key)
        if (int(table), row_id) in self._quarantined:
            raise CorruptStore("a damaged record of the key daemon's state lies where this would be stored", hint="restore a backup of the state")
        parent_id = self._sealer.parent_id(table, parent)
        version = self._drop_mark(table, row_id) + 1
        blob = self._sealer.seal(table, row_id, parent_id, version, value)
        self.accumulator ^= self._sealer.mark(table, row_id, version, blob)
        self._connection.exec_driver_sql(_PUT, (int(table), row_id, parent_id, version, blob))

    def delete(self, table: Table, natural_key: str) -> None:
        """Remove a row; nothing happens if it is not there."""
        row_id = self._sealer.row_id(table, natural_key)
        if self._drop_mark(table, row_id):
            self._connection.exec_driver_sql(_DELETE, (int(table), row_id))

    def _drop_mark(self, table: Table, row_id: bytes) -> int:
        old = self._connection.exec_driver_sql(_FIND, (int(table), row_id)).first()
        if old is None:
            return 0
        self.accumulator ^= self._sealer.mark(table, row_id, old.ver, old.blob)
        return int(old.ver)


class SealedStore:
    """One state database. Used from one thread; a transaction is durable when it returns, or at `sync` while `deferring`."""

    def __init__(self, path: Path, sealer: RowSealer, *, create: bool = False) -> None:
        self.deferring = False
        """Whether transactions wait for a `sync`; nothing may be said of them before."""
        self.dirty = False
        """Whether there are transactions that wait for a `sync`."""
        self._broken = False
        self.quarantined: set[tuple[int, bytes]] = set()
        """Tables and ids of rows that were met and do not open. They stay as they are: nothing is written over them."""
        self._path = path
        self._log: int | None = None
        self._sealer = sealer
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _configure)
        self.commit_number = 0
        self._accumulator = 0
        with _storage_errors():
            self._connection = self._engine.connect()
            if create:
                METADATA.create_all(self._connection)
                self._connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
                self._write_head(self._connection, 0, 0)
                self._connection.commit()
                self.dirty = True
                self.sync()
            else:
                self._check_schema()
                self._verify()
        path.chmod(0o600)

    def close(self) -> None:
        """Close the database; later calls fail."""
        self._connection.close()
        self._engine.dispose()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def sync(self) -> None:
        """Make every transaction so far durable, by one fdatasync of the log.

        Raises:
            StorageError: if that fails. What is held in memory may then be ahead of the disk, of which the kernel says so only once
                (fsync(2), NOTES): from then on every sync and transaction fails, until the database is opened anew.
        """
        if not self.dirty:
            return
        try:
            if self._broken:
                raise OSError("an earlier one failed")
            if self._log is None:
                self._log = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
            os.fdatasync(self._log)
        except OSError as error:
            self._broken = True
            raise StorageError(
                f"changes of the key daemon's state could not be stored: {error}", hint="check the disk and start kmsd again"
            ) from error
        self.dirty = False

    def probe(self) -> None:
        """Read the head record and open it: the disk answers, the keys work, and nobody else has written.

        Raises:
            StorageError: if the database cannot be read.
            CorruptStore: if its head does not open, or is another one's.
        """
        with _storage_errors():
            row = self._connection.execute(select(HEAD.c.blob)).first()
            self._connection.rollback()
        if row is None:
            raise CorruptStore("the state database has no head record", hint="restore a backup of the state")
        if self._sealer.open(Table.HEAD, _ZERO, _ZERO, 0, row.blob)["commit"] != self.commit_number:
            raise CorruptStore("the state database was changed by another process")

    @property
    def digest(self) -> bytes:
        """SHA-256 over the accumulator: what the anchor remembers."""
        return sha256(self._accumulator.to_bytes(32, "big"))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run puts and deletes as one step, or none of them.

        Raises:
            StorageError: if the database cannot be written; nothing has changed then, unless it is `sync` that failed.
        """
        if self._broken:
            self.sync()
        used = self._sealer.usage.used
        with _storage_errors():
            try:
                work = Transaction(self._connection, self._sealer, self._accumulator, self.quarantined)
                yield work
                self._write_head(self._connection, self.commit_number + 1, work.accumulator)
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                self._sealer.usage.used = used
                raise
        self.commit_number += 1
        self._accumulator = work.accumulator
        self.dirty = True
        if not self.deferring:
            self.sync()

    def get(self, table: Table, natural_key: str) -> dict[str, Any] | None:
        """Return a row's value, or None.

        Raises:
            CorruptStore: if the row does not open.
        """
        row_id = self._sealer.row_id(table, natural_key)
        with _storage_errors():
            row = self._connection.exec_driver_sql(_FIND, (int(table), row_id)).first()
        return None if row is None else self._sealer.open(table, row_id, row.parent, row.ver, row.blob)

    def scan(self, table: Table, *, parent: str = "") -> Iterator[dict[str, Any]]:
        """Yield the values of a table, or of the rows below a parent, in no order.

        A row that does not open is left out, and from then on `quarantined`: the accumulator says that nothing else was done to it
        than damage, as its tag is the one that was written.

        Raises:
            CorruptStore: if a row does not open whose loss would let somebody do more.
        """
        if parent:
            query = select(ROW).where(ROW.c.tbl == int(table), ROW.c.parent == self._sealer.parent_id(table, parent))
            with _storage_errors():
                rows = self._connection.execute(query).all()
            for row in rows:
                opened = self._opened(table, row.id, row.parent, row.ver, row.blob)
                if opened is not None:
                    yield opened
            return
        # In portions, each begun behind the last row: a table may be larger than what memory has, and may change meanwhile.
        last = b""
        while True:
            with _storage_errors():
                portion = self._connection.exec_driver_sql(_NEXT, (int(table), last, _READ_AT_ONCE, 0)).all()
            for row_id, parent_id, version, blob in portion:
                opened = self._opened(table, row_id, parent_id, version, blob)
                if opened is not None:
                    yield opened
            if len(portion) < _READ_AT_ONCE:
                return
            last = portion[-1][0]

    def _opened(self, table: Table, row_id: bytes, parent_id: bytes, version: int, blob: bytes) -> dict[str, Any] | None:
        try:
            return self._sealer.open(table, row_id, parent_id, version, blob)
        except CorruptStore:
            if table in _NEVER_LACKING:
                raise
            self.quarantined.add((int(table), row_id))
            return None

    def is_quarantined(self, table: Table, natural_key: str) -> bool:
        """Tell whether a row is there and was found damaged."""
        return bool(self.quarantined) and (int(table), self._sealer.row_id(table, natural_key)) in self.quarantined

    def require_whole(self, table: Table, natural_key: str, what: str) -> None:
        """Refuse what would take a damaged row for one that is not there.

        Raises:
            CorruptStore: if it is one.
        """
        if self.is_quarantined(table, natural_key):
            raise CorruptStore(f"the key daemon's record of {what} is damaged", hint="restore a backup of the state; everything else is served")

    def _write_head(self, connection: Connection, commit: int, accumulator: int) -> None:
        value = {
            "commit": commit,
            "acc": accumulator.to_bytes(32, "big"),
            "seals": self._sealer.usage.used + 1,
        }
        blob = self._sealer.seal(Table.HEAD, _ZERO, _ZERO, 0, value)
        connection.exec_driver_sql(_PUT_HEAD, (1, blob))

    def _check_schema(self) -> None:
        version = self._connection.exec_driver_sql("PRAGMA user_version").scalar()
        if version != SCHEMA_VERSION:
            raise UnsupportedFormat(f"state database has schema {version}, this kmsd knows {SCHEMA_VERSION}")

    def _verify(self) -> None:
        head_row = self._connection.execute(select(HEAD.c.blob)).first()
        if head_row is None:
            raise CorruptStore("the state database has no head record", hint="restore a backup of the state")
        head = self._sealer.open(Table.HEAD, _ZERO, _ZERO, 0, head_row.blob)
        accumulator = 0
        for portion in self._connection.execute(select(ROW.c.tbl, ROW.c.id, ROW.c.ver, ROW.c.blob)).partitions(_READ_AT_ONCE):
            accumulator ^= self._sealer.marks(portion)
        if accumulator != int.from_bytes(head["acc"], "big"):
            raise CorruptStore(
                "rows of the key daemon's state were removed, added or put back to older versions",
                hint="restore a backup of the whole state",
            )
        self.commit_number, self._accumulator = head["commit"], accumulator
        self._sealer.usage.used = head["seals"]
        self._connection.rollback()


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig)
        if "malformed" in text or "not a database" in text:
            raise CorruptStore(
                "the state database is damaged", hint="restore a backup of the state"
            ) from error
        raise StorageError(
            f"the state database cannot be used: {text}", hint="check the disk's space and rights"
        ) from error
    except SQLAlchemyError as error:
        raise StorageError("the state database cannot be used", evidence=str(error)) from error
