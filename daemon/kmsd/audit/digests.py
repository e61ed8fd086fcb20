"""Signed digests of the audit log, once an hour, also when nothing happened: whoever keeps the public key can verify the log."""

import logging
import os
from pathlib import Path

from kmsd.audit.journal import Journal
from kmsfs.aead.kdf import sha256
from kmsfs.aead.signing import SigningKey
from kmsfs.errors import AuditChainBroken, AuditUnavailable
from kmsfs.formats.digest import DIGESTS_NAME, GENESIS, Digest, encode_digest, parse_digest, witness_line

_LOG = logging.getLogger("kmsd")


class AuditDigests:
    """The digests of one realm's audit log."""

    def __init__(self, directory: Path, seed: bytes, journal: Journal, every: float) -> None:
        """Go on after the last whole digest in `directory`.

        Raises:
            AuditChainBroken: if the last line is no digest.
            AuditUnavailable: if the file cannot be read or its torn end not be cut off.
        """
        self._path = directory / DIGESTS_NAME
        self._key = SigningKey(seed)
        self._journal = journal
        self._every = every
        self._last: Digest | None = None
        self._last_line = b""
        self._resume()

    @property
    def public_key(self) -> str:
        """The public key, hex."""
        return self._key.public.hex()

    def due(self, now: float) -> bool:
        """Whether the next digest should be made: an hour passed, or the clock went back."""
        return self._last is None or not 0 <= now - self._last.made < self._every

    def write(self, now: float) -> None:
        """Make one: sync the log, sign where it stands, and let the log say so.

        Raises:
            AuditUnavailable: if the log or the digests cannot be written.
        """
        self._journal.sync()
        end, chain = self._journal.head
        last, log = self._last, self._log_id()
        digest = Digest(
            number=last.number + 1 if last is not None else 0,
            previous=sha256(self._last_line).hex() if last is not None else GENESIS,
            log=log,
            first=last.end if last is not None and last.log == log else 0,
            end=end,
            chain=chain,
            made=round(now, 3),
            key=self.public_key,
        )
        line = encode_digest(digest, self._key.sign)
        self._append(line)
        self._last, self._last_line = digest, line
        params = {"number": digest.number, "sha256": sha256(line).hex()}
        self._journal.append(
            {"ts": digest.made, "req": "-", "uid": os.getuid(), "op": "AuditDigest", "res": "ok", "params": params}
        )
        self._journal.sync()
        # Under systemd this is in the journal: whoever has this realm's state in his hands does not have that, where it is sent elsewhere.
        _LOG.info("%s", witness_line(digest.number, sha256(line).hex(), end))

    def _log_id(self) -> str:
        origin = self._journal.origin
        if not origin and self._last is not None:
            # Where record 0 was removed, the digests before know which log this is: none is removed before it is signed.
            return self._last.log
        return sha256(origin).hex()

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if os.write(descriptor, line) != len(line):
                    os.ftruncate(descriptor, size)
                    raise AuditUnavailable("the disk of the audit log's digests is full", hint="free space")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AuditUnavailable(f"the audit log's digests cannot be written: {error.strerror}") from error

    def _resume(self) -> None:
        try:
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                # A crash cut the last one off; it was not said anywhere.
                os.truncate(self._path, len(whole))
        except FileNotFoundError:
            return
        except OSError as error:
            raise AuditUnavailable(f"the audit log's digests cannot be read: {error.strerror}") from error
        if whole:
            self._last_line = whole.splitlines(keepends=True)[-1]
            try:
                self._last, _, _ = parse_digest(self._last_line)
            except AuditChainBroken as error:
                raise AuditChainBroken(
                    f"the last line of {self._path} is no digest",
                    hint="put a whole copy back, or the file aside: digests then begin anew, and `kmsfs audit verify` says which are missing",
                ) from error
