"""The append-only, hash-chained, forward-secure audit journal (docs/formats/audit-v1.md).

A record is in the file before its call is answered; if it cannot be written, nothing is answered.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmsd.audit.segments import (
    WRITING,
    begin_file,
    closed_segments,
    ended_before,
    first_line,
    last_line,
    remove_segments,
    segments_held,
    was_closed,
)
from kmsd.store.files import give_to_owner, write_atomically
from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import equal, hmac_sha256, sha256
from kmsfs.aead.nonces import Rng
from kmsfs.errors import AuditChainBroken, AuditUnavailable, AuthenticationFailed, BadFrame
from kmsfs.formats.audit import GENESIS, LOG_NAME, RETENTION, join, parse_line, split, time_of_line
from kmsfs.formats.packing import pack, unpack

SYNC_EVERY_RECORDS = 256
MAC_BYTES = 16
_STATE_AAD = b"kmsfs/audit-state/v1"
_PIECE_BYTES = 1 << 20


def evolve(key: bytes) -> bytes:
    """Return the next sealing key; the old one cannot be computed back."""
    return sha256(b"kmsfs/audit" + key)


_WAY_OUT = "restore the audit log from a backup, or begin a new one beside it: kmsd restart-audit --state FOLDER"


class Chain:
    """Where the chain stands: next sequence number, last hash, present sealing key."""

    __slots__ = ("key", "previous", "sequence")

    def __init__(self, sequence: int, previous: str, key: bytes) -> None:
        self.sequence = sequence
        self.previous = previous
        self.key = key

    def seal(self, record: dict[str, Any]) -> bytes:
        """Add chain fields to a record, advance, and return its line."""
        record["seq"] = self.sequence
        record["prev"] = self.previous
        before, after = split(record)
        digest = sha256(b"\0" + before + after)
        line = join(before, after, hmac_sha256(self.key, digest)[:MAC_BYTES])
        self._advance(digest)
        return line

    def check(self, line: bytes) -> dict[str, Any]:
        """Verify the next line and advance; return its record.

        Raises:
            AuditChainBroken: if the line is changed, missing, moved or not sealed by this chain.
        """
        record, unsealed, mac = parse_line(line)
        digest = sha256(b"\0" + unsealed)
        if record["seq"] != self.sequence or record["prev"] != self.previous:
            raise AuditChainBroken(f"audit record {self.sequence} is missing or was changed", hint=_WAY_OUT)
        if not equal(hmac_sha256(self.key, digest)[:MAC_BYTES], mac):
            raise AuditChainBroken(
                f"audit record {self.sequence} is not sealed by this log's key", hint=_WAY_OUT
            )
        self._advance(digest)
        return record

    def pass_over(self, sequence: int, previous: str) -> None:
        """Go on at a later record, whose line names `previous`, without those before it."""
        while self.sequence < sequence:
            self.key = evolve(self.key)
            self.sequence += 1
        self.previous = previous

    def _advance(self, digest: bytes) -> None:
        self.previous = digest.hex()
        self.sequence += 1
        self.key = evolve(self.key)


class Journal:
    """The open journal of one realm. Used from one thread."""

    def __init__(
        self, directory: Path, state_key: bytes, rng: Rng, *, first_key: bytes | None = None
    ) -> None:
        self._log_path = directory / LOG_NAME
        self._state_path = directory / "audit.state"
        self._state_cipher = GcmKey(state_key)
        self._rng = rng
        self._pending: list[bytes] = []
        self._unsynced = 0
        self._first = 0
        if first_key is not None:
            self._chain = Chain(0, GENESIS, first_key)
            self._save_state()
        else:
            self._chain = self._load_state()
        self._descriptor = os.open(self._log_path, WRITING, 0o600)
        give_to_owner(self._descriptor, directory)
        self.last_time = 0.0
        """When the last record was made that is in the log, in seconds since the epoch."""
        self._recover(self._chain.sequence)
        self._durable = os.fstat(self._descriptor).st_size
        """Bytes of the log that a sync has covered, or that were there before."""
        self._lost = False
        """Whether a sync failed since: the kernel takes what it could not store for clean (fsync(2), NOTES)."""

    @property
    def records(self) -> int:
        """How many records the log has, or had: those too whose segments were removed."""
        return self._chain.sequence

    @property
    def size(self) -> int:
        """Bytes of the file that is written to."""
        return os.fstat(self._descriptor).st_size

    @property
    def begun(self) -> float:
        """When the first record of the file that is written to was made, in seconds since the epoch; 0 if it has none."""
        return time_of_line(first_line(self._log_path))

    @property
    def origin(self) -> bytes:
        """The line of record 0; nothing if it was removed, or is not written yet."""
        oldest = [*closed_segments(self._log_path), (self._first, self._log_path)][0]
        return first_line(oldest[1]) if oldest[0] == 0 else b""

    @property
    def head(self) -> tuple[int, str]:
        """The number of the next record, and the hash that it will name as its previous one."""
        return self._chain.sequence, self._chain.previous

    @property
    def needs_sync(self) -> bool:
        """Whether records wait for fdatasync."""
        return self._unsynced > 0

    @property
    def overdue(self) -> bool:
        """Whether so many records wait that the next sync should not."""
        return self._unsynced >= SYNC_EVERY_RECORDS

    def append(self, record: dict[str, Any]) -> None:
        """Seal a record and queue it for `flush`."""
        self._pending.append(self._chain.seal(record))

    def flush(self) -> None:
        """Write queued records to the file; must return before their calls are answered.

        Raises:
            AuditUnavailable: if the file cannot take them; they stay queued and are tried again.
        """
        if not self._pending:
            return
        data = b"".join(self._pending)
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise AuditUnavailable(
                    "the audit log's disk is full", hint="free space; until then nothing is answered"
                )
        except OSError as error:
            raise AuditUnavailable(
                f"the audit log cannot be written: {error.strerror}",
                hint="free space; until then nothing is answered",
            ) from error
        self._unsynced += len(self._pending)
        self._pending.clear()

    def sync(self) -> None:
        """Make written records durable and remember how far the chain got.

        Raises:
            AuditUnavailable: if the disk refuses.
        """
        self.flush()
        waiting, self._unsynced = self._unsynced, 0
        try:
            if self._lost:
                self._write_again()
            end = os.fstat(self._descriptor).st_size
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._unsynced += waiting
            self._lost = True
            raise AuditUnavailable(f"the audit log cannot be synced: {error.strerror}") from error
        self._durable, self._lost = end, False

    def _write_again(self) -> None:
        """Write once more what a sync that failed may have lost, so that the next one stores it."""
        # Not by the log's own descriptor: what is opened to append, Linux appends, wherever it is to go (pwrite(2), BUGS).
        descriptor = os.open(self._log_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            at = self._durable
            while piece := os.pread(descriptor, _PIECE_BYTES, at):
                at += os.pwrite(descriptor, piece, at)
        finally:
            os.close(descriptor)

    def checkpoint(self) -> None:
        """Sync, then replace the stored sealing key with the present one, so that past records cannot be resealed."""
        self.sync()
        self._save_state()

    def begin_segment(self) -> bool:
        """Close the file that is written to as a segment, and go on in a new one; the chain goes on too.

        Return whether it was done: not while a backup copies the log, nor without a record.

        Raises:
            AuditUnavailable, StorageError: if the disk refuses; the log goes on where it was then.
        """
        if self._chain.sequence == self._first:
            return False
        try:
            with segments_held(self._log_path.parent, alone=True) as free:
                if not free:
                    return False
                self.sync()
                # Said before it is done: which of the two a crash left is seen by the names.
                self._save_state(closing=True)
                begun = begin_file(self._log_path, self._first)
        except OSError as error:
            raise AuditUnavailable(f"a new segment of the audit log cannot be begun: {error.strerror}") from error
        os.close(self._descriptor)
        self._descriptor, self._durable, self._first = begun, 0, self._chain.sequence
        return True

    def removable(self, time: float) -> int:
        """Return the number before which all records were made before a time and lie in closed segments; 0 if there are none.

        Raises:
            AuditUnavailable: if a segment cannot be read.
        """
        return ended_before(self._log_path, self._first, time)

    def remove_before(self, number: int, say: Callable[[], None]) -> bool:
        """Remove the segments of records before a number, once `say` came back; return whether it was done: not while a backup copies the log.

        Raises:
            AuditUnavailable, StorageError: if the disk refuses.
        """
        try:
            with segments_held(self._log_path.parent, alone=True) as free:
                if free:
                    say()
                    self.checkpoint()
                    remove_segments(self._log_path, number)
        except OSError as error:
            raise AuditUnavailable(f"the audit log's folder cannot be opened: {error.strerror}") from error
        return free

    def close(self) -> None:
        """Checkpoint and close."""
        self.checkpoint()
        os.close(self._descriptor)

    def _save_state(self, *, closing: bool = False) -> None:
        state = {"seq": self._chain.sequence, "prev": self._chain.previous, "key": self._chain.key, "first": self._first}
        if closing:
            state |= {"closing": self._first, "first": self._chain.sequence}
        write_atomically(self._state_path, self._state_cipher.seal(self._rng, pack(state), _STATE_AAD), mode=0o600)

    def _load_state(self) -> Chain:
        try:
            state = unpack(self._state_cipher.open(self._state_path.read_bytes(), _STATE_AAD))
            chain = Chain(state["seq"], state["prev"], state["key"])
            # Logs from before there were segments say nothing of them.
            self._first, closing = state.get("first", 0), state.get("closing")
            if closing is not None and not was_closed(self._log_path, closing):
                self._first = closing
        except (OSError, AuthenticationFailed, BadFrame, KeyError) as error:
            raise AuditChainBroken(
                f"the audit state {self._state_path} is missing or damaged", hint=_WAY_OUT
            ) from error
        return chain

    def _recover(self, stored: int) -> None:
        """Follow the chain from the stored point to the end of the log; drop a torn last line."""
        number, offset = self._first, 0
        last = b""
        with open(self._descriptor, "rb", closefd=False) as stream:
            stream.seek(0)
            for line in stream:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._descriptor, offset)
                    break
                offset += len(line)
                last = line
                if number >= stored:
                    self._chain.check(line)
                number += 1
        if number < stored:
            raise AuditChainBroken(
                f"the audit log has {number} records, {stored} were written: its end was cut off",
                hint=_WAY_OUT,
            )
        closed = closed_segments(self._log_path)
        if not last and closed:
            last = last_line(closed[-1][1])
        self.last_time = time_of_line(last) if last else 0.0


def verify_log(log: Path, first_key: bytes) -> int:
    """Check a whole log, its closed segments first, from its first key; return how many records it has, or had.

    Records that were removed, as one that is left says, have their keys gone through: the first one left is sealed by its own, and seals
    what was before it.

    Raises:
        AuditChainBroken: naming the first record that is wrong.
        AuditUnavailable: if it cannot be read.
    """
    chain = Chain(0, GENESIS, first_key)
    paths = [*(path for _first, path in closed_segments(log)), log]
    line = first_line(paths[0])
    missing = 0
    if line:
        oldest, _, _ = parse_line(line)
        missing = oldest["seq"]
        if missing:
            chain.pass_over(missing, oldest["prev"])
    said = 0
    try:
        for path in paths:
            with path.open("rb") as stream:
                for line in stream:
                    record = chain.check(line)
                    if record.get("op") == RETENTION:
                        said = max(said, record["params"]["before"])
    except OSError as error:
        raise AuditUnavailable(f"{path} cannot be read: {error.strerror}") from error
    if missing > said:
        raise AuditChainBroken(f"records {said} to {missing - 1} are missing, and no record says that they were removed")
    return chain.sequence
