"""The life of a mount: open the volume, attach, serve, and end cleanly."""

import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kmsfs import __version__
from kmsfs.aead.selfcheck import run_self_check
from kmsfs.backing.freshness import FreshnessStore
from kmsfs.backing.listings import ListingStore
from kmsfs.client.provider import SocketKeySource
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.client.watch import RESUMED, KeyWatcher
from kmsfs.clock import passed
from kmsfs.envelope.caching import CachingProvider
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import (
    Conflict,
    CorruptVolume,
    KmsfsError,
    StorageError,
    UnsupportedFormat,
    UsageError,
    VolumeBusy,
)
from kmsfs.formats.handover import STATE_VERSION, Inheritance
from kmsfs.formats.volume import CONFIG_NAME
from kmsfs.mount.control import MountControl
from kmsfs.mount.durability import TICK_SECONDS, Vfs
from kmsfs.mount.following import FollowerRules, FollowingVfs
from kmsfs.mount.freshness import open_records, resume_records
from kmsfs.mount.handover import (
    HELD_BACK,
    changed_meanwhile,
    execute_next,
    pack_nodes,
    require_startable,
    resume_lease,
    store_all,
    tell_taken_over,
    unpack_nodes,
)
from kmsfs.mount.hardening import forbid_dumps
from kmsfs.mount.idle import IdleWatch
from kmsfs.mount.kernel.attach import MountOptions, attach, detach
from kmsfs.mount.kernel.notify import KernelNotifier
from kmsfs.mount.kernel.pruning import Pruner
from kmsfs.mount.kernel.session import KernelSession
from kmsfs.mount.kernel.wakeups import DEVICE, WakeUps
from kmsfs.mount.kernel.wire import MAX_WRITE
from kmsfs.mount.keypool import PoolFiller
from kmsfs.mount.listed import listings_path
from kmsfs.mount.mounttable import VIEW, VOLUME, device_of, find_mounted, holds_mounts
from kmsfs.mount.otherkeys import OtherKeys
from kmsfs.mount.request import MountRequest, check_places
from kmsfs.mount.vfs import VfsOptions
from kmsfs.mount.volume import (
    OpenVolume,
    VolumeLease,
    decrypt_volume_keys,
    default_key,
    inherit_volume,
    make_volume,
    open_volume,
    require_chunk,
)
from kmsfs.quantity import DEFAULT_CHUNK_LOG2

if TYPE_CHECKING:
    from kmsfs.mount.watch import CipherWatcher

_Got = TypeVar("_Got")
_LOG = logging.getLogger("kmsfs.mount")
_RETRY_SECONDS = 1.0
_REVALIDATE_SECONDS = 1.0
_NOTIFY_SECONDS = 1.0
_DESCRIPTORS = 8192
_COLLECT_EVERY = 10_000
"""Objects made between two looks at the youngest generation."""
_REVOKING = frozenset(
    {"disabled", "pending-deletion", "deleted", "policy", "grant-ended", "material-destroyed", RESUMED}
)


@dataclass(frozen=True, slots=True)
class Successor:
    """How the next image of a mount's process is executed: the command, before its own arguments, and what it has to know."""

    command: tuple[str, ...]
    context: dict[str, Any]


