"""Whether a header is the latest that this volume was known to have: what notices a whole file put back from the past.

The headers of a file authenticate everything in it, but an older file is as authentic as it ever was. So the generation
and tag of each file's last *durable* commit are kept outside the cipher directory (security.md, section 6.8). Only
durable commits are recorded: whatever a crash leaves is then at least as new as the record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import CorruptFile, IntegrityReason


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of a file: `tag` is the synthetic IV of its header's attribute box, which authenticates the header."""

    file_id: bytes
    generation: int
    session: int
    tag: bytes


class FreshnessRecords(Protocol):
    """The last durable commit of every file, as far as it is known."""

    @property
    def since(self) -> int:
        """The session from which on every file's commits are recorded."""
        ...

    @property
    def doubtful(self) -> bool:
        """Whether there may be records of files that were removed rightly: after a crash, and of damaged files."""
        ...

    def find(self, file_id: bytes) -> tuple[int, bytes] | None:
        """Return (generation, tag) of a file's last durable commit."""
        ...

    def durable(self, commit: Commit) -> None:
        """Record that a commit is beyond a power cut."""
        ...

    def gone(self, file_id: bytes) -> None:
        """Record that a file's last name was removed; it counts once that is beyond a power cut."""
        ...

    def take_gone(self) -> list[bytes]:
        """Return the removals that wait for a barrier, for `removed` once it has returned."""
        ...

    def removed(self, file_ids: list[bytes]) -> None:
        """Forget files whose removal is beyond a power cut."""
        ...

    def doubt(self) -> None:
        """Note that a file may have been removed whose record is not known: a file that is missing may be that one from here on."""
        ...

    def file_ids(self) -> Iterator[bytes]:
        """Yield the ids of all files that have a stored record.

        Raises:
            StorageError: if they cannot be read.
        """
        ...

    def forget(self, file_ids: list[bytes]) -> None:
        """Forget files that are not there any more, and with them every doubt.

        Raises:
            StorageError: if it cannot be written.
        """
        ...

    def flush(self) -> None:
        """Store what changed.

        Raises:
            StorageError: if it cannot be written; it is kept and tried again by the next call.
        """
        ...


def require_fresh(records: FreshnessRecords, rules: SessionRules, commit: Commit) -> None:
    """Refuse a file that is older than its record, or whose removal was recorded; record one that is new here.

    Raises:
        CorruptFile: if it was put back from the past.
    """
    known = records.find(commit.file_id)
    if known is None:
        if not rules.trusts(commit.session):
            return
        if commit.session >= records.since:
            raise _put_back("was removed")
        records.durable(commit)
        return
    generation, tag = known
    if commit.generation < generation:
        raise _put_back(f"had {generation - commit.generation} later commits")
    if commit.generation == generation and commit.tag != tag:
        raise _put_back("had another commit of the same number")


def _put_back(why: str) -> CorruptFile:
    return CorruptFile(
        f"the file is of the past: it {why}",
        IntegrityReason.ROLLED_BACK,
        hint="if a backup was restored, unmount and run `kmsfs volume accept-restore CIPHERDIR`",
    )
