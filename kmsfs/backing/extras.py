"""Extras records on disk: read, replace, remove, make durable. What they mean is the mount's business."""

import contextlib
import errno
import logging
import os

from kmsfs.backing.posix import storage_failed
from kmsfs.envelope.extras import EXTRAS_DIR, RECORD_MAX_BYTES, Extras, open_extras, seal_extras
from kmsfs.envelope.kf1file import FileTools
from kmsfs.errors import CorruptFile, IntegrityReason

_LOG = logging.getLogger("kmsfs.mount")
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = ".new"


class ExtrasStore:
    """The records of a mounted volume. The caller holds the vfs lock."""

    def __init__(self, tools: FileTools, root_descriptor: int) -> None:
        self._tools = tools
        self._root = root_descriptor
        self._folder = -1
        self.folder_synced = False
        """Whether the folder's own name was made durable in this session: a crash may have left one that is not."""
        self._unsynced: dict[str, int] = {}
        self._lost: set[str] = set()
        """Records of which a barrier failed: the kernel takes their pages for clean (fsync(2), NOTES)."""
        self._changes = 0

    def load(self, owner: bytes, expected: int | None) -> Extras:
        """Return the record of an owner; an empty one if it has none.

        Args:
            owner: file id or directory id.
            expected: the number that the file's header holds, None for a directory.

        Raises:
            CorruptFile: if it is damaged, or missing or older than the header says on a clean volume.
            StorageError: if it cannot be read.
        """
        if expected == 0:
            return Extras()
        data = self._read(self._tools.keys.extras_name(owner))
        clean = self._tools.rules.clean
        try:
            found = open_extras(self._tools.keys, owner, data) if data is not None else Extras()
            if expected is not None and found.number != expected and clean:
                raise CorruptFile(
                    "a file's extended attributes are missing or of another time", IntegrityReason.HOME
                )
        except CorruptFile:
            if clean:
                raise
            _LOG.warning("extended attributes that a crash cut off are given up")
            return Extras(expected or 0)
        return found

    def replace(self, owner: bytes, extras: Extras, *, durable: bool) -> None:
        """Write a record, wholly or not at all; `durable` before it takes the place of one that must not be lost.

        Raises:
            OSError: ENOSPC if it is too long.
            StorageError: if the store refuses; the old record is whole then.
        """
        data = seal_extras(self._tools.keys, owner, extras, self._tools.rng)
        if len(data) > RECORD_MAX_BYTES:
            raise OSError(errno.ENOSPC, "the extended attributes of one file are too long together")
        self._put(self._tools.keys.extras_name(owner), data, durable=durable)

    def _put(self, name: str, data: bytes, *, durable: bool) -> None:
        folder = self._open_folder(make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
            descriptor = os.open(name + _TEMPORARY, flags, 0o600, dir_fd=folder)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                if durable:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(name + _TEMPORARY, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(name + _TEMPORARY, dir_fd=folder)
            storage_failed(error, "write extended attributes")
        self._changes += 1
        self._unsynced[name] = self._changes
        self._lost.discard(name)

    def withdraw(self, owner: bytes) -> None:
        """Remove the record of an owner who stays: that must not come back, so `sync` makes it durable as any other change."""
        self.remove(owner)
        self._changes += 1
        self._unsynced[self._tools.keys.extras_name(owner)] = self._changes

    def waits(self, owner: bytes) -> bool:
        """Whether `sync` would have something to do."""
        return bool(self._unsynced) and self._tools.keys.extras_name(owner) in self._unsynced

    def remove(self, owner: bytes) -> None:
        """Remove the record, if there is one, of an owner who is gone."""
        name = self._tools.keys.extras_name(owner)
        self._unsynced.pop(name, None)
        self._lost.discard(name)
        folder = self._open_folder(make=False)
        if folder >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)

    def sync(self, owner: bytes) -> None:
        """Make an owner's record durable, if it changed since; until `folder_synced`, the root's entries too.

        Raises:
            StorageError: if the disk refuses.
        """
        name = self._tools.keys.extras_name(owner)
        if name not in self._unsynced:
            return
        self._write_again(name)
        folder = self._open_folder(make=False)
        if folder < 0:
            # Somebody else took it away, and all records with it.
            self._unsynced.pop(name, None)
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            os.fsync(folder)
            if not self.folder_synced:
                os.fsync(self._root)
                self.folder_synced = True
        except OSError as error:
            self._lost.add(name)
            storage_failed(error, "sync extended attributes")
        self._unsynced.pop(name, None)

    def unsynced(self) -> dict[str, int]:
        """Return which records no barrier has covered yet, and their changes."""
        return dict(self._unsynced)

    def barrier_failed(self, before: dict[str, int]) -> None:
        """A barrier over the whole file system has failed: what it should have covered may be lost."""
        self._lost.update(name for name, change in before.items() if self._unsynced.get(name) == change)

    def write_lost_again(self) -> None:
        """Write once more what a failed barrier may have lost, so that the next one stores it.

        Raises:
            StorageError: if the store refuses.
        """
        for name in list(self._lost):
            self._write_again(name)

    def _write_again(self, name: str) -> None:
        if name in self._lost:
            data = self._read(name)
            if data is not None:
                self._put(name, data, durable=False)
            self._lost.discard(name)

    def covered(self, before: dict[str, int]) -> None:
        """A barrier over the whole file system has covered these changes."""
        self._unsynced = {
            name: change
            for name, change in self._unsynced.items()
            if before.get(name) != change or name in self._lost
        }

    def names(self) -> list[str]:
        """Return the names of all records."""
        folder = self._open_folder(make=False)
        return os.listdir(folder) if folder >= 0 else []

    def close(self) -> None:
        """Close the folder."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _read(self, name: str) -> bytes | None:
        folder = self._open_folder(make=False)
        if folder < 0:
            return None
        try:
            descriptor = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
        except FileNotFoundError:
            return None
        try:
            with open(descriptor, "rb") as stream:
                return stream.read(RECORD_MAX_BYTES + 1)
        except OSError as error:
            storage_failed(error, "read extended attributes")

    def _open_folder(self, *, make: bool) -> int:
        if self._folder < 0:
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(EXTRAS_DIR, 0o700, dir_fd=self._root)
                self._folder = os.open(EXTRAS_DIR, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=self._root)
            except FileNotFoundError:
                return -1
            except OSError as error:
                storage_failed(error, "open the folder of extended attributes")
        return self._folder
