"""Data keys fetched ahead (ADR 0015): who reads one file of a directory after the other will open the next.

Which keys are worth fetching is told by the backing inodes' numbers: files that were made together are read together.
How many is told by what became of those fetched before.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.slots import SlotPair, read_slots
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import KmsfsError
from kmsfs.formats.blob import parse_blob

_WINDOW_FIRST = 4
_WINDOW_MAX = 32
_PATIENCE_FIRST = 3
_PATIENCE_MAX = 96
_ENTRIES_MAX = 16_384
_WALKS_MAX = 8
_HEADERS_MAX = 3 * _WINDOW_MAX
_WALK_SECONDS = 60.0
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Wrapped = tuple[bytes, bytes]
"""A file id and its wrapped data key."""


@dataclass(slots=True)
class Window:
    """How many keys to fetch ahead: twice as many while most of them are used, half as many while few are."""

    size: int = 0
    patience: int = _PATIENCE_FIRST
    """With a window of 0, so many files of one directory must be opened before the next try."""
    _fetched: int = 0
    _used_before: int = 0
    _judged: bool = False

    def judge(self, used: int) -> None:
        """Learn how many keys that were fetched ahead have been used in all, and draw the conclusion once a batch."""
        if self._fetched and not self._judged:
            share = (used - self._used_before) / self._fetched
            if share >= 3 / 4:
                self.size = min(_WINDOW_MAX, self.size * 2)
                self.patience = _PATIENCE_FIRST
            elif share < 1 / 4:
                self.size //= 2
                if self.size < 2:
                    self.size = 0
                    self.patience = min(_PATIENCE_MAX, self.patience * 2)
        self._fetched, self._used_before, self._judged = 0, used, False

    def try_again(self) -> None:
        """Open a closed window."""
        self.size = _WINDOW_FIRST

    def fetched(self, count: int) -> None:
        """Note a batch."""
        self._fetched = count

    def left(self, used: int) -> int:
        """Return how many keys that were fetched have not been used."""
        return max(0, self._fetched - (used - self._used_before))

    def fetched_soon(self, used: int, count: int) -> None:
        """Note a batch that was asked for as half of the one before was used up, and look twice as far next time.

        That use was the verdict; what has become of this one when a key is missed says nothing yet.
        """
        self._judged = True
        self._fetched += count - (used - self._used_before)
        self._used_before = used
        self.size = min(_WINDOW_MAX, self.size * 2)


@dataclass(slots=True)
class _Walk:
    """What was opened in a directory so far: files by backing inode, in the order of their numbers."""

    opened: int = 0
    last_inode: int = 0
    listed: float = 0.0
    files: list[tuple[int, str]] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Course:
    """Where a walk goes on: the next place, the direction, whose keys, and what was found on the way."""

    directory: int
    walk: _Walk
    place: int
    step: int
    owner: bytes
    looks_left: int = 0
    found: list[Wrapped] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether there are no more files in this direction, or too many under other keys."""
        return not self.looks_left or not 0 <= self.place < len(self.walk.files)


