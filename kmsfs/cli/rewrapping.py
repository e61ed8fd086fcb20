"""The steps of `kmsfs rewrap` and `kmsfs volume rekey` around the files: lease, volume key, configuration."""

from functools import partial
from pathlib import Path
from typing import Any

from kmsfs.check.rekey import Rekeyer, RekeyReport
from kmsfs.check.rewrap import Rewrapper, RewrapReport, Targets, Wrapping, wrapping_of
from kmsfs.cli.checking import claimed_volume
from kmsfs.cli.output import byte_progress, stored_bytes
from kmsfs.client.session import ClientSession
from kmsfs.envelope.provider import volume_context
from kmsfs.formats.volume import VolumeConfig
from kmsfs.mount.volume import VolumeLease, write_config


def rewrap_volume(cipher_dir: Path, talk: ClientSession, to: str | None, *, dry_run: bool) -> RewrapReport:
    """Rewrap a volume that is not mounted, and let it belong to the key `to` (or stay with its own).

    Raises:
        UsageError: if its last session did not end cleanly.
        VolumeBusy, KmsfsError: if it is mounted, or the key service refuses.
    """
    with claimed_volume(cipher_dir, talk, read_only=dry_run) as (volume, lease, tools):
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
        claimed_volume(cipher_dir, talk) as (volume, lease, tools),
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
