"""The steps of `kmsfs check` and `kmsfs rescue` around the files: lease, freshness records, progress."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kmsfs.backing.freshness import FreshnessStore
from kmsfs.backing.listings import ListingStore
from kmsfs.check.progress import CheckProgress
from kmsfs.check.repair import Repairer, RepairReport
from kmsfs.check.rescue import Rescuer, RescueReport
from kmsfs.check.verify import DAMAGE, Finding, Report, VolumeChecker
from kmsfs.cli.output import byte_progress, stored_bytes
from kmsfs.client.provider import SocketKeySource
from kmsfs.client.session import ClientSession
from kmsfs.clock import passed
from kmsfs.envelope.caching import CachingProvider, NoGuard
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import CorruptVolume, StorageError, UsageError
from kmsfs.mount.freshness import open_records, state_folder
from kmsfs.mount.listed import listings_path
from kmsfs.mount.volume import OpenVolume, VolumeLease, open_volume


def rescue_volume(cipher_dir: Path, target: Path, talk: ClientSession) -> RescueReport:
    """Bring what can be read out of a volume that is not mounted into an empty directory.

    Raises:
        UsageError: if the target holds something.
        StorageError: if it cannot be written.
        VolumeBusy, KmsfsError: if the volume is mounted, or the key service refuses its key.
    """
    if target.resolve() == cipher_dir.resolve() or cipher_dir.resolve() in target.resolve().parents:
        raise UsageError("the target lies in the volume", hint="name a directory beside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not an empty directory")
    volume = open_volume(cipher_dir, talk, read_only=True)
    tools = volume_tools(volume, talk, SessionRules(0))
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with byte_progress("rescuing", stored_bytes(cipher_dir)) as advance:
            return Rescuer(tools, target, advance).run(volume.descriptor, volume.config.root_id)
    except OSError as error:
        raise StorageError(f"cannot write into {target}: {error.strerror}") from error


@contextlib.contextmanager
def claimed_volume(
    cipher_dir: Path, talk: ClientSession, *, read_only: bool = False, tolerate_other_slot: bool = False
) -> Iterator[tuple[OpenVolume, VolumeLease, FileTools]]:
    """A volume that is not mounted, for as long as it is worked on; a session of it ends with that.

    Not so where the disk refused something: what it has of the last commits is unknown, and the next mount verifies it.

    Raises:
        UsageError: if the last session of the volume did not end cleanly.
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses.
    """
    volume = open_volume(cipher_dir, talk, read_only=read_only)
    lease = VolumeLease(volume.config, read_only=read_only)
    transport = talk.open_transport()
    lease.claim(transport)
    records: FreshnessStore | None = None
    unknown = False
    try:
        if lease.unclean:
            raise UsageError(
                "the last session of this volume did not end cleanly", hint="mount it once: that heals it"
            )
        tools = volume_tools(volume, talk, SessionRules(lease.number, set(), tolerate_other_slot=tolerate_other_slot))
        tools.freshness = records = open_records(volume.keys, lease, cipher_dir, read_only=read_only)
        try:
            yield volume, lease, tools
        except StorageError:
            unknown = True
            raise
    finally:
        if not lease.unclean and not unknown:
            lease.end(records.finish() if records is not None and not read_only else None)
        transport.close()
        os.close(volume.descriptor)


def repair_volume(cipher_dir: Path, talk: ClientSession, found: Report, *, set_aside: bool) -> RepairReport:
    """Mend what a check found, in a session of its own.

    Raises:
        UsageError, VolumeBusy, KmsfsError: as `claimed_volume`.
    """
    with claimed_volume(cipher_dir, talk, tolerate_other_slot=True) as (volume, _lease, tools):
        return Repairer(tools, cipher_dir, set_aside=set_aside).run(found, volume.descriptor)


def key_provider(volume: OpenVolume, talk: ClientSession) -> CachingProvider:
    """Return what gets the data keys of a volume that is not mounted."""
    source = SocketKeySource(talk, volume.config.key_arn)
    return CachingProvider(volume.config.volume_id, source, passed, os.urandom, lambda: True, NoGuard())


def volume_tools(volume: OpenVolume, talk: ClientSession, rules: SessionRules, provider: CachingProvider | None = None) -> FileTools:
    """Return what works on the files of a volume that is not mounted; freshness records are the caller's to add."""
    return FileTools(volume.keys, provider or key_provider(volume, talk), rules, os.urandom, volume.config.chunk_log2, bytearray())


def progress_path(volume_id: bytes) -> Path:
    """Return where it is noted what a check of a volume has verified, until it is done."""
    return state_folder() / "checks" / f"{volume_id.hex()}.txt"


def check_volume(cipher_dir: Path, talk: ClientSession, *, go_on: bool = False) -> Report:
    """Verify a volume that is not mounted; `go_on` with a check that was cut off.

    Raises:
        StorageError: if it cannot go on, as what was verified cannot be read.
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses its key.
    """
    volume = open_volume(cipher_dir, talk, read_only=True)
    lease = VolumeLease(volume.config, read_only=True)
    lease.claim(talk.open_transport())
    provider = key_provider(volume, talk)
    tools = volume_tools(volume, talk, SessionRules(lease.number, set(lease.unclean)), provider)
    of_the_volume = []
    try:
        tools.freshness = open_records(volume.keys, lease, cipher_dir, read_only=True)
    except CorruptVolume as error:
        of_the_volume.append(Finding("/", ".", DAMAGE, str(error)))
    listings = listings_path(volume.config.volume_id)
    store = ListingStore(volume.keys.listing, listings) if listings.exists() else None
    names_of = (lambda dir_id: store.load(dir_id).values()) if store is not None else None
    progress: CheckProgress | None = None
    try:
        progress = CheckProgress(progress_path(volume.config.volume_id), go_on=go_on)
    except OSError as error:
        # A rescue system may have nothing to write to.
        if go_on:
            raise StorageError(f"what was verified cannot be read: {error.strerror}", hint="check without --continue") from error
    done = False
    try:
        with byte_progress("checking", stored_bytes(cipher_dir)) as advance:
            checker = VolumeChecker(tools, advance, names_of, provider.fetch_soon, progress)
            report = checker.run(volume.descriptor, volume.config.root_id)
        done = True
    finally:
        if progress is not None:
            progress.close(done=done)
    report.findings[:0] = of_the_volume
    if store is not None:
        store.close()
    os.close(volume.descriptor)
    return report
