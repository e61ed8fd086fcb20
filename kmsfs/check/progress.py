"""Which contents a check has verified, in a file, so that one that was cut off can go on."""

import contextlib
import os
from pathlib import Path

from kmsfs.envelope.slots import Slot

_FIELDS = 5


class CheckProgress:
    """What is known is good for as long as the backing inode, its change time, its size and the newest header are the same.

    The file is this user's own and holds no secret. It goes when a check has come to its end.
    """

    def __init__(self, path: Path, *, go_on: bool) -> None:
        """Begin anew, or `go_on` with what a check before has noted in `path`.

        Raises:
            OSError: if the file cannot be written.
        """
        self._path = path
        self._known: dict[str, int] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if go_on:
            with contextlib.suppress(FileNotFoundError):
                self._known = dict(_parse(path.read_text("ascii", "replace")))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if go_on else os.O_TRUNC)
        self._file = os.fdopen(os.open(path, flags, 0o600), "a", encoding="ascii")
        # A line that was cut off is none; what follows begins on a line of its own.
        self._file.write("\n")

    def chunks_of(self, descriptor: int, newest: Slot) -> int | None:
        """Return how many chunks of a file were verified; None if it is not known to be verified as it is now."""
        return self._known.get(_mark(descriptor, newest))

    def add(self, descriptor: int, newest: Slot, chunks: int) -> None:
        """Note that a file's content was verified."""
        mark = _mark(descriptor, newest)
        self._known[mark] = chunks
        self._file.write(f"{mark} {chunks}\n")

    def flush(self) -> None:
        """Let what was noted be there if this process is killed."""
        self._file.flush()

    def close(self, *, done: bool) -> None:
        """Close the file; where the check is `done` with all, remove it."""
        self._file.close()
        if done:
            self._path.unlink(missing_ok=True)


def _mark(descriptor: int, newest: Slot) -> str:
    facts = os.fstat(descriptor)
    return f"{facts.st_ino} {facts.st_ctime_ns} {facts.st_size} {newest.tag.hex()}"


def _parse(text: str) -> "list[tuple[str, int]]":
    found = []
    for line in text.split("\n")[:-1]:
        mark, _, chunks = line.rpartition(" ")
        if chunks.isdigit() and len(line.split()) == _FIELDS:
            found.append((mark, int(chunks)))
    return found
