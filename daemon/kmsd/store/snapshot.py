"""Consistent copies of a state: of a file that may be in use, and from and to a shared database. Rows stay sealed."""

import contextlib
import sqlite3
from pathlib import Path

from sqlalchemy import create_engine, insert, select

from kmsd.store.database import READ_AT_ONCE, storage_errors
from kmsd.store.link import database_errors, engine_of
from kmsd.store.postgres import create_shared
from kmsd.store.schema import HEAD, METADATA, ROW, SCHEMA_VERSION
from kmsfs.errors import StorageError

_PAGES_AT_ONCE = 4096


def snapshot(database: Path, copy: Path) -> None:
    """Copy a database as of one commit, also while a daemon writes to it; the copy has no write-ahead log.

    Raises:
        StorageError: if it cannot be read or written.
    """
    try:
        source = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target, pages=_PAGES_AT_ONCE)
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise StorageError(f"cannot copy {database}: {error}") from error


def snapshot_shared(url: str, copy: Path) -> None:
    """Copy a shared database as of one commit into a file as a daemon without one has it.

    Raises:
        DatabaseUnreachable: if it cannot be read.
        StorageError: if the copy cannot be written.
    """
    source = engine_of(url).execution_options(isolation_level="REPEATABLE READ")
    target = create_engine(f"sqlite:///{copy}")
    with database_errors(), source.connect() as shared, storage_errors(), target.begin() as local:
        METADATA.create_all(local)
        local.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        for portion in shared.execute(select(ROW)).mappings().partitions(READ_AT_ONCE):
            local.execute(insert(ROW), [dict(row) for row in portion])
        local.execute(insert(HEAD), [dict(row) for row in shared.execute(select(HEAD)).mappings()])
    target.dispose()


def share(database: Path, url: str, realm_id: bytes) -> None:
    """Copy a state from a file that is not in use into an empty database.

    Raises:
        Conflict: if there is a state in it.
        DatabaseUnreachable, StorageError: if one cannot be written, or the other not be read.
    """
    source = create_engine(f"sqlite:///{database}")
    with storage_errors(), source.connect() as local:
        rows = local.execute(select(ROW.c.tbl, ROW.c.id, ROW.c.parent, ROW.c.ver, ROW.c.blob))
        head = local.execute(select(HEAD.c.blob)).scalar_one()
        create_shared(url, realm_id, rows, head)
    source.dispose()
