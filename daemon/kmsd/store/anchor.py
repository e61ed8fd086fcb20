"""The anti-rollback anchor: commit number and accumulator digest, MACed, outside the state directory."""

import os
import struct
from pathlib import Path

from kmsd.store.database import SealedStore
from kmsd.store.files import write_atomically
from kmsfs.aead.kdf import equal, hmac_sha256
from kmsfs.errors import CorruptStore

MAGIC = b"KMSANCH1"
_BODY = struct.Struct("<8sQ32s")
ANCHOR_BYTES = _BODY.size + 32


class Anchor:
    """Remembers the newest state seen, so that an older copy of the database is refused at start."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._written = -1

    def check(self, store: SealedStore, *, accept_rollback: bool = False) -> None:
        """Compare the database with the anchor.

        Raises:
            CorruptStore: if the anchor is missing or damaged, or the database is older or another one than the
                anchor remembers, unless `accept_rollback`.
        """
        problem = self._problem(store)
        if problem and not accept_rollback:
            raise CorruptStore(
                problem, hint="if you restored a backup on purpose, start kmsd with --accept-rollback"
            )

    def write(self, store: SealedStore) -> None:
        """Remember the database's present state, durably and not before that state is; does nothing if nothing changed.

        Raises:
            StorageError: if either cannot be stored.
        """
        if store.commit_number == self._written:
            return
        store.sync()
        body = _BODY.pack(MAGIC, store.commit_number, store.digest)
        write_atomically(self._path, body + hmac_sha256(self._key, body), mode=0o600)
        self._written = store.commit_number

    def write_next(self, key: bytes) -> None:
        """Leave what is remembered under another key too: the next anchor takes it if the realm's root key is that one.

        Raises:
            CorruptStore: if there is nothing whole to leave.
        """
        body = self._body()
        if body is None:
            raise CorruptStore(f"the anti-rollback anchor {os.fspath(self._path)} is missing or damaged")
        write_atomically(_next(self._path), body + hmac_sha256(key, body), mode=0o600)

    def _body(self) -> bytes | None:
        """Return what the anchor remembers, MACed under our key: its own file, or the one that a change of the root key left."""
        for path in (self._path, _next(self._path)):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            body, mac = data[: _BODY.size], data[_BODY.size :]
            if len(data) == ANCHOR_BYTES and equal(hmac_sha256(self._key, body), mac) and body[:8] == MAGIC:
                if path != self._path:
                    path.replace(self._path)
                else:
                    _next(self._path).unlink(missing_ok=True)
                return body
        return None

    def _problem(self, store: SealedStore) -> str:
        try:
            body = self._body()
        except OSError as error:
            return f"the anti-rollback anchor {os.fspath(self._path)} cannot be read: {error.strerror}"
        if body is None:
            state = "damaged" if self._path.exists() else "missing"
            return f"the anti-rollback anchor {os.fspath(self._path)} is {state}"
        _, commit, digest = _BODY.unpack(body)
        if store.commit_number < commit:
            return f"the state database is older (commit {store.commit_number}) than its anchor (commit {commit})"
        if store.commit_number == commit and not equal(store.digest, digest):
            return "the state database is not the one its anchor remembers"
        return ""


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")
