"""Backing files on a POSIX file system."""

import ctypes
import errno
import os
from typing import NoReturn

from kmsfs.errors import StorageError

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_LIBC.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_KEEP_SIZE_PUNCH_HOLE = 3
_PIECE_BYTES = 1 << 20


def storage_failed(error: OSError, what: str) -> NoReturn:
    """Raise the storage error of an OSError, its errno kept.

    Raises:
        StorageError: always.
    """
    raise StorageError(
        f"the backing store cannot {what}: {error.strerror}", os_errno=error.errno or 5
    ) from error


class PosixFile:
    """A BlockFile over a descriptor, which it owns."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, length: int, offset: int) -> bytes:
        """See BlockFile."""
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            storage_failed(error, "read")

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """See BlockFile."""
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self.descriptor, [buffer[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            storage_failed(error, "read")
        return done

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """See BlockFile."""
        try:
            done = os.pwrite(self.descriptor, data, offset)
            while done < len(data):
                done += os.pwrite(self.descriptor, memoryview(data)[done:], offset + done)
        except OSError as error:
            storage_failed(error, "write")

    def datasync(self) -> None:
        """See BlockFile."""
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            storage_failed(error, "sync")

    def sync(self) -> None:
        """See BlockFile."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            storage_failed(error, "sync")

    def rewrite(self) -> None:
        """Write once more what the file holds, holes left out.

        Pages whose write-back failed count as clean: without this, no later barrier stores them (fsync(2), NOTES).
        """
        offset = 0
        try:
            while True:
                offset = os.lseek(self.descriptor, offset, os.SEEK_DATA)
                end = os.lseek(self.descriptor, offset, os.SEEK_HOLE)
                while offset < end:
                    piece = os.pread(self.descriptor, min(_PIECE_BYTES, end - offset), offset)
                    self.write(piece, offset)
                    offset += len(piece)
        except OSError as error:
            if error.errno != errno.ENXIO:
                storage_failed(error, "read")

    def size(self) -> int:
        """See BlockFile."""
        return os.fstat(self.descriptor).st_size

    def truncate(self, size: int) -> None:
        """See BlockFile."""
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            storage_failed(error, "truncate")

    def punch(self, offset: int, length: int) -> None:
        """See BlockFile."""
        _LIBC.fallocate(self.descriptor, _KEEP_SIZE_PUNCH_HOLE, offset, length)

    def close(self) -> None:
        """See BlockFile."""
        os.close(self.descriptor)


def sync_file_system(descriptor: int) -> None:
    """Make everything on the file system of `descriptor` durable (syncfs(2)).

    Raises:
        StorageError: if writing back failed anywhere since the last call.
    """
    if _LIBC.syncfs(descriptor):
        number = ctypes.get_errno()
        raise StorageError(f"the backing store cannot sync: {os.strerror(number)}", os_errno=number)


def rename_with_flags(old_dir: int, old: str, new_dir: int, new: str, flags: int) -> None:
    """renameat2(2): RENAME_NOREPLACE 1, RENAME_EXCHANGE 2.

    Raises:
        OSError: as the call.
    """
    if _LIBC.renameat2(old_dir, old.encode(), new_dir, new.encode(), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
