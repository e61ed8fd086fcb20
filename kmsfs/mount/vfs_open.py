"""Open files: opening, keeping at hand, storing after the last close, forgetting keys.

What no answer depends on is put off until the transport waits: storing a released file, closing descriptors,
deriving keys that will be needed. That is only done while the backing store has room, so that a full disk is
reported by the call that meets it.
"""

import contextlib
import errno
import logging
import os
import resource
import stat
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from kmsfs.backing.posix import PosixFile
from kmsfs.envelope.kf1file import Kf1File
from kmsfs.envelope.slots import SlotPair, read_slots
from kmsfs.errors import KmsfsError
from kmsfs.formats.fileheader import SLOT_BYTES, Attributes
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import WRITTEN, Recent, VfsBase

_LOG = logging.getLogger("kmsfs.mount")
_RESTING_MAX = 4096
_PUT_OFF_MAX = 256
"""Released files and closed descriptors that may wait; past that the oldest is done at once."""
_ROOM_BYTES = 16 << 20
_SMALL_BYTES = 64 << 10
_ROOM_LOOKS = 64
"""Free space is looked at once in so many things put off."""
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class OpenFiles(VfsBase):
    """What happens to open files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open_files: dict[Node, None] = {}
        self.resting: OrderedDict[Node, None] = OrderedDict()
        """Files that nobody has open, kept without keys so that the next open, rename or utimens is cheap."""
        self.resting_max = min(_RESTING_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self.settling: OrderedDict[Node, None] = OrderedDict()
        """Files that nobody has open and that wait to be stored."""
        self.restless: dict[Node, None] = {}
        """Open small files that were written: stored when nobody has asked for anything for a while."""
        self.changes_lost = False
        """Whether a header may lack what was done to its file last, such as its place: the next session has to look."""
        self._warming: Node | None = None
        self._trash: list[tuple[Kf1File, list[str]]] = []
        """Files to be closed, with their names on disk: closing what was open for writing is an event."""
        self._looks_left = 0
        self._next_complaint = 0.0
        # What a barrier that fails may have lost is written once more, by the file's name.
        self.nodes.waits = lambda node: node.key in self.recent

    # --- open files -------------------------------------------------------------------------------------------

    def open_backing(self, parent: Node, disk_name: str, facts: os.stat_result, *, write: bool) -> PosixFile:
        """Open an entry's backing file.

        Raises:
            OSError: as open(2).
        """
        flags = (os.O_RDWR if write else os.O_RDONLY) | _OPEN_FLAGS
        directory = self.nodes.descriptor(parent)
        try:
            return PosixFile(os.open(disk_name, flags, dir_fd=directory))
        except PermissionError:
            if facts.st_uid != os.geteuid():
                raise
            # The owner's own mode bits bar us, not the owner of the data: the kernel has checked those.
            mode = stat.S_IMODE(facts.st_mode)
            os.chmod(disk_name, mode | 0o600, dir_fd=directory)
            try:
                return PosixFile(os.open(disk_name, flags, dir_fd=directory))
            finally:
                os.chmod(disk_name, mode, dir_fd=directory)

    def acquire(self, node: Node, *, at_home: bool = True) -> Kf1File:
        """Return the node's open file, opening it if needed; every call needs a `give_back`.

        `at_home` is False only while a rename has moved the entry and its header does not know yet.

        Raises:
            CorruptFile, KmsfsError, OSError: if it cannot be opened.
        """
        if node.damage is not None:
            raise node.damage.again()
        if node.file is None:
            place = node.place()
            if place is None:
                raise OSError(errno.ESTALE, "the name is gone; the kernel looks again")
            parent, name, disk_name = place
            facts = os.stat(disk_name, dir_fd=self.nodes.descriptor(parent), follow_symlinks=False)
            backing = self.open_backing(parent, disk_name, facts, write=not self.options.read_only)
            try:
                node.file = self._open_file(node, backing, facts)
                if at_home:
                    self.check_home(node.file.attributes, parent, name)
            except BaseException:
                node.file = None
                backing.close()
                raise
            node.descriptor = backing.descriptor
            self.open_files[node] = None
        else:
            self.resting.pop(node, None)
            self.settling.pop(node, None)
        node.handles += 1
        return node.file

    def reopen(self, node: Node, descriptor: int) -> None:
        """Take over a file that another image of this process had open and stored, or had parted from.

        Raises:
            KmsfsError: if its header cannot be read; operations on it are refused then, until it is closed.
        """
        backing = PosixFile(descriptor)
        node.file = Kf1File.open_pair(self.tools, backing, read_slots(self.keys, backing), None, known=False)
        node.descriptor = descriptor
        self.open_files[node] = None
        if not node.handles:
            self._rest(node, node.file)

    def _open_file(self, node: Node, backing: PosixFile, facts: os.stat_result) -> Kf1File:
        if not facts.st_size and not self.tools.rules.clean:
            # Created by a session that crashed before its first commit: it is empty.
            place = node.place()
            key_id = self.key_for(place[0]) if place is not None else ""
            made = Kf1File.create(self.tools, backing, self.provider.fresh(key_id))
            if place is not None:
                made.attributes.primary_dir, made.attributes.name = self.dir_id(place[0]), place[1]
            made.attributes.mtime_ns = made.attributes.btime_ns = facts.st_mtime_ns
            return made
        self._write_again(node, backing)
        return Kf1File.open_pair(self.tools, backing, self._headers_of(node, backing), *self._durability_of(node))

    def _headers_of(self, node: Node, backing: PosixFile) -> SlotPair:
        """Read a file's headers, unless they were when its key was fetched ahead."""
        held = self.ahead.take_headers(node.key[1], backing) if self.ahead is not None else None
        return held or read_slots(self.keys, backing)

    def keep_open(self, node: Node, parent: Node, disk_name: str, facts: os.stat_result) -> None:
        """Open a looked-up file without its key and let it rest, if its headers need no recovery and no repair."""
        if not self.keep_attributes or not facts.st_size:
            return
        flags = (os.O_RDONLY if self.options.read_only else os.O_RDWR) | _OPEN_FLAGS
        try:
            backing = PosixFile(os.open(disk_name, flags, dir_fd=self.nodes.descriptor(parent)))
        except OSError:
            return
        file = None
        try:
            self._write_again(node, backing)
            pair = self._headers_of(node, backing)
            if pair.valid and pair.damaged is None and self.tools.rules.trusts(pair.valid[0].clear.session):
                file = Kf1File.open_pair(self.tools, backing, pair, *self._durability_of(node))
        except KmsfsError:
            return
        finally:
            if file is None:
                backing.close()
        if file is not None:
            node.file, node.descriptor = file, backing.descriptor
            self.open_files[node] = None
            self._rest(node, file)

    def _durability_of(self, node: Node) -> tuple[int | None, bool]:
        """Return (slot of the last durable commit, whether this mount committed since) of a closed file."""
        known = self.recent.get(node.key)
        if known is None:
            return None, False
        node.synced_entry = node.synced_entry and known.entry_synced
        return known.durable_slot, True

    def _write_again(self, node: Node, backing: PosixFile) -> None:
        """Before a file is opened: if a barrier failed since its last commits, let the next one store them.

        Raises:
            StorageError: if what the file holds cannot be written once more.
        """
        known = self.recent.get(node.key)
        if known is not None and known.doubtful:
            backing.rewrite()
            self.recent_counter += 1
            self.recent[node.key] = replace(known, number=self.recent_counter, doubtful=False)

    def give_back(self, node: Node) -> None:
        """Undo `acquire`. The last one stores the file, now or soon; it rests open for a while, without keys.

        A file that cannot be stored stays as it is and is tried again.
        """
        node.handles -= 1
        file = node.file
        if node.handles or file is None:
            return
        if file.dirty and not file.failed and self.linked(node) and self.may_put_off():
            self.settling[node] = None
            if len(self.settling) > _PUT_OFF_MAX:
                self.settle(self.settling.popitem(last=False)[0])
            return
        self.settle(node)

    def linked(self, node: Node) -> bool:
        """Whether an open file has a name left: one that is known here, or a hard link that nobody has looked up yet."""
        return bool(node.names) or os.fstat(node.descriptor).st_nlink > 0

    def settle(self, node: Node) -> None:
        """Store a file that nobody has open, and let it rest; one that cannot be stored is tried again later."""
        file = node.file
        if file is None or node.handles:
            return
        try:
            if file.failed or self.options.read_only:
                self.close_file(node)
                return
            if not self.linked(node):
                self.part(node)
                return
            file.commit()
        except (KmsfsError, OSError) as error:
            self.complain("a file could not be stored yet: %s; it is kept in memory and tried again", error)
            return
        self._rest(node, file)

    def part(self, node: Node) -> None:
        """Close a file whose last name is gone and that nobody has open, but not before the kernel lets go of it.

        Whoever found it while it had its name may still open it, as on any file system; there is no second look to take. Where
        room is short it is closed at once: who removes something to make room has it when the call returns.
        """
        file = node.file
        if file is None or node.handles:
            return
        room = self.may_put_off() if file.size < _SMALL_BYTES else self.room_left()
        if node.lookups <= 0 or file.failed or not room:
            self.close_file(node)
            return
        self.settling.pop(node, None)
        self.restless.pop(node, None)
        self._rest(node, file)

    def forget(self, node: Node, lookups: int) -> None:
        """Take back lookups of the kernel's."""
        self.nodes.forget(node, lookups)
        file = node.file
        if file is None or node.names or node.handles or node.lookups > 0:
            return
        if file.dirty:
            self.settle(node)
        else:
            self.close_file(node)

    def close_parted(self) -> None:
        """Close what `part` keeps: the kernel will not be heard any more."""
        for node in list(self.resting):
            if not node.names and not self.linked(node):
                self.close_file(node)

    def complain(self, text: str, error: Exception) -> None:
        """Log what may happen to every file of a full disk at once: at most one line a second.

        A log that nobody reads fast enough would hold up the whole mount.
        """
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + 1.0
            _LOG.error(text, error)

    def _rest(self, node: Node, file: Kf1File) -> None:
        file.rest()
        self.resting[node] = None
        if len(self.resting) > self.resting_max:
            self.close_file(next(iter(self.resting)))

    def close_file(self, node: Node) -> None:
        """Commit and close a node's file.

        Raises:
            StorageError: if it cannot be committed; it stays open.
        """
        file = node.file
        if file is None:
            return
        linked = self.linked(node)
        if linked and not file.failed and not self.options.read_only:
            file.commit()
            if file.provisional or not node.synced_entry:
                self.recent_counter += 1
                self.recent[node.key] = Recent(
                    file.durable_slot, self.recent_counter, file.last_commit(), node.synced_entry
                )
            else:
                self.recent.pop(node.key, None)
        elif linked and file.failed:
            # What the disk has of the last commits is unknown: the durable one stays the base, and is not written over.
            self.changes_lost = self.changes_lost or file.dirty
            self.recent_counter += 1
            self.recent[node.key] = Recent(
                file.durable_slot, self.recent_counter, entry_synced=node.synced_entry, doubtful=True
            )
        if not linked:
            self.file_gone(file.attributes)
        node.file = None
        node.descriptor = -1
        self.open_files.pop(node, None)
        for waiting in (self.resting, self.settling, self.restless):
            waiting.pop(node, None)
        node.attributes = file.attributes if self.keep_attributes and not file.failed else None
        self._trash.append((file, list(node.names.values())))
        if len(self._trash) > _PUT_OFF_MAX or not self.may_put_off():
            self._close_one()
        self.nodes.drop_if_unused(node)

    def file_gone(self, attributes: Attributes) -> None:
        """Forget what is kept of a file whose last name is gone and that nobody has open."""
        if attributes.extras:
            self.record_gone(attributes.file_id)
        self.file_removed(attributes.file_id)

    def record_gone(self, owner: bytes) -> None:
        """Remove the record of a file or directory that is gone, whether that works or not; `kmsfs check` names what is left."""
        try:
            self.extras.remove(owner)
        except (KmsfsError, OSError) as error:
            self.complain("extended attributes of what was removed could not be removed: %s", error)

    def file_removed(self, file_id: bytes) -> None:
        """Let the next barrier take a file out of the freshness records."""
        if self.tools.freshness is not None:
            self.tools.freshness.gone(file_id)
            self.names_changed = True

    # --- putting off ------------------------------------------------------------------------------------------

    def may_put_off(self) -> bool:
        """Whether work may wait: somebody will do it soon, and the backing store will have room for it then."""
        if not self.options.put_off:
            return False
        self._looks_left -= 1
        if self._looks_left < 0:
            if not self.room_left():
                return False
            self._looks_left = _ROOM_LOOKS
        return True

    def room_left(self) -> bool:
        """Whether the backing store has room for what is put off."""
        space = os.fstatvfs(self.nodes.root.descriptor)
        return space.f_bavail * space.f_frsize > _ROOM_BYTES

    def nothing_free(self) -> bool:
        """Whether the backing store has no room for even one header."""
        space = os.fstatvfs(self.nodes.root.descriptor)
        return space.f_bavail * space.f_frsize < SLOT_BYTES

    def warm(self, node: Node) -> None:
        """Prepare an opened file's keys and map while its opener wakes up."""
        self._warming = node

    def idle_step(self) -> bool:
        """Do one piece of what was put off, some tens of microseconds; return whether there was any."""
        node, self._warming = self._warming, None
        if node is not None:
            if node.file is not None and node.handles:
                with contextlib.suppress(KmsfsError, OSError):
                    node.file.unlock()
        elif self.settling:
            self.settle(self.settling.popitem(last=False)[0])
        elif self._trash:
            self._close_one()
        else:
            return self._fetch_step() or self.provider.prepare()
        return True

    def _fetch_step(self) -> bool:
        """Get on with fetching the keys of files that will likely be opened next; return whether there was anything to do."""
        if self.ahead is None or self.reading_through is None:
            return False
        if self.provider.awaits:
            return self.provider.take_coming(wait=False)
        directory, asked_by = self.reading_through
        used = self.provider.ahead_used
        if not self.nodes.holds(directory):
            self.reading_through = None
            return False
        if self.ahead.look_further(directory.node_id, self.nodes.descriptor(directory), used):
            return True
        wanted = self.ahead.take_further(used)
        if not wanted:
            return False
        self.asked_by = asked_by
        try:
            self.provider.fetch_soon(wanted)
        except KmsfsError:
            # Whoever opens one of the files asks again, and learns why.
            self.reading_through = None
        finally:
            self.asked_by = None
        return True

    def quiet_step(self) -> bool:
        """Store one small file that is open and was written; return whether there was any. For longer silences."""
        while self.restless:
            node, _ = self.restless.popitem()
            if node.file is not None and node.file.dirty and not node.file.failed:
                try:
                    node.file.commit()
                except (KmsfsError, OSError) as error:
                    self.complain("a file could not be stored yet: %s; it is tried again", error)
                return True
        return False

    def empty_trash(self) -> None:
        """Close what waits to be closed, which gives space of removed files back."""
        while self._trash:
            self._close_one()

    def _close_one(self) -> None:
        file, names = self._trash.pop()
        if self.watched:
            self.own_changes.update(dict.fromkeys(((name, WRITTEN) for name in names), time.monotonic()))
        file.close()

    # --- revocation -------------------------------------------------------------------------------------------

    def drop_keys(self) -> None:
        """Commit what was written under the keys, then forget them all: the next use asks the daemon again."""
        for node in list(self.open_files):
            file = node.file
            if file is None:
                continue
            if file.dirty and file.file_keys is not None and not self.options.read_only:
                try:
                    file.commit()
                except (KmsfsError, OSError) as error:
                    _LOG.error("a file could not be stored before its key was dropped: %s", error)
            file.lock()
        self.provider.drop()
