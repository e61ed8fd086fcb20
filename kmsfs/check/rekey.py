"""Give every file of a volume a new data key, and encrypt its content anew under it. The volume is not mounted.

What `kmsfs rewrap` leaves is the data key itself: whoever once had it, in memory or in a core file, can read what was written
under it since. Each file is whole at every moment: its content is written beside the old one, one header names the new key, and
after a barrier the other one does (security.md, section 6.6). Names and attributes are under the volume's own key, which stays.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kmsfs.backing.posix import PosixFile, sync_file_system
from kmsfs.check.rewrap import Targets, stored_files
from kmsfs.envelope.content import give_back_free, write_under
from kmsfs.envelope.filekeys import FileKeys
from kmsfs.envelope.kf1file import FileTools, Kf1File
from kmsfs.envelope.provider import file_context
from kmsfs.envelope.slots import read_slots
from kmsfs.errors import KmsfsError
from kmsfs.secret import DataKey

_BATCH = 128
_BATCH_BYTES = 64 << 20
"""Files, and stored bytes, that the same barriers cover: so much more room is needed, or what the largest file takes."""

MakeKey = Callable[[str, dict[str, str]], tuple[bytes, bytes]]
"""Makes a data key under the KMS key with an id and an encryption context: (plain, wrapped). Secret."""


@dataclass(slots=True)
class RekeyReport:
    """What was done; `failed` files are as they were."""

    files: int = 0
    rekeyed: int = 0
    content_bytes: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "files": self.files,
            "rekeyed": self.rekeyed,
            "content_bytes": self.content_bytes,
            "failed": [{"stored_as": name, "problem": problem} for name, problem in self.failed],
        }


@dataclass(slots=True)
class _Written:
    """A file whose content is written under a key that no header names so far."""

    file: Kf1File
    backing: PosixFile
    data_key: DataKey


class Rekeyer:
    """Rekeys one volume; `make_key` asks the key service, `on_bytes` hears of stored bytes gone through."""

    def __init__(self, tools: FileTools, targets: Targets, make_key: MakeKey, on_bytes: Callable[[int], None]) -> None:
        self._tools = tools
        self._targets = targets
        self._make_key = make_key
        self._on_bytes = on_bytes
        self._linked: set[tuple[int, int]] = set()
        self.report = RekeyReport()

    def run(self, descriptor: int) -> RekeyReport:
        """Go through every file below the cipher directory.

        Raises:
            StorageError: if a barrier fails; no file is damaged by that.
        """
        batch: list[_Written] = []
        waiting = 0
        try:
            for folder, name, shown, target in stored_files(self._tools.keys, self._targets, descriptor, self.report.failed):
                if self._seen(folder, name):
                    continue
                self.report.files += 1
                try:
                    written, stored = self._write(folder, name, target.key_id)
                except (KmsfsError, OSError) as error:
                    self.report.failed.append((shown, str(error)))
                    continue
                waiting += stored
                if written is not None:
                    batch.append(written)
                if len(batch) >= _BATCH or waiting >= _BATCH_BYTES:
                    done, batch, waiting = batch, [], 0
                    self._commit(descriptor, done)
        finally:
            self._commit(descriptor, batch)
        return self.report

    def _seen(self, folder: int, name: str) -> bool:
        """Whether this is another name of a file that was come to already."""
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if facts.st_nlink == 1:
            return False
        before = len(self._linked)
        self._linked.add((facts.st_dev, facts.st_ino))
        return len(self._linked) == before

    def _write(self, folder: int, name: str, key_id: str) -> tuple[_Written | None, int]:
        """Return a file that waits for its commits, or None for one that holds nothing yet; and its stored bytes."""
        backing = PosixFile(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder))
        written = None
        try:
            stored = backing.size()
            self._on_bytes(stored)
            if stored:
                written = self._begin(backing, key_id, stored)
            return written, stored
        finally:
            if written is None:
                backing.close()

    def _begin(self, backing: PosixFile, key_id: str, stored: int) -> _Written:
        file = Kf1File.open_pair(self._tools, backing, read_slots(self._tools.keys, backing), None, known=False)
        clear = file.clear
        plain, wrapped = self._make_key(key_id, file_context(clear.volume_id, clear.file_id))
        data_key = DataKey(plain)
        try:
            write_under(file, FileKeys(data_key), wrapped)
        except BaseException:
            # What was written is behind what the last commit knows of, or in blocks that it has free.
            data_key.wipe()
            if backing.size() > stored:
                backing.truncate(stored)
            raise
        return _Written(file, backing, data_key)

    def _commit(self, descriptor: int, batch: list[_Written]) -> None:
        """The first headers, a barrier, the second headers, a barrier; then the old content's room is given back."""
        if not batch:
            return
        try:
            for _ in range(2):
                for written in batch:
                    written.file.attributes_dirty = True
                    written.file.commit()
                sync_file_system(descriptor)
                for written in batch:
                    written.file.mark_durable(written.file.clear.generation)
            for written in batch:
                give_back_free(written.file)
        finally:
            for written in batch:
                written.data_key.wipe()
                written.backing.close()
        self.report.rekeyed += len(batch)
        self.report.content_bytes += sum(written.file.size for written in batch)
