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
from typing import Any

from kmsfs.aead.selfcheck import run_self_check
from kmsfs.backing.freshness import FreshnessStore
from kmsfs.backing.listings import ListingStore
from kmsfs.client.provider import SocketKeySource
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.client.watch import RESUMED, KeyWatcher
from kmsfs.envelope.caching import CachingProvider
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import KmsfsError, StorageError, UsageError
from kmsfs.formats.volume import CONFIG_NAME
from kmsfs.mount.durability import TICK_SECONDS, Vfs
from kmsfs.mount.freshness import open_records
from kmsfs.mount.hardening import forbid_dumps
from kmsfs.mount.kernel.attach import MountOptions, attach, detach
from kmsfs.mount.kernel.notify import KernelNotifier
from kmsfs.mount.kernel.session import KernelSession
from kmsfs.mount.kernel.wakeups import DEVICE, WakeUps
from kmsfs.mount.kernel.wire import MAX_WRITE
from kmsfs.mount.keypool import PoolFiller
from kmsfs.mount.listed import listings_path
from kmsfs.mount.mounttable import VIEW, VOLUME, find_mounted
from kmsfs.mount.otherkeys import OtherKeys
from kmsfs.mount.vfs import VfsOptions
from kmsfs.mount.volume import (
    OpenVolume,
    VolumeLease,
    decrypt_volume_keys,
    default_key,
    make_volume,
    open_volume,
)

_LOG = logging.getLogger("kmsfs.mount")
_REVALIDATE_SECONDS = 1.0
_DESCRIPTORS = 8192
_COLLECT_EVERY = 10_000
"""Objects made between two looks at the youngest generation."""
_REVOKING = frozenset(
    {"disabled", "pending-deletion", "deleted", "policy", "grant-ended", "material-destroyed", RESUMED}
)


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


class RunningMount:
    """One mounted volume."""

    def __init__(self, request: MountRequest, session: ClientSession) -> None:
        self._request = request
        self._session = session
        self._stopping = threading.Event()
        self._volume = self._open()
        config = self._volume.config
        self._lease = VolumeLease(config, read_only=request.read_only)
        self._lease_transport: Transport | None = None
        self._claim(patiently=True)
        self._records = self._open_records()
        self._watcher = KeyWatcher(session, [config.key_arn], self._on_event, self._on_connect)
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
            make_volume(request.cipher_dir, self._session, key)
        return open_volume(request.cipher_dir, self._session, read_only=request.read_only)

    def _claim(self, *, patiently: bool = False) -> None:
        if self._lease_transport is not None:
            self._lease_transport.close()
        self._lease_transport = self._session.open_transport()
        if patiently:
            self._lease.claim_patiently(self._lease_transport)
        else:
            self._lease.claim(self._lease_transport)

    def _open_records(self) -> FreshnessStore | None:
        try:
            return open_records(self._volume.keys, self._lease, read_only=self._request.read_only)
        except KmsfsError:
            # Nothing was changed in this session.
            self._lease.end()
            raise

    def _on_connect(self, _transport: Transport) -> None:
        """The stream is (back) up: make sure that the lease is ours on a live connection."""
        if self._lease_transport is not None and self._lease_transport.idle():
            return
        self._claim()

    def _make_vfs(self) -> Vfs:
        config, keys = self._volume.config, self._volume.keys
        # Where others may enter, the audit log names the user of each call beside the mount, which is who kmsd authorises.
        source = SocketKeySource(
            self._session, config.key_arn, lambda: self.vfs.asked_by if self._request.allow_other else None
        )
        provider = CachingProvider(
            config.volume_id, source, time.monotonic, os.urandom, lambda: self._watcher.alive, self._other_keys
        )
        rules = SessionRules(self._lease.number, set(self._lease.unclean), self._request.recover)
        scratch = bytearray(2 * MAX_WRITE + (1 << 18))
        tools = FileTools(keys, provider, rules, os.urandom, config.chunk_log2, scratch, self._records)
        kernel_times = self._request.transport == "kernel"
        options = VfsOptions(self._request.read_only, config.bind, kernel_times, put_off=kernel_times, keys_ahead=self._request.keys_ahead)
        vfs = Vfs(tools, provider, self._volume.descriptor, config.root_id, options)
        vfs.volume_key_id = self._key_id
        vfs.directory_keys = self._lease.directory_keys
        vfs.store_directory_key = self._lease.set_directory_key
        vfs.revalidate = self._revalidate
        vfs.lease_holds = lambda: self._watcher.alive
        vfs.listings = ListingStore(keys.listing, listings_path(config.volume_id))
        return vfs

    # --- serving ----------------------------------------------------------------------------------------------

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Attach, serve until unmounted, and end the session.

        Raises:
            UsageError, StorageError: if it cannot be mounted.
        """
        threads = [threading.Thread(target=self._tick_loop, name="kmsfs-tick", daemon=True)]
        if self._lease.unclean and not self._request.read_only:
            threads.append(threading.Thread(target=self._heal, name="kmsfs-heal", daemon=True))
        if not self._request.read_only:
            self._filler.start()
        options = MountOptions(
            os.fspath(self._request.cipher_dir), self._request.allow_other, self._request.read_only
        )
        try:
            if self._request.transport == "kernel":
                self._serve_kernel(options, on_ready, threads)
            else:
                self._serve_fusepy(options, on_ready, threads)
        finally:
            self._finish()

    def _serve_kernel(
        self, options: MountOptions, on_ready: Callable[[], None], threads: list[threading.Thread]
    ) -> None:
        from kmsfs.mount.watch import CipherWatcher

        descriptor = attach(self._request.mountpoint, options)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_from_signal)
        self._notifier = KernelNotifier(descriptor)
        guarded = options.allow_other or os.geteuid() != 0
        wake_ups = WakeUps(DEVICE if self._request.low_latency else None)
        kernel = KernelSession(self.vfs, descriptor, wake_ups, check_permissions=guarded)
        watcher = CipherWatcher(self.vfs, self._notifier, kernel.lifetimes)
        kernel.watch_directories(watcher.add)
        self.vfs.forget_directory = watcher.forget
        for thread in threads:
            thread.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY)
        on_ready()
        # From here on modes come with the requests, their makers' umasks applied. Not before: what lies outside of the
        # volume, folders and logs, is made under the user's own.
        os.umask(0)
        try:
            kernel.serve()
        finally:
            wake_ups.close()
            watcher.close()
            os.close(descriptor)

    def _serve_fusepy(
        self, options: MountOptions, on_ready: Callable[[], None], threads: list[threading.Thread]
    ) -> None:
        from kmsfs.mount import fusepy

        def ready() -> None:
            for thread in threads:
                thread.start()
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
                self.vfs.tick()
            except (KmsfsError, OSError) as error:
                _LOG.error("the volume could not be synced: %s", error)

    def _heal(self) -> None:
        bad = self.vfs.heal()
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


def run_mount(request: MountRequest, session: ClientSession, on_ready: Callable[[], None]) -> None:
    """Mount a volume and serve it until it is unmounted.

    Raises:
        UsageError, VolumeBusy, StorageError, KmsfsError: why it cannot be mounted.
    """
    run_self_check()
    check_places(request)
    _raise_descriptor_limit()
    forbid_dumps()
    RunningMount(request, session).serve(on_ready)


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
