"""A consistent copy of a state database that may be in use (SQLite's online backup)."""

import contextlib
import sqlite3
from pathlib import Path

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
