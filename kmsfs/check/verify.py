"""Verify a whole volume that is not mounted: every name, header, map node and chunk is opened; nothing is written."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kmsfs.backing.extras import ExtrasStore
from kmsfs.backing.posix import PosixFile
from kmsfs.check.progress import CheckProgress
from kmsfs.envelope.extras import EXTRAS_DIR, Extras
from kmsfs.envelope.freshness import Commit, require_fresh
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.recovery import verify
from kmsfs.envelope.slots import Slot, SlotPair, read_slots
from kmsfs.envelope.volumekeys import DIR_ID_NAME
from kmsfs.errors import (
    AccessDenied,
    CorruptFile,
    IntegrityError,
    IntegrityReason,
    InvalidName,
    KmsfsError,
    UnsupportedFormat,
)
from kmsfs.formats.listing import ListedFile
from kmsfs.formats.volume import CONFIG_NAME

DAMAGE, UNCLEAN, UNREAD, LEFTOVER = "damage", "unclean", "unread", "leftover"
"""Damaged or tampered with; explained by the crash before, the next mount heals it; not looked into, as the key
service refused or the disk did not read; of no use and harmless."""

NEW_HEADER, REMOVE, SET_ASIDE, FORGET = "new header", "remove", "set aside", "forget"
"""What a repair can do: write the damaged header anew from the good one; remove what is of no use; move what cannot be read
out of the way; forget the record of a file that is gone."""
_AT_ONCE = 64
"""Files whose keys are fetched in one call."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `path` is plain, as far as it could be read; `remedy` is what can be done."""

    path: str
    stored_as: str
    kind: str
    problem: str
    remedy: str = ""