class RunningMount:
    """One mounted volume; with `inherited`, one that the image of this process before has mounted."""

    def __init__(
        self, request: MountRequest, session: ClientSession, successor: Successor, inherited: Inheritance | None = None
    ) -> None:
        self._request = request
        self._session = session
        self._successor = successor
        self._inherited = inherited
        # Before it is mounted: looking at our own mountpoint, we would wait for ourselves.
        self._point = os.path.realpath(request.mountpoint) if inherited is None else os.fsdecode(inherited.point)
        self._stopping = threading.Event()
        self._storing = threading.Lock()
        self._healer: threading.Thread | None = None
        self._volume = self._open() if inherited is None else self._open_again(inherited)
        config = self._volume.config
        self._lease = VolumeLease(config, read_only=request.read_only)
        if inherited is not None:
            resume_lease(self._lease, inherited)
        self._lease_transport: Transport | None = None
        self._taken: VolumeBusy | None = None
        """Why the lease was refused when the daemon came back, if it was."""
        _patiently(lambda: self._claim(patiently=True), forever=inherited is not None)
        self._records = self._open_records() if inherited is None else self._resume_records(inherited)
        self._watcher = KeyWatcher(session, [config.key_arn], self._on_event, self._keep_lease)
        self._watcher.start()
        self._key_id = config.key_arn.rpartition("/")[2]
        self._other_keys = OtherKeys(session, self._key_id, self._on_event)
        self.vfs = self._make_vfs()
        self._filler = PoolFiller(self.vfs, SocketKeySource(session.patient(), config.key_arn))
        self._notifier: KernelNotifier | None = None
        self._last_revalidation = 0.0

    # --- opening ----------------------------------------------------------------------------------------------

    def _open(self) -> OpenVolume:
        request = self._request
        if not (request.cipher_dir / CONFIG_NAME).exists():
            if request.read_only:
                raise UsageError(f"{request.cipher_dir} holds no kmsfs volume")
            key = request.key or default_key(self._session, os.getuid())
            make_volume(request.cipher_dir, self._session, key, request.chunk_log2 or DEFAULT_CHUNK_LOG2)
        elif request.chunk_log2 is not None:
            require_chunk(request.cipher_dir, request.chunk_log2)
        return open_volume(request.cipher_dir, self._session, read_only=request.read_only, follow=request.follow)

    def _open_again(self, inherited: Inheritance) -> OpenVolume:
        return _patiently(
            lambda: inherit_volume(self._request.cipher_dir, self._session, inherited.cipher_dir), forever=True
        )

    def _claim(self, *, patiently: bool = False) -> None:
        """Hold the volume on a new connection; one on which that was refused holds nothing, so it is not kept.

        Raises:
            VolumeBusy, KmsfsError: as `VolumeLease.claim`.
        """
        if self._lease_transport is not None:
            self._lease_transport.close()
            self._lease_transport = None
        transport = self._session.open_transport()
        try:
            if patiently:
                self._lease.claim_patiently(transport)
            else:
                self._lease.claim(transport)
        except KmsfsError:
            transport.close()
            raise
        self._lease_transport = transport

    def _open_records(self) -> FreshnessStore | None:
        if self._request.follow:
            # They are the writer's, and behind what he writes.
            return None
        try:
            return open_records(self._volume.keys, self._lease, self._request.cipher_dir, read_only=self._request.read_only)
        except KmsfsError:
            # Nothing was changed in this session.
            self._lease.end()
            raise

    def _resume_records(self, inherited: Inheritance) -> FreshnessStore | None:
        if not inherited.records:
            return None
        return resume_records(self._volume.keys, self._lease, self._request.cipher_dir, read_only=self._request.read_only)

    def _keep_lease(self) -> None:
        """The daemon has spoken: make sure that the lease is ours on a live connection."""
        if self._lease_transport is not None and self._lease_transport.idle():
            return
        try:
            self._claim()
        except VolumeBusy as error:
            if self._taken is None:
                _LOG.error("nothing more is stored: %s", error)
            self._taken = error
            raise
        self._taken = None

    def _make_vfs(self) -> Vfs:
        config, keys = self._volume.config, self._volume.keys
        # Where others may enter, the audit log names the user of each call beside the mount, which is who kmsd authorises.
        source = SocketKeySource(
            self._session, config.key_arn, lambda: self.vfs.asked_by if self._request.allow_other else None
        )
        provider = CachingProvider(
            config.volume_id, source, passed, os.urandom, lambda: self._watcher.alive, self._other_keys
        )
        kind = FollowerRules if self._request.follow else SessionRules
        rules = kind(self._lease.number, set(self._lease.unclean), self._request.recover, lambda: self._lease.may_store(self._watcher.silent))
        scratch = bytearray(2 * MAX_WRITE + (1 << 18))
        tools = FileTools(keys, provider, rules, os.urandom, config.chunk_log2, scratch, self._records)
        request = self._request
        by_kernel = request.transport == "kernel"
        options = VfsOptions(
            request.read_only, config.bind, kernel_times=by_kernel and request.cache == "full", put_off=by_kernel,
            keys_ahead=request.keys_ahead and not request.follow, uid=request.uid, gid=request.gid,
        )  # fmt: skip
        vfs = (FollowingVfs if self._request.follow else Vfs)(tools, provider, self._volume.descriptor, config.root_id, options)
        vfs.volume_key_id = self._key_id
        vfs.directory_keys = self._lease.directory_keys
        vfs.store_directory_key = self._lease.set_directory_key
        vfs.revalidate = self._revalidate
        vfs.lease_holds = lambda: self._watcher.alive
        vfs.taken_over = lambda: self._taken
        if not self._request.follow:
            vfs.listings = ListingStore(keys.listing, listings_path(config.volume_id))
        return vfs

    # --- serving ----------------------------------------------------------------------------------------------

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Attach, serve until unmounted, and end the session.

        Raises:
            UsageError, StorageError: if it cannot be mounted.
        """
        if not self._request.read_only:
            self._filler.start()
        # What happened between the Decrypt of the volume's key and the watch stream's beginning was told to nobody.
        self._revalidate(force=True)
        options = MountOptions(
            os.fspath(self._request.cipher_dir), self._request.allow_other, self._request.read_only
        )
        try:
            if self._request.transport == "kernel":
                self._serve_kernel(options, on_ready)
            else:
                self._serve_fusepy(options, on_ready)
        finally:
            self._finish()

    def _start_threads(self) -> None:
        threading.Thread(target=self._tick_loop, name="kmsfs-tick", daemon=True).start()
        self._start_healing()

    def _start_healing(self) -> None:
        if self._lease.unclean and not self._request.read_only:
            self.vfs.healing_ends = False
            self._healer = threading.Thread(target=self._heal, name="kmsfs-heal", daemon=True)
            self._healer.start()

    def _serve_kernel(self, options: MountOptions, on_ready: Callable[[], None]) -> None:
        from kmsfs.mount.watch import CipherWatcher

        inherited = self._inherited
        descriptor = attach(self._request.mountpoint, options) if inherited is None else inherited.fuse
        for number in HELD_BACK:
            signal.signal(number, self._stop_from_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        notifier = self._notifier = KernelNotifier(descriptor)
        guarded = options.allow_other or os.geteuid() != 0
        wake_ups = WakeUps(DEVICE if self._request.low_latency else None)
        kernel = KernelSession(
            self.vfs, descriptor, wake_ups, check_permissions=guarded, follows=self._request.follow, cache=self._request.cache
        )
        if inherited is not None:
            unpack_nodes(inherited, self.vfs, kernel.directories)
        nothing_kept = self._request.follow or self._request.cache == "none"
        watcher = CipherWatcher(self.vfs, notifier, kernel.lifetimes, nothing_kept=nothing_kept)
        kernel.watch_directories(watcher.add)
        self.vfs.forget_directory = watcher.forget
        if inherited is not None:
            watcher.add_known()
            stale = changed_meanwhile(inherited, self.vfs)
            threading.Thread(target=self._catch_up, args=(watcher, stale), name="kmsfs-catch-up", daemon=True).start()
        self._start_threads()
        pruner = Pruner(self.vfs, notifier, self._request.memory_bytes, lambda: holds_mounts(self._point))
        pruner.start()
        idle = IdleWatch(self._request.idle_seconds or 0, lambda: kernel.requests, lambda: detach(self._request.mountpoint))
        if self._request.idle_seconds:
            idle.start()
        control = MountControl(device_of(self._point), lambda: require_startable(self._successor.command), kernel.leave)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY)
        on_ready()
        # From here on modes come with the requests, their makers' umasks applied. Not before: what lies outside of the
        # volume, folders and logs, is made under the user's own.
        os.umask(0)
        try:
            while kernel.serve():
                self._hand_over(kernel, descriptor, control, notifier)
        finally:
            control.close()
            idle.close()
            pruner.close()
            wake_ups.close()
            watcher.close()
            os.close(descriptor)

    def _catch_up(self, watcher: "CipherWatcher", stale: list[int]) -> None:
        """Let the kernel look again at what may have changed while one image of this process followed the other."""
        self._drop_pages()
        watcher.forget_entries(stale)

    def _hand_over(
        self, kernel: KernelSession, descriptor: int, control: MountControl, notifier: KernelNotifier
    ) -> None:
        """Execute the next image of this process. Returns only where that cannot be: then this one goes on."""
        since_ns = time.monotonic_ns()
        try:
            self.vfs.healing_ends = True
            if self._healer is not None:
                self._healer.join()
            with self._storing, notifier.held_back(_NOTIFY_SECONDS) as quiet:
                if not quiet:
                    raise Conflict("the kernel is being told of changes", hint="try again in a moment")
                self._revalidate(force=True)
                if self.vfs.locked is not None:
                    raise self.vfs.locked.again()
                store_all(self.vfs)
                with self.vfs.lock:
                    state = self._state(kernel, descriptor, control, since_ns)
                    execute_next(state, [*self._successor.command, "mount", str(self._request.cipher_dir), self._point])
        except Exception as error:
            # Whatever it is: nothing has been given up, and without this process the mount would be gone.
            control.refuse(error)
            self._start_healing()

    def _state(
        self, kernel: KernelSession, descriptor: int, control: MountControl, since_ns: int
    ) -> Inheritance:
        lease, asked = self._lease, control.connection
        return Inheritance(
            state_version=STATE_VERSION, kmsfs_version=__version__, request=self._request.plain(),
            context=self._successor.context, point=os.fsencode(self._point), fuse=descriptor, cipher_dir=self._volume.descriptor,
            answer=asked.fileno() if asked is not None else -1, since_ns=since_ns,
            session=lease.number, unclean=sorted(lease.unclean), head=lease.head, may_begin=lease.may_begin,
            directory_keys={directory.hex(): key for directory, key in self.vfs.directory_keys.items()},
            records=self._records is not None, **pack_nodes(self.vfs, kernel.directories),
        )  # fmt: skip

    def _serve_fusepy(self, options: MountOptions, on_ready: Callable[[], None]) -> None:
        from kmsfs.mount import fusepy

        def ready() -> None:
            self._start_threads()
            on_ready()
            os.umask(0)

        fusepy.serve(self.vfs, self._request.mountpoint, options, ready)

    def _stop_from_signal(self, _number: int, _frame: Any) -> None:
        # umount waits for dirty pages that only this thread can take, so another thread asks for it.
        threading.Thread(target=self._unmount_ourselves, name="kmsfs-unmount", daemon=True).start()

    def _unmount_ourselves(self) -> None:
        try:
            detach(self._request.mountpoint)
        except UsageError:
            detach(self._request.mountpoint, lazy=True)

    def _finish(self) -> None:
        self._stopping.set()
        if not self._request.read_only:
            self._filler.close()
        stored = False
        try:
            stored = self.vfs.finish()
        except KmsfsError as error:
            _LOG.error("the volume could not be stored completely: %s", error)
        self._watcher.close()
        self._other_keys.close()
        if stored:
            try:
                self._end_lease()
            except KmsfsError as error:
                _LOG.warning("the key daemon could not be told of the clean end: %s", error)
        self.vfs.extras.close()
        if self.vfs.listings is not None:
            self.vfs.listings.close()
        os.close(self._volume.descriptor)

    def _end_lease(self) -> None:
        head = self._records.finish() if self._records is not None and not self._request.read_only else None
        try:
            self._lease.end(head)
        except KmsfsError:
            self._claim()
            self._lease.end(head)

    # --- background -------------------------------------------------------------------------------------------

    def _tick_loop(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            try:
                with self._storing:
                    self.vfs.tick()
            except (KmsfsError, OSError) as error:
                _LOG.error("the volume could not be synced: %s", error)

    def _heal(self) -> None:
        bad = self.vfs.heal()
        if self.vfs.healing_ends:
            return
        if bad:
            _LOG.error("%d entries could not be recovered; the volume stays marked as unclean", bad)
            return
        try:
            with self.vfs.lock:
                self._lease.healed()
                self.vfs.tools.rules.unclean.clear()
        except KmsfsError as error:
            _LOG.warning("the key daemon could not be told that the volume is healed: %s", error)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["kind"] not in _REVOKING and not (event["kind"] == "enabled" and self.vfs.locked):
            return
        with self.vfs.lock:
            self.vfs.drop_keys()
            self._last_revalidation = 0.0
            self._revalidate(force=True)
        self._drop_pages()

    def _drop_pages(self) -> None:
        if self._notifier is None:
            return
        with self.vfs.lock:
            files = [node.node_id for node in self.vfs.nodes.all_nodes() if node.is_file]
            for node in self.vfs.nodes.all_nodes():
                node.keep_cache = False
        for node_id in files:
            self._notifier.drop_inode(node_id)

    def _revalidate(self, *, force: bool = False) -> None:
        """Ask again whether the volume's own key may be used; at most once a second unless something changed."""
        now = time.monotonic()
        if not force and now - self._last_revalidation < _REVALIDATE_SECONDS:
            return
        self._last_revalidation = now
        try:
            decrypt_volume_keys(self._volume.config, self._session)
            self.vfs.locked = None
        except KmsfsError as error:
            self.vfs.locked = error


