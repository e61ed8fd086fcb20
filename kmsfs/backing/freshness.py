"""Freshness records on disk: a SQLite file of sealed rows, one for each file of a volume, outside its cipher directory.

Each row is sealed under a key of the volume and bound to its file id, so it cannot be made or edited by others. That
nobody puts back an older copy of the whole file is watched by kmsd: it keeps the head, a digest of the file as it was
when the last session ended cleanly (docs/formats/freshness-v1.md).
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from kmsfs.aead.kdf import sha256
from kmsfs.aead.siv import SivKey
from kmsfs.envelope.freshness import Commit
from kmsfs.errors import AuthenticationFailed, CorruptVolume, StorageError
from kmsfs.formats.freshness import (
    DOUBT,
    DOUBT_AAD,
    FACTS_AAD,
    ROW_AAD,
    Facts,
    pack_row,
    parse_facts,
    parse_row,
)

_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE files (file_id BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID",
)
_PIECE_BYTES = 1 << 20
_BUSY_SECONDS = 10.0
_HELD_ROWS = 65_536
"""Rows of a volume with no more files than this are held in memory, sealed: some ten MiB at most."""


def head_of(path: Path) -> bytes:
    """Return the head of a closed records file: SHA-256 over the SHA-256 of each of its MiB.

    Raises:
        OSError: if it cannot be read.
    """
    digests = []
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digests.append(sha256(piece))
    return sha256(b"".join(digests))


class FreshnessStore:
    """The records of one volume, open. Changes wait in memory until `flush`, which any thread may call."""

    def __init__(self, key: SivKey, path: Path, *, read_only: bool) -> None:
        """Open an existing file.

        Raises:
            CorruptVolume: if it is damaged or of another volume.
            StorageError: if it cannot be opened.
        """
        self._key = key
        self._path = path
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._changed: dict[bytes, tuple[int, bytes] | None] = {}
        self._gone: list[bytes] = []
        self._read_only = read_only
        with self._guarded():
            self._reader = _connect(path, read_only=read_only)
            self._writer = self._reader if read_only else _connect(path, read_only=False)
            row = self._reader.execute("SELECT value FROM facts WHERE name = 'facts'").fetchone()
            doubt = self._reader.execute("SELECT value FROM facts WHERE name = 'doubt'").fetchone()
            rows = self._reader.execute("SELECT file_id, sealed FROM files LIMIT ?", (_HELD_ROWS + 1,)).fetchall()
        self._held: dict[bytes, bytes] | None = dict(rows) if len(rows) <= _HELD_ROWS else None
        if row is None:
            raise CorruptVolume("the freshness records have no beginning", hint=_HINT)
        self.facts = parse_facts(self._open(row[0], FACTS_AAD, b""))
        self._doubtful = self._doubt_stored = doubt is not None and self._open(doubt[0], DOUBT_AAD, b"") == DOUBT

    @classmethod
    def make(cls, key: SivKey, path: Path, session: int, base: bytes) -> "FreshnessStore":
        """Make an empty file, in the place of any that is there, and open it; commits are recorded from `session` on.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            drop_files(path)
            with contextlib.closing(_connect(path, read_only=False)) as made, made:
                for statement in _SCHEMA:
                    made.execute(statement)
                facts = key.seal(Facts(session, session, base).pack(), (FACTS_AAD, b""))
                made.execute("INSERT INTO facts VALUES ('facts', ?)", (facts,))
            # Its name too: kmsd will know of the file, and one that a power cut took would be missed.
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot make the freshness records {path}: {error}") from error
        return cls(key, path, read_only=False)

    def begin(self, session: int, base: bytes) -> None:
        """Note the session that changes the file from here on, and the head that it began from.

        Raises:
            StorageError: if it cannot be written.
        """
        self.facts = Facts(self.facts.since, session, base)
        facts = self._key.seal(self.facts.pack(), (FACTS_AAD, b""))
        with self._guarded(), self._writer:
            self._writer.execute("UPDATE facts SET value = ? WHERE name = 'facts'", (facts,))
        with self._guarded():
            # Beyond a power cut: after one, kmsd knows only of this session.
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- records (see FreshnessRecords) -------------------------------------------------------------------------

    @property
    def since(self) -> int:
        """See FreshnessRecords."""
        return self.facts.since

    @property
    def doubtful(self) -> bool:
        """See FreshnessRecords."""
        return self._doubtful

    def __len__(self) -> int:
        with self._lock, self._guarded():
            counted: int = self._reader.execute("SELECT count(*) FROM files").fetchone()[0]
        return counted

    def find(self, file_id: bytes) -> tuple[int, bytes] | None:
        """See FreshnessRecords.

        Raises:
            CorruptVolume: if the row was changed by somebody else.
            StorageError: if it cannot be read.
        """
        with self._lock:
            if file_id in self._changed:
                return self._changed[file_id]
            sealed = self._held.get(file_id) if self._held is not None else self._look_up(file_id)
        return parse_row(self._open(sealed, ROW_AAD, file_id)) if sealed is not None else None

    def _look_up(self, file_id: bytes) -> bytes | None:
        with self._guarded():
            row: tuple[bytes] | None = self._reader.execute(
                "SELECT sealed FROM files WHERE file_id = ?", (file_id,)
            ).fetchone()
        return row[0] if row is not None else None

    def durable(self, commit: Commit) -> None:
        """See FreshnessRecords."""
        if not self._read_only:
            with self._lock:
                self._changed[commit.file_id] = (commit.generation, commit.tag)

    def gone(self, file_id: bytes) -> None:
        """See FreshnessRecords."""
        if not self._read_only:
            with self._lock:
                self._gone.append(file_id)

    def take_gone(self) -> list[bytes]:
        """See FreshnessRecords."""
        with self._lock:
            taken, self._gone = self._gone, []
        return taken

    def removed(self, file_ids: list[bytes]) -> None:
        """See FreshnessRecords."""
        with self._lock:
            for file_id in file_ids:
                self._changed[file_id] = None

    def doubt(self) -> None:
        """See FreshnessRecords."""
        self._doubtful = True

    def file_ids(self) -> Iterator[bytes]:
        """See FreshnessRecords.

        Raises:
            StorageError: as there.
        """
        with self._guarded():
            for (file_id,) in self._reader.execute("SELECT file_id FROM files"):
                yield file_id

    def forget(self, file_ids: list[bytes]) -> None:
        """See FreshnessRecords.

        Raises:
            StorageError: as there.
        """
        self.removed(file_ids)
        self._doubtful = False
        self.flush()

    # --- storing ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """See FreshnessRecords: one transaction.

        Raises:
            StorageError: as there.
        """
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            batch = dict(self._changed)
            doubtful = self._doubtful
        if not batch and doubtful == self._doubt_stored:
            return
        rows = [
            (file_id, self._key.seal(pack_row(*known), (ROW_AAD, file_id)))
            for file_id, known in batch.items()
            if known is not None
        ]
        with self._guarded(), self._writer:
            self._writer.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", rows)
            dead = [(file_id,) for file_id, known in batch.items() if known is None]
            self._writer.executemany("DELETE FROM files WHERE file_id = ?", dead)
            if doubtful != self._doubt_stored:
                self._write_doubt(doubtful)
        self._doubt_stored = doubtful
        with self._lock:
            self._hold(rows, dead)
            for file_id, known in batch.items():
                if self._changed.get(file_id, b"") == known:
                    del self._changed[file_id]

    def _write_doubt(self, doubtful: bool) -> None:
        self._writer.execute("DELETE FROM facts WHERE name = 'doubt'")
        if doubtful:
            self._writer.execute("INSERT INTO facts VALUES ('doubt', ?)", (self._key.seal(DOUBT, (DOUBT_AAD, b"")),))

    def _hold(self, rows: list[tuple[bytes, bytes]], dead: list[tuple[bytes]]) -> None:
        if self._held is None:
            return
        self._held.update(rows)
        for (file_id,) in dead:
            self._held.pop(file_id, None)
        if len(self._held) > _HELD_ROWS:
            self._held = None

    def close(self) -> None:
        """Close the file; what was not flushed is lost, which only makes the records older."""
        with contextlib.suppress(sqlite3.Error):
            self._writer.close()
            self._reader.close()

    def finish(self) -> bytes:
        """Flush, close for good, and return the head.

        Raises:
            StorageError: if it cannot be written.
        """
        self.flush()
        with self._guarded():
            self._reader.close()
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()
            return head_of(self._path)

    def _open(self, sealed: bytes, purpose: bytes, file_id: bytes) -> bytes:
        try:
            return self._key.open(sealed, (purpose, file_id))
        except AuthenticationFailed as error:
            raise CorruptVolume("the freshness records were changed or are another volume's", hint=_HINT) from error

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"cannot use the freshness records {self._path}: {error}") from error
            raise CorruptVolume(f"the freshness records {self._path} are damaged: {error}", hint=_HINT) from error
        except OSError as error:
            raise StorageError(f"cannot use the freshness records {self._path}: {error.strerror}") from error


_HINT = "`kmsfs volume accept-restore CIPHERDIR` begins new ones from what is there now"


def drop_files(path: Path) -> None:
    """Remove a records file and what SQLite kept beside it.

    Raises:
        OSError: if one cannot be removed.
    """
    for name in (path, beside(path, "-wal"), beside(path, "-shm")):
        name.unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """Return the path of SQLite's own file beside a database."""
    return path.with_name(path.name + suffix)


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    # Read only, the file is taken as it lies: rows of a log that a crash left are missing, which only makes it older.
    options = "mode=ro&immutable=1" if read_only else "mode=rwc"
    made = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}", uri=True, check_same_thread=False, timeout=_BUSY_SECONDS
    )
    if not read_only:
        os.chmod(path, 0o600)
        # After a power cut the file is whole and may lack the last transactions: older records are safe ones.
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA synchronous = NORMAL")
    return made
