"""Remembered listings on disk: what the files of a directory said last, so that a listing need not open each of them.

A cache outside of the cipher directory, sealed under a key of the volume (docs/formats/listing-v1.md). Whatever is wrong
with it, it is as if it were not there; it may be removed at any time.
"""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from kmsfs.aead.siv import SivKey
from kmsfs.errors import AuthenticationFailed, UnsupportedFormat
from kmsfs.formats.listing import LISTING_AAD, PLACE_AAD, ListedFile, pack_listing, parse_listing

_LOG = logging.getLogger("kmsfs.mount")
_SCHEMA = "CREATE TABLE IF NOT EXISTS listings (place BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"
_BUSY_SECONDS = 1.0


class ListingStore:
    """The remembered listings of one volume."""

    def __init__(self, key: SivKey, path: Path) -> None:
        """Open them; where that cannot be done, nothing is remembered and the log says so."""
        self._key = key
        self._path = path
        self._database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._database = _connect(path)
            except sqlite3.DatabaseError:
                # Damaged, by a power cut for one: it is only a cache.
                path.unlink(missing_ok=True)
                self._database = _connect(path)
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("listings cannot be remembered in %s: %s", path, error)

    def load(self, dir_id: bytes) -> dict[str, ListedFile]:
        """Return what is remembered of a directory's files, by their names on disk."""
        if self._database is None:
            return {}
        try:
            row = self._database.execute("SELECT sealed FROM listings WHERE place = ?", (self._place(dir_id),)).fetchone()
            if row is None:
                return {}
            return {file.disk_name: file for file in parse_listing(self._key.open(row[0], (LISTING_AAD, dir_id)))}
        except (sqlite3.Error, AuthenticationFailed, UnsupportedFormat):
            return {}

    def store(self, dir_id: bytes, files: list[ListedFile]) -> None:
        """Remember the files of a directory."""
        sealed = self._key.seal(pack_listing(files), (LISTING_AAD, dir_id))
        self._change("INSERT OR REPLACE INTO listings VALUES (?, ?)", [(self._place(dir_id), sealed)])

    def forget(self, dir_ids: set[bytes]) -> None:
        """Forget directories."""
        self._change("DELETE FROM listings WHERE place = ?", [(self._place(dir_id),) for dir_id in dir_ids])

    def _change(self, statement: str, rows: list[tuple[bytes, ...]]) -> None:
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            _LOG.warning("listings cannot be remembered in %s: %s", self._path, error)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _place(self, dir_id: bytes) -> bytes:
        return self._key.seal(dir_id, (PLACE_AAD,))


def _connect(path: Path) -> sqlite3.Connection:
    made = sqlite3.connect(path, check_same_thread=False, timeout=_BUSY_SECONDS)
    try:
        os.chmod(path, 0o600)
        # Nothing here has to outlive a power cut.
        made.execute("PRAGMA synchronous = OFF")
        made.execute(_SCHEMA)
    except BaseException:
        made.close()
        raise
    return made