def _patiently(act: Callable[[], _Got], *, forever: bool) -> _Got:
    """Do what kmsd is needed for; where requests wait in the kernel already, as long as kmsd is away or says no."""
    while True:
        try:
            return act()
        except (VolumeBusy, CorruptVolume, UnsupportedFormat, UsageError):
            raise
        except KmsfsError as error:
            if not forever:
                raise
            _LOG.warning("requests wait: %s", error)
            time.sleep(_RETRY_SECONDS)


def run_mount(request: MountRequest, session: ClientSession, successor: Successor, on_ready: Callable[[], None]) -> None:
    """Mount a volume and serve it until it is unmounted.

    Raises:
        UsageError, VolumeBusy, StorageError, KmsfsError: why it cannot be mounted.
    """
    run_self_check()
    check_places(request)
    _raise_descriptor_limit()
    forbid_dumps()
    RunningMount(request, session, successor).serve(on_ready)


def take_over(inherited: Inheritance, session: ClientSession, command: tuple[str, ...]) -> None:
    """Serve what the image of this process before has mounted, until it is unmounted.

    Raises:
        VolumeBusy, CorruptVolume, UnsupportedFormat, UsageError: why it cannot be served; it is no more then.
    """
    run_self_check()
    forbid_dumps()
    request = MountRequest.of(inherited.request)
    mount = RunningMount(request, session, Successor(command, inherited.context), inherited)
    mount.serve(lambda: tell_taken_over(inherited))


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount and wait until the mount process has stored everything.

    Raises:
        UsageError: if it is not mounted, busy, or not ours.
    """
    found = find_mounted(mountpoint)
    if found is None or found.kind not in (VOLUME, VIEW):
        raise UsageError(f"{mountpoint} is not a kmsfs mount")
    detach(mountpoint, lazy=lazy)
    if found.kind == VOLUME:
        _wait_until_unlocked(Path(found.source))


def _wait_until_unlocked(cipher_dir: Path) -> None:
    deadline = time.monotonic() + 30
    try:
        descriptor = os.open(cipher_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.02)
        raise StorageError(
            "unmounted, but the mount process is still storing changes", hint="wait for it before copying"
        )
    finally:
        os.close(descriptor)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as we may have, and make the kernel's table for them big now.

    Growing it later, when there are threads, waits for all processors: some milliseconds at each power of two.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    high = min(hard, _DESCRIPTORS) - 1
    with open(os.devnull, "rb") as null:
        os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, high))