@dataclass(slots=True)
class Report:
    """What was verified, and what was found."""

    files: int = 0
    directories: int = 0
    links: int = 0
    others: int = 0
    plain_bytes: int = 0
    chunks: int = 0
    findings: list[Finding] = field(default_factory=list)
    unseen: list[bytes] = field(default_factory=list)
    """Ids of files that have a freshness record and are not there."""
    recognized: bool = False
    """Whether of all that is there it is known which files they are, so that `unseen` is all that is missing."""
    doubtful: bool = False
    """Whether some of the unseen may have been removed rightly."""

    @property
    def damaged(self) -> bool:
        """Whether anything is damaged or could not be looked into."""
        return any(finding.kind in (DAMAGE, UNREAD) for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "files": self.files, "directories": self.directories, "links": self.links, "others": self.others,
            "plain_bytes": self.plain_bytes, "chunks": self.chunks, "damaged": self.damaged,
            "findings": [
                {"path": f.path, "stored_as": f.stored_as, "kind": f.kind, "problem": f.problem, "remedy": f.remedy}
                for f in self.findings
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory being checked."""

    descriptor: int
    dir_id: bytes
    plain: str
    stored: str

    def below(self, name: str, disk_name: str) -> tuple[str, str]:
        return f"{self.plain}/{name}", f"{self.stored}/{disk_name}".lstrip("/")


NamesOf = Callable[[bytes], Iterable[ListedFile]]
"""Returns what is remembered of the files of a directory."""
Fetch = Callable[[list[tuple[bytes, bytes]]], None]
"""Has data keys, by (file id, wrapped key), fetched while something else is done."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file whose headers were read and whose key is under way."""

    place: _Place
    name: bytes
    where: tuple[str, str]
    backing: PosixFile
    pair: SlotPair
    stored_bytes: int
    verified: int | None
    """How many chunks a check that was cut off has verified of it, as it is; None: its content is to be read."""


class VolumeChecker:
    """Checks one volume; `on_bytes` hears of each stored byte gone through, for a progress bar."""

    def __init__(
        self, tools: FileTools, on_bytes: Callable[[int], None], names_of: NamesOf | None = None, fetch: Fetch | None = None,
        progress: CheckProgress | None = None,
    ) -> None:  # fmt: skip
        """`names_of` tells what files were called that may be missing, `fetch` gets keys ahead, `progress` what was verified."""
        self._progress = progress
        self._fetch = fetch
        self._coming: list[_Opened] = []
        """Files whose keys were asked for."""
        self._next: list[_Opened] = []
        """Files whose keys are asked for next."""
        self._names_of = names_of or (lambda _dir_id: ())
        self._seen: set[bytes] = set()
        self._unknown = False
        """Whether there are files of which it is not known which ones they are."""
        self._called: dict[bytes, tuple[str, str]] = {}
        """What files were called that may be missing."""
        self._tools = tools
        self._keys = tools.keys
        self._on_bytes = on_bytes
        self.report = Report()
        self._extras: ExtrasStore | None = None
        self._records: set[str] = set()
        """Names of the extras records that belong to something."""

    def run(self, descriptor: int, root_id: bytes) -> Report:
        """Check everything below the cipher directory.

        Raises:
            OSError: if the cipher directory itself cannot be read.
        """
        self._extras = ExtrasStore(self._tools, descriptor)
        try:
            self._directory(_Place(descriptor, root_id, "", ""))
            for _ in range(2):
                self._turn()
            for name in sorted(set(self._extras.names()) - self._records):
                where = ("?", f"{EXTRAS_DIR}/{name}")
                self._found(where, LEFTOVER, "extended attributes of an entry that is gone", REMOVE)
        finally:
            for file in (*self._coming, *self._next):
                file.backing.close()
            self._extras.close()
        self._missing()
        return self.report

    def _missing(self) -> None:
        """Tell which files have a record and are not there; not while there are some that may be these."""
        recorded = self._tools.freshness
        if recorded is None or self._unknown:
            return
        try:
            self.report.unseen = [file_id for file_id in recorded.file_ids() if file_id not in self._seen]
        except KmsfsError as error:
            self._found(("/", "."), UNREAD, f"which files should be there is not known: {error}")
            return
        self.report.recognized, self.report.doubtful = True, recorded.doubtful
        kind = LEFTOVER if recorded.doubtful else self._suspicion()
        why = "it was removed behind the mount, or its directory was put back from the past"
        if recorded.doubtful:
            why = "it may have been removed before a crash, or as a damaged one"
        for file_id in self.report.unseen:
            where = self._called.get(file_id, ("?", f"file {file_id.hex()}"))
            self._found(where, kind, f"a file that was here is gone: {why}", FORGET)

    def _record(self, owner: bytes, expected: int | None, where: tuple[str, str]) -> Extras:
        """Open the extras record of a file or directory."""
        if self._extras is None or expected == 0:
            return Extras()
        self._records.add(self._keys.extras_name(owner))
        try:
            return self._extras.load(owner, expected)
        except (CorruptFile, UnsupportedFormat) as error:
            self._found(where, DAMAGE, str(error))
            return Extras()

    def _found(self, place: tuple[str, str], kind: str, problem: str, remedy: str = "") -> None:
        self.report.findings.append(Finding(*place, kind, problem, remedy))

    def _suspicion(self) -> str:
        """What an oddity means that a crash could explain: damage on a clean volume."""
        return DAMAGE if self._tools.rules.clean else UNCLEAN

    # --- directories ------------------------------------------------------------------------------------------

    def _directory(self, place: _Place) -> None:
        self.report.directories += 1
        self._record(place.dir_id, None, (place.plain or "/", place.stored))
        with os.scandir(place.descriptor) as entries:
            found = sorted((entry.name, entry) for entry in entries)
        names = {name for name, _ in found}
        for listed in self._names_of(place.dir_id):
            if listed.disk_name not in names:
                self._called[listed.file_id] = place.below(os.fsdecode(listed.name), listed.disk_name)
        for disk_name, entry in found:
            if disk_name == CONFIG_NAME or disk_name[0] == ".":
                continue
            if disk_name[0] == "s":
                if "l" + disk_name[1:] not in names:
                    self._found(
                        place.below("?", disk_name), LEFTOVER, "the long name of an entry that is gone", REMOVE
                    )
                continue
            try:
                self._entry(place, disk_name, entry)
            except OSError as error:
                self._unknown = True
                problem = f"cannot be read: {error.strerror}"
                self._found(place.below("?", disk_name), DAMAGE, problem)

    def _entry(self, place: _Place, disk_name: str, entry: "os.DirEntry[str]") -> None:
        try:
            sidecar = None
            if disk_name[0] == "l":
                sidecar = os.readlink("s" + disk_name[1:], dir_fd=place.descriptor)
            name = self._keys.open_name(place.dir_id, disk_name, sidecar)
        except (InvalidName, FileNotFoundError) as error:
            self._unknown = True
            self._found(place.below("?", disk_name), DAMAGE, f"not a name made here: {error}", SET_ASIDE)
            return
        where = place.below(os.fsdecode(name), disk_name)
        facts, seen = entry.stat(follow_symlinks=False), len(self._seen)
        try:
            if stat.S_ISDIR(facts.st_mode):
                self._subdirectory(place, name, disk_name, where)
            elif stat.S_ISREG(facts.st_mode):
                self.report.files += 1
                self._open(place, name, disk_name, where, facts.st_size)
            elif stat.S_ISLNK(facts.st_mode):
                self.report.links += 1
                self._keys.open_link(os.readlink(disk_name, dir_fd=place.descriptor))
            else:
                self.report.others += 1
        except KmsfsError as error:
            if stat.S_ISDIR(facts.st_mode) or len(self._seen) == seen:
                self._unknown = True
            self._found(where, *_judged(error))

    def _subdirectory(self, place: _Place, name: bytes, disk_name: str, where: tuple[str, str]) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(disk_name, flags, dir_fd=place.descriptor)
        try:
            try:
                target = os.readlink(DIR_ID_NAME, dir_fd=descriptor)
            except OSError:
                empty = not os.listdir(descriptor)
                self._unknown = self._unknown or not empty
                kind = self._suspicion() if empty else DAMAGE
                self._found(where, kind, "the directory has lost its id", SET_ASIDE)
                return
            dir_id, tags = self._keys.open_dir_id(target)
            if self._keys.dir_tag(place.dir_id, name) not in tags:
                self._found(where, self._suspicion(), "the directory is not where it was made")
            self._directory(_Place(descriptor, dir_id, *where))
        finally:
            os.close(descriptor)

    # --- files ------------------------------------------------------------------------------------------------

    def _open(self, place: _Place, name: bytes, disk_name: str, where: tuple[str, str], stored_bytes: int) -> None:
        """Read a file's headers; the rest follows when its key has come."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        backing = PosixFile(os.open(disk_name, flags, dir_fd=place.descriptor))
        try:
            pair = read_slots(self._keys, backing)
            if not pair.valid:
                self._on_bytes(stored_bytes)
                if pair.damaged is None and not backing.size():
                    self._unknown = True
                    self._found(where, self._suspicion(), "the file is empty: it has no header", SET_ASIDE)
                    backing.close()
                    return
                raise pair.damaged or CorruptFile("the file has no header", IntegrityReason.EMPTY)
        except BaseException:
            backing.close()
            raise
        self._seen.add(pair.valid[0].clear.file_id)
        verified = self._progress.chunks_of(backing.descriptor, pair.valid[0]) if self._progress is not None else None
        self._next.append(_Opened(place, name, where, backing, pair, stored_bytes, verified))
        if len(self._next) >= _AT_ONCE:
            self._turn()

    def _turn(self) -> None:
        """Ask for the keys of the files opened last, and meanwhile verify those before them."""
        ready, self._coming, self._next = self._coming, self._next, []
        heads = [file.pair.valid[0].clear for file in self._coming if file.verified is None]
        if heads and self._fetch is not None:
            with contextlib.suppress(KmsfsError):
                # Whoever opens one of them asks again, and learns why.
                self._fetch([(clear.file_id, clear.wrapped_key) for clear in heads])
        for file in ready:
            try:
                self._headers(file.pair, file.place, file.name, file.where)
                self._content(file)
            except KmsfsError as error:
                self._found(file.where, *_judged(error))
            except OSError as error:
                self._found(file.where, DAMAGE, f"cannot be read: {error.strerror}")
            finally:
                file.backing.close()
            self._on_bytes(file.stored_bytes)
        if self._progress is not None:
            self._progress.flush()

    def _headers(self, pair: SlotPair, place: _Place, name: bytes, where: tuple[str, str]) -> None:
        if pair.damaged is not None:
            problem = f"one of the two headers is damaged: {pair.damaged}"
            self._found(where, self._suspicion(), problem, NEW_HEADER)
        self._fresh(pair.valid[0], where)
        attributes = pair.valid[0].attributes
        at_home = (attributes.primary_dir, attributes.name) == (place.dir_id, name)
        homes = [*attributes.extra_homes, *self._record(attributes.file_id, attributes.extras, where).homes]
        if not at_home and self._keys.home_tag(place.dir_id, name) not in homes:
            self._found(where, self._suspicion(), "the file is not where it was written")

    def _fresh(self, newest: Slot, where: tuple[str, str]) -> None:
        if self._tools.freshness is None:
            return
        clear = newest.clear
        try:
            commit = Commit(clear.file_id, clear.generation, clear.session, newest.tag)
            require_fresh(self._tools.freshness, self._tools.rules, commit)
        except CorruptFile as error:
            self._found(where, DAMAGE, str(error))

    def _content(self, file: _Opened) -> None:
        newest, valid = file.pair.valid[0], file.pair.valid
        if file.verified is not None:
            self._count(newest, file.verified)
            return
        try:
            chunks = self._whole(newest, file.backing)
        except CorruptFile as error:
            older = valid[1] if len(valid) > 1 else None
            if older is None or self._tools.rules.trusts(newest.clear.session):
                raise
            self._whole(older, file.backing)
            self._found(file.where, UNCLEAN, f"the newest header does not verify, the one before does: {error}")
        else:
            if self._progress is not None:
                self._progress.add(file.backing.descriptor, newest, chunks)

    def _whole(self, slot: Slot, backing: PosixFile) -> int:
        keys = self._tools.provider.open(slot.clear.file_id, slot.clear.wrapped_key)
        chunks = verify(slot, None, keys, backing)
        self._count(slot, chunks)
        return chunks

    def _count(self, slot: Slot, chunks: int) -> None:
        self.report.chunks += chunks
        self.report.plain_bytes += slot.attributes.size


def _judged(error: KmsfsError) -> tuple[str, str, str]:
    """Return what a failure to read an entry means: its kind, the problem in words, and the remedy."""
    if isinstance(error, AccessDenied):
        return UNREAD, f"the key service refused its data key: {error}", ""
    if isinstance(error, UnsupportedFormat):
        return UNREAD, str(error), ""
    if isinstance(error, IntegrityError):
        return DAMAGE, str(error), SET_ASIDE
    # A disabled key, a daemon that is away, a disk that does not read: nothing is known of the file, so nothing is done to it.
    return UNREAD, f"it could not be looked into: {error}", ""
