"""What a mount is asked to be, and where it may be."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmsfs.errors import UnsupportedFormat, UsageError
from kmsfs.formats.fileheader import MAX_CHUNK_LOG2, MIN_CHUNK_LOG2

MEMORY_BYTES = 256 << 20
"""About how big a mount process gets by what it remembers."""
CACHES = ("none", "metadata", "full")
"""What the kernel may keep: nothing, names and attributes, or what files contain as well."""
CHUNKS = {1 << log2 - 10: log2 for log2 in range(MIN_CHUNK_LOG2, MAX_CHUNK_LOG2 + 1)}
"""Sizes of chunks in KiB, and their logarithm of bytes."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What the user asked for."""

    cipher_dir: Path
    mountpoint: Path
    key: str | None = None
    transport: str = "kernel"
    allow_other: bool = False
    read_only: bool = False
    recover: bool = False
    low_latency: bool = True
    keys_ahead: bool = True
    memory_bytes: int = MEMORY_BYTES
    follow: bool = False
    """Read what another mount writes; goes with `read_only`."""
    cache: str = "full"
    """What the kernel may keep: one of `CACHES`."""
    chunk_log2: int | None = None
    """Of a new volume; a volume that is there must have it."""
    idle_seconds: float | None = None
    """After how long without a request it is unmounted."""
    uid: int | None = None
    """Whose everything shall seem to be."""
    gid: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "cipher_dir": os.fsencode(self.cipher_dir), "mountpoint": os.fsencode(self.mountpoint)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "MountRequest":
        """Return the request of plain values.

        Raises:
            UnsupportedFormat: if they are another version's.
        """
        try:
            paths = {name: Path(os.fsdecode(plain[name])) for name in ("cipher_dir", "mountpoint")}
            return cls(**{**plain, **paths})
        except (KeyError, TypeError) as error:
            raise UnsupportedFormat(f"the request of the mount cannot be taken over: {error}") from error


def check_places(request: MountRequest) -> None:
    """Refuse places where mounting would surprise.

    Raises:
        UsageError: a missing or non-empty mountpoint, one inside the other, a cipher directory that is none.
    """
    cipher, point = request.cipher_dir, request.mountpoint
    real_cipher, real_point = cipher.resolve(), point.resolve()
    if real_cipher == real_point or real_cipher in real_point.parents or real_point in real_cipher.parents:
        raise UsageError(
            "cipher directory and mountpoint lie inside each other", hint="keep them side by side"
        )
    if os.path.ismount(point):
        raise UsageError(f"{point} is a mount point already", hint=f"kmsfs umount {point}")
    for place in (cipher, point):
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UsageError(f"{place} is not a directory") from error
        except OSError as error:
            raise UsageError(f"cannot make {place}: {error.strerror}") from error
    if any(point.iterdir()):
        raise UsageError(f"{point} is not empty: its files would be hidden", hint="choose an empty directory")
