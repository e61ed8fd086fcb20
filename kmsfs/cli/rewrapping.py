"""The steps of `kmsfs rewrap` and `kmsfs volume rekey` around the files: lease, volume key, configuration."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kmsfs.backing.freshness import FreshnessStore
from kmsfs.check.rekey import Rekeyer, RekeyReport
from kmsfs.check.rewrap import Rewrapper, RewrapReport, Targets, Wrapping, wrapping_of
from kmsfs.cli.checking import volume_tools
from kmsfs.cli.output import byte_progress, stored_bytes
from kmsfs.client.session import ClientSession
from kmsfs.envelope.kf1file import FileTools
from kmsfs.envelope.provider import volume_context
from kmsfs.envelope.recovery import SessionRules
from kmsfs.errors import StorageError, UsageError
from kmsfs.formats.volume import VolumeConfig
from kmsfs.mount.freshness import open_records
from kmsfs.mount.volume import OpenVolume, VolumeLease, open_volume, write_config


@contextlib.contextmanager
def _claimed(cipher_dir: Path, talk: ClientSession, *, dry_run: bool) -> Iterator[tuple[OpenVolume, VolumeLease, FileTools]]:
    """A volume that is not mounted, for as long as it is worked on; a session of it ends with that.

    Not so where the disk refused something: what it has of the last commits is unknown, and the next mount verifies it.
    """
    volume = open_volume(cipher_dir, talk, read_only=dry_run)
    lease = VolumeLease(volume.config, read_only=dry_run)
    transport = talk.open_transport()
    lease.claim(transport)
    records: FreshnessStore | None = None
    unknown = False
    try:
        if lease.unclean:
            raise UsageError(
                "the last session of this volume did not end cleanly", hint="mount it once: that heals it"
            )
        tools = volume_tools(volume, talk, SessionRules(lease.number, set()))
        tools.freshness = records = open_records(volume.keys, lease, cipher_dir, read_only=dry_run)
        try:
            yield volume, lease, tools
        except StorageError:
            unknown = True
            raise
    finally:
        if not lease.unclean and not unknown:
            lease.end(records.finish() if records is not None and not dry_run else None)
        transport.close()
        os.close(volume.descriptor)


def rewrap_volume(cipher_dir: Path, talk: ClientSession, to: str | None, *, dry_run: bool) -> RewrapReport:
    """Rewrap a volume that is not mounted, and let it belong to the key `to` (or stay with its own).

    Raises:
        UsageError: if its last session did not end cleanly.
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses.
    """
    with _claimed(cipher_dir, talk, dry_run=dry_run) as (volume, lease, tools):
        config = volume.config
        target_key = to or config.key_arn
        context = volume_context(config.volume_id)
        wrapped = config.wrapped_key if dry_run else re_encrypt(talk, config.wrapped_key, context, target_key)
        with byte_progress("rewrapping", stored_bytes(cipher_dir)) as advance:
            targets = _targets(config, wrapped, lease, talk)
            worker = Rewrapper(tools, targets, partial(re_encrypt, talk), advance)
            report = worker.run(volume.descriptor, dry_run=dry_run)
        if not dry_run:
            key_arn = talk.call("DescribeKey", {"KeyId": target_key})["KeyMetadata"]["Arn"]
            if key_arn != config.key_arn:
                lease.move(key_arn)
            moved = VolumeConfig(
                config.volume_id, key_arn, wrapped, config.root_id, config.chunk_log2, config.bind
            )
            write_config(cipher_dir, moved, volume.keys)
        return report


def rekey_volume(cipher_dir: Path, talk: ClientSession) -> RekeyReport:
    """Give every file of a volume that is not mounted a new data key, under the KMS key that new files there get.

    Raises:
        UsageError: if its last session did not end cleanly.
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses.
    """
    with (
        _claimed(cipher_dir, talk, dry_run=False) as (volume, lease, tools),
        byte_progress("rekeying", stored_bytes(cipher_dir)) as advance,
    ):
        targets = _targets(volume.config, volume.config.wrapped_key, lease, talk)
        return Rekeyer(tools, targets, partial(_make_key, talk), advance).run(volume.descriptor)


def _make_key(talk: ClientSession, key_id: str, context: dict[str, str]) -> tuple[bytes, bytes]:
    answer = talk.call("GenerateDataKey", {"KeyId": key_id, "KeySpec": "AES_256", "EncryptionContext": context})
    return answer["Plaintext"], answer["CiphertextBlob"]


def re_encrypt(talk: ClientSession, wrapped: bytes, context: dict[str, str], key_id: str) -> bytes:
    """Wrap a wrapped key anew, under its context and another KMS key.

    Raises:
        KmsfsError: as ReEncrypt.
    """
    request: dict[str, Any] = {
        "CiphertextBlob": wrapped, "SourceEncryptionContext": context, "DestinationKeyId": key_id,
        "DestinationEncryptionContext": context,
    }  # fmt: skip
    blob: bytes = talk.call("ReEncrypt", request)["CiphertextBlob"]
    return blob


def _targets(config: VolumeConfig, wrapped: bytes, lease: VolumeLease, talk: ClientSession) -> Targets:
    """Ask under which material each key wraps now; `wrapped` is the volume's key as it will be."""
    found: dict[str, Wrapping] = {}
    for key_id in set(lease.directory_keys.values()):
        request = {"KeyId": key_id, "KeySpec": "AES_256", "EncryptionContext": volume_context(config.volume_id)}
        found[key_id] = wrapping_of(talk.call("GenerateDataKeyWithoutPlaintext", request)["CiphertextBlob"])
    by_directory = {dir_id: found[key_id] for dir_id, key_id in lease.directory_keys.items()}
    return Targets(wrapping_of(wrapped), config.root_id, by_directory)
