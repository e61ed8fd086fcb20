"""A volume's freshness records from mount to unmount: where they lie, which ones count, when new ones may begin."""

import logging
import os
import shutil
from pathlib import Path

from kmsfs.backing.freshness import FreshnessStore, beside, head_of
from kmsfs.client.session import ClientSession
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import CorruptVolume, StorageError
from kmsfs.formats.freshness import HEAD_BYTES, RECORDS_DIR
from kmsfs.mount.volume import VolumeLease, open_volume, read_config

_LOG = logging.getLogger("kmsfs.mount")


def records_path(volume_id: bytes, cipher_dir: Path | None = None) -> Path:
    """Return where a volume's records lie: in the user's state, or beside the ciphertext where there is a folder for them."""
    name = f"{volume_id.hex()}.db"
    if cipher_dir is not None and (cipher_dir / RECORDS_DIR).is_dir():
        return cipher_dir / RECORDS_DIR / name
    return state_folder() / "freshness" / name


def state_folder() -> Path:
    """Return where mounts keep what is theirs: below $XDG_STATE_HOME, or /var/lib for root and ~/.local/state for others."""
    named = os.environ.get("XDG_STATE_HOME")
    if named:
        base = Path(named)
    else:
        base = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local" / "state"
    return base / "kmsfs"


def open_records(keys: VolumeKeys, lease: VolumeLease, cipher_dir: Path, *, read_only: bool) -> FreshnessStore | None:
    """Open a volume's records, beginning new ones where kmsd allows it; None where there are none to compare with.

    Raises:
        CorruptVolume: if they are missing, damaged or of the past.
        StorageError: if they cannot be read or written.
    """
    path = records_path(keys.volume_id, cipher_dir)
    if _ended_cleanly(path, lease.head):
        for suffix in ("-wal", "-shm"):
            beside(path, suffix).unlink(missing_ok=True)
        store = FreshnessStore(keys.freshness, path, read_only=read_only)
    else:
        found = _after_a_crash(keys, path, lease, read_only=read_only)
        if found is None:
            return _begin(keys, path, lease, read_only=read_only)
        store = found
    if not read_only:
        store.begin(lease.number, lease.head)
        if lease.unclean:
            # What was removed in its last seconds may still have a record.
            store.doubt()
    return store


def resume_records(keys: VolumeKeys, lease: VolumeLease, cipher_dir: Path, *, read_only: bool) -> FreshnessStore:
    """Open the records that the image of this process before kept in this session.

    Raises:
        CorruptVolume: if they are missing, damaged or of another session.
        StorageError: if they cannot be read.
    """
    path = records_path(keys.volume_id, cipher_dir)
    if not path.exists():
        raise CorruptVolume(f"the freshness records of this volume ({path}) are gone")
    store = FreshnessStore(keys.freshness, path, read_only=read_only)
    if not read_only and store.facts.session != lease.number:
        store.close()
        raise CorruptVolume(f"the freshness records of this volume ({path}) are of another session")
    return store


def move_records(cipher_dir: Path, session: ClientSession, *, into_volume: bool) -> Path:
    """Let a volume's records lie beside its ciphertext, where other hosts find them, or in this user's state; return where.

    Raises:
        VolumeBusy: if it is mounted, on any host.
        CorruptVolume: if the last mount did not end cleanly: what the records say is not all in one file then.
        StorageError: if they cannot be moved.
        KmsfsError: as Decrypt.
    """
    volume = open_volume(cipher_dir, session)
    lease = VolumeLease(volume.config, read_only=False)
    transport = session.open_transport()
    try:
        # The lock is this host's alone, or the storage's: only kmsd knows of mounts on all hosts.
        lease.claim(transport)
        try:
            return _move(volume.config.volume_id, cipher_dir, unclean=bool(lease.unclean), into_volume=into_volume)
        finally:
            lease.end()
    except OSError as error:
        raise StorageError(f"cannot move the freshness records: {error.strerror}") from error
    finally:
        transport.close()
        os.close(volume.descriptor)


def _move(volume_id: bytes, cipher_dir: Path, *, unclean: bool, into_volume: bool) -> Path:
    folder, there = cipher_dir / RECORDS_DIR, records_path(volume_id, cipher_dir)
    if unclean or beside(there, "-wal").exists():
        raise CorruptVolume("the last mount did not end cleanly", hint="mount the volume and unmount it, then try again")
    if into_volume:
        folder.mkdir(mode=0o700, exist_ok=True)
        here = records_path(volume_id, cipher_dir)
    else:
        here = records_path(volume_id)
    if there != here and there.exists():
        here.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy(there, here)
        there.unlink()
    if not into_volume and folder.is_dir():
        folder.rmdir()
    return here


def _copy(source: Path, target: Path) -> None:
    """Copy a file, durably: what it says is not to be lost."""
    partial = target.with_name(f".{target.name}.new")
    with source.open("rb") as reading, partial.open("wb") as writing:
        shutil.copyfileobj(reading, writing)
        writing.flush()
        os.fsync(writing.fileno())
    partial.chmod(0o600)
    partial.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def accept_restore(cipher_dir: Path, session: ClientSession) -> None:
    """Let kmsd take a volume as it is now: its next mount begins new records.

    Raises:
        VolumeBusy: if it is mounted.
        KmsfsError: as AcceptVolumeRestore.
    """
    config, _mac = read_config(cipher_dir)
    session.call("AcceptVolumeRestore", {"KeyId": config.key_arn, "VolumeId": config.volume_id.hex()})


def _ended_cleanly(path: Path, head: bytes) -> bool:
    """Whether the file is as the last session left it."""
    try:
        return bool(head) and head_of(path) == head
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot read the freshness records {path}: {error.strerror}") from error


def _after_a_crash(
    keys: VolumeKeys, path: Path, lease: VolumeLease, *, read_only: bool
) -> FreshnessStore | None:
    """The file as a session left it that did not end: one that kmsd knows of, and that began where kmsd says."""
    if not path.exists():
        return None
    try:
        store = FreshnessStore(keys.freshness, path, read_only=read_only)
    except CorruptVolume:
        if lease.may_begin:
            return None
        raise
    if store.facts.session in lease.unclean and store.facts.base == lease.head.ljust(HEAD_BYTES, b"\0"):
        return store
    store.close()
    return None


def _begin(keys: VolumeKeys, path: Path, lease: VolumeLease, *, read_only: bool) -> FreshnessStore | None:
    if not lease.may_begin:
        raise CorruptVolume(
            f"the freshness records of this volume ({path}) are missing or of the past",
            hint="if you moved the volume here or restored a backup: `kmsfs volume accept-restore CIPHERDIR`",
        )
    if read_only:
        return None
    if lease.number > 1:
        _LOG.info("freshness records begin: files that are put back from before this are noticed from now on")
    return FreshnessStore.make(keys.freshness, path, lease.number, lease.head)

