"""The one table from errors to errno."""

import errno

from kmsfs.errors import KmsfsError, StorageError


def errno_of(error: BaseException) -> int:
    """Return the errno that a system call answers for an error; EIO for what is our fault."""
    if isinstance(error, StorageError):
        return error.os_errno
    if isinstance(error, KmsfsError):
        return error.errno
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    return errno.EIO