class KeysAhead:
    """Says which further keys to fetch when one has to be fetched. The caller holds the vfs lock."""

    def __init__(self, keys: VolumeKeys, clock: Callable[[], float]) -> None:
        self.window = Window()
        self._keys = keys
        self._clock = clock
        self._walks: OrderedDict[int, _Walk] = OrderedDict()
        self._course: _Course | None = None
        self._headers: OrderedDict[int, tuple[int, int, SlotPair]] = OrderedDict()
        """Headers of files whose keys were fetched, by backing inode, with its change time and size."""

    def take_headers(self, inode: int, backing: PosixFile) -> SlotPair | None:
        """Return the headers of an open file as they were read when its key was fetched, once, if nobody has changed it since."""
        held = self._headers.pop(inode, None)
        if held is None:
            return None
        facts = os.fstat(backing.descriptor)
        if (facts.st_ino, facts.st_ctime_ns, facts.st_size) != (inode, *held[:2]):
            return None
        return held[2]

    def beside(self, directory: int, descriptor: int, inode: int, wrapped: bytes, used: int) -> list[Wrapped]:
        """Return file ids and wrapped keys of files whose keys may be wanted soon, all under the same KMS key as `wrapped`.

        Args:
            directory: the node id of the directory in which a file is opened.
            descriptor: an open descriptor of its backing directory.
            inode: the backing inode of the opened file.
            wrapped: its wrapped data key.
            used: how many keys that were fetched ahead have been used since the volume was mounted.

        Raises:
            OSError: if the backing directory cannot be read.
            InvalidCiphertext: if `wrapped` is no ciphertext blob.
        """
        walk = self._walk_of(directory)
        up = inode > walk.last_inode
        walk.last_inode = inode
        walk.opened += 1
        self.window.judge(used)
        if not self.window.size:
            if walk.opened < self.window.patience:
                return []
            self.window.try_again()
        walk.opened = 0
        if not walk.files:
            self._list(walk, descriptor)
        found = self._pick(walk, directory, descriptor, inode, 1 if up else -1, parse_blob(wrapped).owner)
        found = [(file_id, other) for file_id, other in found if other != wrapped]
        self.window.fetched(len(found))
        return found

    def look_further(self, directory: int, descriptor: int, used: int) -> bool:
        """While nobody waits, read one header of those whose keys will be asked for next; return whether there was one.

        `directory`, `descriptor` and `used` are those of `beside`; only the directory of its last call is gone on with.
        """
        course = self._course
        if course is None or course.directory != directory or not self.window.left(used):
            return False
        if course.ended or len(course.found) >= self.window.size:
            return False
        self._look(course, descriptor)
        return True

    def take_further(self, used: int) -> list[Wrapped]:
        """Return what `look_further` found, once it is enough or all, to be asked for now."""
        course = self._course
        if course is None or not course.found or not 0 < self.window.left(used) <= self.window.size // 2:
            return []
        if not course.ended and len(course.found) < self.window.size:
            return []
        found, course.found = course.found, []
        self.window.fetched_soon(used, len(found))
        course.looks_left = 2 * self.window.size
        return found

    def _walk_of(self, directory: int) -> _Walk:
        walk = self._walks.pop(directory, None)
        if walk is None or (walk.files and self._clock() - walk.listed > _WALK_SECONDS):
            walk = _Walk()
        self._walks[directory] = walk
        if len(self._walks) > _WALKS_MAX:
            self._walks.popitem(last=False)
        return walk

    def _list(self, walk: _Walk, descriptor: int) -> None:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.name[0] not in ".s" and entry.is_file(follow_symlinks=False):
                    walk.files.append((entry.inode(), entry.name))
                    if len(walk.files) >= _ENTRIES_MAX:
                        break
        walk.files.sort()
        walk.places = {inode: place for place, (inode, _) in enumerate(walk.files)}
        walk.listed = self._clock()

    def _pick(
        self, walk: _Walk, directory: int, descriptor: int, inode: int, step: int, owner: bytes
    ) -> list[Wrapped]:
        before, self._course = self._course, None
        place = walk.places.get(inode)
        if place is None:
            return []
        walk.seen.add(place)
        course = self._course = _Course(directory, walk, place + step, step, owner, 2 * self.window.size)
        if before is not None and before.walk is walk and before.owner == owner:
            # What was found on the way and not asked for yet is marked as seen.
            course.found = before.found
        while not course.ended and len(course.found) < self.window.size:
            self._look(course, descriptor)
        found, course.found = course.found, []
        course.looks_left = 2 * self.window.size
        return found

    def _look(self, course: _Course, descriptor: int) -> None:
        place = course.place
        course.place += course.step
        if place in course.walk.seen:
            return
        course.walk.seen.add(place)
        course.looks_left -= 1
        wrapped = self._wrapped_key(descriptor, course.walk.files[place][1], course.owner)
        if wrapped is not None:
            course.found.append(wrapped)

    def _wrapped_key(self, descriptor: int, disk_name: str, owner: bytes) -> Wrapped | None:
        """Read a file's header; None where opening the file itself has something to say, or another KMS key is asked."""
        try:
            backing = PosixFile(os.open(disk_name, _OPEN_FLAGS, dir_fd=descriptor))
        except OSError:
            return None
        try:
            return self._read(backing, owner)
        except KmsfsError:
            return None
        finally:
            backing.close()

    def _read(self, backing: PosixFile, owner: bytes) -> Wrapped | None:
        # Before the headers: a change that comes between is then seen as one.
        facts = os.fstat(backing.descriptor)
        pair = read_slots(self._keys, backing)
        if not pair.valid or pair.damaged is not None:
            return None
        clear = pair.valid[0].clear
        if parse_blob(clear.wrapped_key).owner != owner:
            return None
        self._headers[facts.st_ino] = (facts.st_ctime_ns, facts.st_size, pair)
        if len(self._headers) > _HEADERS_MAX:
            self._headers.popitem(last=False)
        return clear.file_id, clear.wrapped_key
