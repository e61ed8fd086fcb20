"""The sealed store in SQLite (WAL, secure_delete): one daemon's own.

SQLite syncs its log at checkpoints only (synchronous=NORMAL); that a commit is durable is done here, as one sync of the log
serves all commits before it (sqlite.org/wal.html, "Performance Considerations").
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, select
from sqlalchemy.dialects.sqlite import dialect, insert

from kmsd.store.database import SealedStore, Transaction, statements, storage_errors
from kmsd.store.schema import HEAD, METADATA, SCHEMA_VERSION, Table
from kmsd.store.sealing import RowSealer
from kmsfs.errors import CorruptStore, StorageError, UnsupportedFormat

_TEXTS = statements(dialect(), insert, following_tail=(0,))


class _SqliteTransaction(Transaction):
    """Writes as it is told to: a statement costs some microseconds."""

    def __init__(self, connection: Connection, *rest: Any) -> None:
        super().__init__(*rest)
        self._connection = connection

    def put(self, table: Table, natural_key: str, value: dict[str, Any], *, parent: str = "") -> None:
        """Insert or replace a row.

        Raises:
            CorruptStore: if it would be written over a damaged one.
        """
        row_id, parent_id = self._place(table, natural_key), self._sealer.parent_id(table, parent)
        version = self._drop_mark(table, row_id, self._find(table, row_id)) + 1
        blob = self._sealed(table, row_id, parent_id, version, value)
        self._connection.exec_driver_sql(_TEXTS.put, (int(table), row_id, parent_id, version, blob))

    def delete(self, table: Table, natural_key: str) -> None:
        """Remove a row; nothing happens if it is not there."""
        row_id = self._sealer.row_id(table, natural_key)
        if self._drop_mark(table, row_id, self._find(table, row_id)):
            self._connection.exec_driver_sql(_TEXTS.delete, (int(table), row_id))

    def _find(self, table: Table, row_id: bytes) -> Any:
        return self._connection.exec_driver_sql(_TEXTS.find, (int(table), row_id)).first()


class SqliteStore(SealedStore):
    """A state database in a file."""

    def __init__(self, path: Path, sealer: RowSealer, *, create: bool = False) -> None:
        super().__init__(sealer, _TEXTS)
        self._broken = False
        self._path = path
        self._log: int | None = None
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _configure)
        with storage_errors():
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
                self._verify(self._connection)
                self._connection.rollback()
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
            StorageError: if that fails, of which the kernel says so only once (fsync(2), NOTES).
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
        with storage_errors():
            row = self._connection.execute(select(HEAD.c.blob)).first()
            self._connection.rollback()
        if self._open_head(row)["commit"] != self.commit_number:
            raise CorruptStore("the state database was changed by another process")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run puts and deletes as one step, or none of them.

        Raises:
            StorageError: if the database cannot be written; nothing has changed then, unless it is `sync` that failed.
        """
        if self._broken:
            self.sync()
        used = self._sealer.usage.used
        with storage_errors():
            try:
                work = _SqliteTransaction(self._connection, self._sealer, self._accumulator, self.quarantined)
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

    def _rows(self, text: str, parameters: tuple[Any, ...]) -> list[Any]:
        with storage_errors():
            return list(self._connection.exec_driver_sql(text, parameters))

    def _write_head(self, connection: Connection, commit: int, accumulator: int) -> None:
        connection.exec_driver_sql(self._texts.put_head, (1, self._seal_head(commit, accumulator)))

    def _check_schema(self) -> None:
        version = self._connection.exec_driver_sql("PRAGMA user_version").scalar()
        if version != SCHEMA_VERSION:
            raise UnsupportedFormat(f"state database has schema {version}, this kmsd knows {SCHEMA_VERSION}")


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
