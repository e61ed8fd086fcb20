"""The file system's core: what every family of operations shares. Guards, names, homes. No FUSE in here.

`Vfs` is put together from families of operations; each family is a mixin over `VfsBase`. Every public method is
called with `lock` held by the transport; background work takes the lock itself.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kmsfs.backing.extras import ExtrasStore
from kmsfs.backing.listings import ListingStore
from kmsfs.envelope.caching import CachingProvider
from kmsfs.envelope.freshness import Commit
from kmsfs.envelope.kf1file import FileTools
from kmsfs.errors import CorruptFile, CorruptVolume, IntegrityReason, KeyLease, KmsfsError, StorageError
from kmsfs.formats.fileheader import Attributes
from kmsfs.mount.attributes import Requester, owned_by
from kmsfs.mount.keysahead import KeysAhead
from kmsfs.mount.nodes import Node, NodeTable

_LOG = logging.getLogger("kmsfs.mount")
NAME_MAX = 255
_NAMES_HELD = 8192
_OWN_SECONDS = 1.5
"""We note a change so much before it happens at most."""
WRITTEN, MOVED_OUT, MOVED_IN, MADE, GONE = 0x08, 0x40, 0x80, 0x100, 0x200
"""What can happen to an entry, by the numbers of inotify(7): closed after writing, moved from and to, created, deleted."""


@dataclass(slots=True)
class VfsOptions:
    """How a volume is mounted."""

    read_only: bool = False
    bind: str = "enforce"
    kernel_times: bool = True
    """The kernel keeps modification times of cached writes and tells them by setattr."""
    put_off: bool = False
    """The transport calls `idle_step` while it waits: work that no answer depends on is left for then."""
    keys_ahead: bool = False
    """Data keys of files that will likely be opened next are fetched with those that are needed."""
    uid: int | None = None
    """Whose everything seems to be; None: whose it is on the backing store."""
    gid: int | None = None
    """As `uid`, of the group."""


@dataclass(frozen=True, slots=True)
class Recent:
    """A file that was closed after a commit that no barrier has covered; no two are equal."""

    durable_slot: int | None
    number: int
    commit: Commit | None = None
    """The commit that the next barrier covers; None of a new file that has none yet."""
    entry_synced: bool = False
    """Whether its names are beyond a power cut."""
    doubtful: bool = False
    """A barrier failed: a later one that succeeds says nothing about this commit (fsync(2), NOTES)."""


def _nobody_keeps(_dir_id: bytes, _key_id: str | None) -> None:
    raise OSError(errno.EOPNOTSUPP, "nobody is there to keep keys of directories")


class VfsBase:
    """State and steps that every family of operations uses."""

    def __init__(
        self,
        tools: FileTools,
        provider: CachingProvider,
        root_descriptor: int,
        root_dir_id: bytes,
        options: VfsOptions,
    ) -> None:
        self.lock = threading.RLock()
        self.tools = tools
        self.keys = tools.keys
        self.provider = provider
        self.options = options
        self.told = owned_by(options.uid, options.gid)
        self.nodes = NodeTable(root_descriptor, root_dir_id)
        self.extras = ExtrasStore(tools, root_descriptor)
        self.ahead = KeysAhead(tools.keys, time.monotonic) if options.keys_ahead else None
        self.recent: dict[tuple[int, int], Recent] = {}
        self.recent_counter = 0
        self.locked: KmsfsError | None = None
        self.revalidate: Callable[[], None] = lambda: None
        self.forget_directory: Callable[[Node], None] = lambda _node: None
        self.lease_holds: Callable[[], bool] = lambda: True
        self.taken_over: Callable[[], KmsfsError | None] = lambda: None
        """Tells why the volume is not held, where that is known."""
        self.privileged = os.geteuid() == 0
        self._sealed_names: dict[tuple[int, bytes], tuple[str, str | None]] = {}
        """Names on disk by directory and plain name: deterministic, so never wrong while the directory's node lives."""
        self.keep_attributes = True
        """Whether attributes of closed files are remembered: only where changes behind the mount are noticed."""
        self.fresh_directories: set[tuple[int, int]] = set()
        """Backing inodes of directories whose making no barrier has covered yet."""
        self.asked_by: int | None = None
        """The uid of whom the present request is for; None: of nobody's."""
        self.reading_through: tuple[Node, int | None] | None = None
        """The directory in which keys were last fetched, and the uid for whom."""
        self.volume_key_id = ""
        """The id of the volume's own KMS key."""
        self.directory_keys: dict[bytes, str] = {}
        """KMS keys of directories that have one of their own, by directory id."""
        self.store_directory_key: Callable[[bytes, str | None], None] = _nobody_keeps
        """Lets kmsd know a directory's key, or that it has none of its own."""
        self.dropped_directories: frozenset[bytes] = frozenset()
        """Directories with a key that were removed, until a barrier has covered that."""
        self.listings: ListingStore | None = None
        """What the files of directories said when they were last remembered."""
        self.removed_directories: set[bytes] = set()
        """Ids of directories whose listings are to be forgotten."""
        self.changes_behind = 0
        """How often something was changed behind the mount."""
        self.names_changed = False
        """Whether entries came, went or moved since the last tick."""
        self.healing_ends = False
        """Set to let `heal` return before it is done."""
        self.own_changes: dict[tuple[str, int], float] = {}
        """When we changed which entries, by their names on disk and what was done, as time.monotonic() has it."""
        self.own_changes_before: dict[tuple[str, int], float] = {}
        self.watched = False
        """Whether somebody tells of changes, and forgets our own in time."""

    # --- guards -----------------------------------------------------------------------------------------------

    def require_unlocked(self) -> None:
        """Refuse everything while the volume's own key may not be used.

        Raises:
            KmsfsError: why the key may not be used.
        """
        if not self.lease_holds():
            self.drop_keys()
            taken = self.taken_over()
            if taken is not None:
                raise taken.again()
            raise KeyLease("the key daemon is silent: the volume is unusable until it is back", hint="start kmsd")
        if self.locked is not None:
            self.revalidate()
            if self.locked is not None:
                raise self.locked.again()

    def changed_here(self, disk_name: str, *kinds: int) -> None:
        """Remember what we do to an entry ourselves, so that the watcher does not take it for somebody else's doing."""
        if self.watched:
            now = time.monotonic()
            for kind in kinds:
                self.own_changes[disk_name, kind] = now
        self.names_changed = True

    def changed_by_us(self, disk_name: str, kind: int, since: float) -> bool:
        """Whether what was done to an entry after `since`, as time.monotonic() has it, was likely our own doing."""
        when = self.own_changes.get((disk_name, kind)) or self.own_changes_before.get((disk_name, kind))
        return when is not None and when > since - _OWN_SECONDS

    def rotate_own_changes(self) -> None:
        """Forget our own changes of two rounds ago."""
        self.own_changes_before, self.own_changes = self.own_changes, {}

    def require_writable(self) -> None:
        """Refuse changes on a read-only mount.

        Raises:
            OSError: EROFS.
        """
        if self.options.read_only:
            raise OSError(errno.EROFS, "read-only mount")

    def check_name(self, name: bytes) -> None:
        """Refuse names that are too long.

        Raises:
            OSError: ENAMETOOLONG.
        """
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")

    # --- names ------------------------------------------------------------------------------------------------

    def disk_name(self, parent: Node, name: bytes) -> tuple[str, str | None]:
        """Return (name on disk, sidecar target) of an entry.

        Raises:
            OSError: ENOTDIR, ENAMETOOLONG.
            CorruptVolume: if the directory's id is damaged.
        """
        if not parent.is_dir:
            raise OSError(errno.ENOTDIR, "not a directory")
        self.check_name(name)
        place = (parent.node_id, name)
        sealed = self._sealed_names.get(place)
        if sealed is None:
            sealed = self.keys.seal_name(self.dir_id(parent), name)
            if len(self._sealed_names) >= _NAMES_HELD:
                self._sealed_names.clear()
            self._sealed_names[place] = sealed
        return sealed

    def dir_id(self, node: Node) -> bytes:
        """Return a directory's id, checked against its place."""
        if node.damage is not None:
            raise node.damage.again()
        if not node.dir_id:
            place = node.place()
            if place is None:
                raise OSError(errno.ENOENT, "directory was removed")
            self._load_dir_id(node, *place)
        return node.dir_id

    def _load_dir_id(self, node: Node, parent: Node, name: bytes, disk_name: str) -> None:
        try:
            target = os.readlink(f"{disk_name}/.kd", dir_fd=self.nodes.descriptor(parent))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            self._remake_dir_id(node, parent, name)
            return
        dir_id, tags = self.keys.open_dir_id(target)
        if self.keys.dir_tag(self.dir_id(parent), name) not in tags:
            self.misplaced(f"directory {name!r}")
        node.dir_id, node.dir_tags = dir_id, tags

    def _remake_dir_id(self, node: Node, parent: Node, name: bytes) -> None:
        """A crash between mkdir and its id leaves an empty directory: give it one. Anything else is damage."""
        descriptor = self.nodes.descriptor(node)
        if self.tools.rules.clean or os.listdir(descriptor) or self.options.read_only:
            raise CorruptVolume("a directory has lost its id", hint="unmount and run `kmsfs check CIPHERDIR`")
        node.dir_id = self.tools.rng(16)
        node.dir_tags = [self.keys.dir_tag(self.dir_id(parent), name)]
        os.symlink(self.keys.seal_dir_id(node.dir_id, node.dir_tags), ".kd", dir_fd=descriptor)
        self.fresh_directories.add(node.key)

    def removed(self, directory: Node) -> bool:
        """Whether a directory is gone, and only known still to who has it open or found it before."""
        return directory is not self.nodes.root and not directory.names

    def misplaced(self, what: str) -> None:
        """Something is not where it was put: EIO on a clean volume, a warning after a crash.

        Raises:
            CorruptFile: on a clean volume that binds homes.
        """
        if self.options.bind == "enforce" and self.tools.rules.clean:
            raise CorruptFile(f"{what} is not where it was written", IntegrityReason.HOME)
        if self.options.bind != "off":
            _LOG.warning(
                "%s is not where it was written; accepted because the last session ended uncleanly", what
            )

    def check_home(self, attributes: Attributes, parent: Node, name: bytes) -> None:
        """Check that a file's header names this entry as one of its homes.

        Raises:
            CorruptFile: if it does not, on a clean volume.
        """
        if not self.at_home(attributes, parent, name):
            self.misplaced(f"file {name!r}")

    def at_home(self, attributes: Attributes, parent: Node, name: bytes) -> bool:
        """Whether a file's header, or its record, names this entry as one of its homes."""
        dir_id = self.dir_id(parent)
        if attributes.primary_dir == dir_id and attributes.name == name:
            return True
        if not attributes.extra_homes and not attributes.extras:
            return False
        tag = self.keys.home_tag(dir_id, name)
        if tag in attributes.extra_homes:
            return True
        return bool(attributes.extras) and tag in self.extras.load(attributes.file_id, attributes.extras).homes

    def new_owner(self, above: os.stat_result, who: Requester) -> tuple[int, int]:
        """Return whose a new entry of a directory is on the backing store, where we may choose: a setgid directory hands down its group."""
        uid = who.uid if self.options.uid is None else 0
        if above.st_mode & stat.S_ISGID:
            return uid, above.st_gid
        return uid, who.gid if self.options.gid is None else 0

    # --- KMS keys ---------------------------------------------------------------------------------------------

    def key_for(self, directory: Node) -> str:
        """Return the id of the KMS key that new files of a directory get; nothing stands for the volume's own."""
        if self.directory_keys:
            for above in self.with_parents(directory):
                key_id = self.directory_keys.get(self.dir_id(above))
                if key_id is not None:
                    return key_id
        return ""

    # --- directories' durability ------------------------------------------------------------------------------

    def sync_fresh_directories(self, node: Node) -> None:
        """Make the ids of directories made in this session durable, from the root down to this one, once each."""
        for above in reversed(self.with_parents(node)):
            if above.key in self.fresh_directories:
                self.sync_directory(above)
                self.fresh_directories.discard(above.key)

    def with_parents(self, node: Node) -> list[Node]:
        """Return a directory and all above it."""
        chain = [node]
        while (place := chain[-1].place()) is not None:
            chain.append(place[0])
        return chain

    def sync_directory(self, node: Node) -> None:
        """Fsync a directory.

        Raises:
            StorageError: if the disk refuses.
        """
        try:
            os.fsync(self.nodes.descriptor(node))
        except OSError as error:
            raise StorageError(
                "a directory could not be stored", os_errno=error.errno or errno.EIO
            ) from error

    def drop_keys(self) -> None:
        """Forget every key; the family that holds open files does more."""
        self.provider.drop()
