"""Wrap every file's data key anew, under another KMS key or under a key's present material. The volume is not mounted.

Below a directory with a KMS key of its own, that one is the key.

A file's content is not touched: only the wrapped key in its two headers changes. Each file is whole at every moment: the
header that is not the durable commit is written first, and the other one after a barrier (security.md, section 6.6). A run
that was cut off is simply run again.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kmsfs.backing.posix import PosixFile, sync_file_system
from kmsfs.envelope.kf1file import FileTools, Kf1File
from kmsfs.envelope.provider import file_context
from kmsfs.envelope.slots import SlotPair, read_slots
from kmsfs.envelope.volumekeys import DIR_ID_NAME, VolumeKeys
from kmsfs.errors import InvalidCiphertext, KmsfsError
from kmsfs.formats.blob import parse_blob

_BATCH = 128
"""Files whose headers one barrier covers."""

ReEncrypt = Callable[[bytes, dict[str, str], str], bytes]
"""Wraps a wrapped key anew, under its context and the KMS key with this id."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Which KMS key, and which version (term) of its material, a data key is wrapped under."""

    key_id: str
    term: int


def wrapping_of(wrapped: bytes) -> Wrapping:
    """Return under what a wrapped key says that it is wrapped.

    Raises:
        InvalidCiphertext: if it is no ciphertext blob.
    """
    blob = parse_blob(wrapped)
    return Wrapping(blob.key_id, blob.term)


@dataclass(slots=True)
class RewrapReport:
    """What was found and done. `headers` counts the headers by wrapping, as they are at the end."""

    files: int = 0
    rewrapped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    headers: Counter[Wrapping] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        counted = sorted(self.headers.items(), key=lambda item: (item[0].key_id, item[0].term))
        return {
            "files": self.files,
            "rewrapped": self.rewrapped,
            "headers": [{"key_id": w.key_id, "material_version": w.term, "headers": n} for w, n in counted],
            "failed": [{"stored_as": name, "problem": problem} for name, problem in self.failed],
        }


@dataclass(frozen=True, slots=True)
class Targets:
    """Where data keys go: the volume's own KMS key, and those of directories that have one, by directory id."""

    own: Wrapping
    root_id: bytes = bytes(16)
    directories: dict[bytes, Wrapping] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    """A file between its two commits."""

    name: str
    file: Kf1File
    backing: PosixFile
    target: Wrapping


class Rewrapper:
    """Rewraps one volume; `re_encrypt` asks the key service, `on_bytes` hears of stored bytes gone through."""

    def __init__(
        self, tools: FileTools, targets: Targets, re_encrypt: ReEncrypt, on_bytes: Callable[[int], None]
    ) -> None:
        self._tools = tools
        self._targets = targets
        self._re_encrypt = re_encrypt
        self._on_bytes = on_bytes
        self.report = RewrapReport()

    def run(self, descriptor: int, *, dry_run: bool = False) -> RewrapReport:
        """Go through every file below the cipher directory; `dry_run` only counts.

        Raises:
            StorageError: if a barrier fails.
        """
        batch: list[_Open] = []
        try:
            for folder, name, shown, target in stored_files(self._tools.keys, self._targets, descriptor, self.report.failed):
                self.report.files += 1
                try:
                    opened = self._begin(folder, name, shown, target, dry_run=dry_run)
                except (KmsfsError, OSError) as error:
                    self.report.failed.append((shown, str(error)))
                    continue
                if opened is not None:
                    batch.append(opened)
                if len(batch) >= _BATCH:
                    done, batch = batch, []
                    self._end(descriptor, done)
        finally:
            # Whatever ended the loop, no file stays between its two commits.
            self._end(descriptor, batch)
        return self.report

    def _begin(
        self, folder: int, name: str, shown: str, target: Wrapping, *, dry_run: bool
    ) -> _Open | None:
        flags = (os.O_RDONLY if dry_run else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        backing = PosixFile(os.open(name, flags, dir_fd=folder))
        keep = False
        try:
            self._on_bytes(backing.size())
            if not backing.size():
                return None
            pair = read_slots(self._tools.keys, backing)
            if dry_run or _done(pair, target):
                self._count(pair)
                return None
            opened = self._first_commit(backing, pair, shown, target)
            keep = True
            return opened
        finally:
            if not keep:
                backing.close()

    def _count(self, pair: SlotPair) -> None:
        for slot in pair.valid:
            found = _wrapping(slot.clear.wrapped_key)
            if found is not None:
                self.report.headers[found] += 1

    def _first_commit(self, backing: PosixFile, pair: SlotPair, shown: str, target: Wrapping) -> _Open:
        file = Kf1File.open_pair(self._tools, backing, pair, None, known=False)
        clear = file.clear
        context = file_context(clear.volume_id, clear.file_id)
        clear.wrapped_key = self._re_encrypt(clear.wrapped_key, context, target.key_id)
        file.attributes_dirty = True
        file.commit()
        return _Open(shown, file, backing, target)

    def _end(self, descriptor: int, batch: list[_Open]) -> None:
        """One barrier for all first commits, the second commits, and one barrier for those."""
        if not batch:
            return
        try:
            sync_file_system(descriptor)
            for opened in batch:
                opened.file.mark_durable(opened.file.clear.generation)
                opened.file.attributes_dirty = True
                opened.file.commit()
            sync_file_system(descriptor)
            for opened in batch:
                opened.file.mark_durable(opened.file.clear.generation)
        finally:
            for opened in batch:
                opened.backing.close()
        self.report.rewrapped += len(batch)
        for opened in batch:
            self.report.headers[opened.target] += 2


def stored_files(
    keys: VolumeKeys, targets: Targets, descriptor: int, failed: list[tuple[str, str]]
) -> Iterator[tuple[int, str, str, Wrapping]]:
    """Yield (folder descriptor, name, path on disk, target) of every stored file, without reading any name.

    Directories of which it cannot be said whose key belongs below are added to `failed`, and left out.
    """
    inherited = {".": targets.own}
    for path, folders, names, folder in os.fwalk(".", dir_fd=descriptor):
        folders[:] = [name for name in folders if name[:1] != "."]
        try:
            target = _target_below(keys, targets, path, folder, inherited.pop(path))
        except (KmsfsError, OSError) as error:
            # A wrong key would let others in, or lock out.
            failed.append((os.path.normpath(path), str(error)))
            folders.clear()
            continue
        inherited |= {os.path.join(path, name): target for name in folders}
        for name in names:
            if name[:1] not in ("n", "l"):
                continue
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                yield folder, name, os.path.normpath(os.path.join(path, name)), target


def _target_below(keys: VolumeKeys, targets: Targets, path: str, folder: int, above: Wrapping) -> Wrapping:
    if not targets.directories:
        return above
    if path == ".":
        return targets.directories.get(targets.root_id, above)
    dir_id, _ = keys.open_dir_id(os.readlink(DIR_ID_NAME, dir_fd=folder))
    return targets.directories.get(dir_id, above)


def _wrapping(wrapped: bytes) -> Wrapping | None:
    try:
        return wrapping_of(wrapped)
    except InvalidCiphertext:
        return None


def _done(pair: SlotPair, target: Wrapping) -> bool:
    if not pair.valid or pair.damaged is not None:
        return False
    return all(_wrapping(slot.clear.wrapped_key) == target for slot in pair.valid)
