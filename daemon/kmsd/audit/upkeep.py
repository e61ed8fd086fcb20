"""What an audit log needs as time passes: digests, new segments, and the end of those that are old enough."""

import os
from dataclasses import dataclass

from kmsd.audit.digests import AuditDigests
from kmsd.audit.journal import Journal
from kmsfs.formats.audit import RETENTION

SEGMENT_BYTES = 64 << 20
_SEGMENT_SECONDS = 86_400.0
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """How a log is cut into segments, and how long they are kept."""

    segment_bytes: int = SEGMENT_BYTES
    """A file of this size is closed; one that is a day old is in any case."""
    keep_days: float | None = None
    """Segments whose records are all older go; none does without it."""


KEEP_ALL = AuditLimits()


class AuditUpkeep:
    """Acts on one realm's audit log, which says what was removed."""

    def __init__(self, journal: Journal, digests: AuditDigests, limits: AuditLimits) -> None:
        self._journal, self._digests, self._limits = journal, digests, limits

    def act(self, now: float) -> None:
        """Do what is due.

        Raises:
            AuditUnavailable, StorageError: if the log or its folder cannot be read or written; what is left is due again.
        """
        begun = self._journal.begun
        full = self._journal.size >= self._limits.segment_bytes or (begun > 0 and now - begun >= _SEGMENT_SECONDS)
        if full or self._digests.due(now):
            # Also before a segment is closed, so that each is signed before it can go.
            self._digests.write(now)
        if full:
            self._journal.begin_segment()
        if self._limits.keep_days is not None:
            before = self._journal.removable(now - self._limits.keep_days * _DAY_SECONDS)
            if before:
                self._journal.remove_before(before, lambda: self._say(before, now))

    def _say(self, before: int, now: float) -> None:
        """Let the log say that records are removed, and sign that: of what is missing otherwise, `kmsfs audit verify` says so."""
        self._journal.append({"ts": round(now, 3), "req": "-", "uid": os.getuid(), "op": RETENTION, "res": "ok", "params": {"before": before}})
        self._digests.write(now)
