"""kmsfs volume snapshot, share, receive: hand an encrypted volume to another account without copying plaintext."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.grant import principal_arn, seconds_of
from kmsfs.cli.output import byte_progress, call, confirm, say, session, show, stored_bytes
from kmsfs.client.session import ClientSession
from kmsfs.errors import AccessDenied, CorruptVolume, NotFound, UsageError
from kmsfs.formats.volume import CONFIG_NAME, VolumeConfig, parse_config
from kmsfs.snapshot.archive import read_head, unpack_snapshot, write_snapshot

CipherDir = Annotated[Path, typer.Argument(metavar="CIPHERDIR", help="Directory of the encrypted files.")]
Snapshot = Annotated[Path, typer.Argument(metavar="FILE", help="A snapshot.")]
_OPERATIONS = ["Decrypt", "ReEncryptFrom", "DescribeKey"]
_SERVICE_ALIASES = "alias/kmsfs/"
_RECEIVED_SESSION = 1 << 19
"""Session of headers that `receive` writes: past those of the sender's mounts, before the receiver's first (AcceptVolumeRestore)."""


def snapshot(
    cipher_dir: CipherDir, target: Annotated[Path, typer.Argument(metavar="FILE", help="A file that is not there yet.")]
) -> None:
    """Write everything of a volume that is not mounted into one file, encrypted as it is. Example: kmsfs volume snapshot ~/cipher team.snapshot"""
    from kmsfs.mount.volume import VolumeLease, open_volume

    talk = session()
    volume = open_volume(cipher_dir, talk)
    lease = VolumeLease(volume.config, read_only=True)
    try:
        lease.claim(talk.open_transport())
        if lease.unclean:
            raise UsageError("the last session of this volume did not end cleanly", hint="mount it once: that heals it")
        with byte_progress("snapshot", stored_bytes(cipher_dir)) as advance:
            header = write_snapshot(cipher_dir, target.absolute(), time.time(), advance)
    finally:
        os.close(volume.descriptor)
    show(
        {"snapshot": os.fspath(target), "stored_files": header.stored_files, "bytes": header.bytes, "volume_id": volume.config.volume_id.hex()},
        lambda: say(f"wrote {target}: {header.stored_files} stored files, {header.bytes} bytes"),
    )  # fmt: skip


def share(
    snapshot: Snapshot,
    to: Annotated[str, typer.Option("--to", metavar="PRINCIPAL", help="Whom: twelve digits of an account, or the ARN of a principal.")],
    time_left: Annotated[str | None, typer.Option("--for", help="How long it may be received: 30s, 90m, 2h or 7d.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Let somebody of another account receive a snapshot: grants on its KMS keys, for this volume alone. Hand him the file yourself."""
    from kmsfs.mount.volume import VolumeLease, decrypt_volume_keys

    talk = session()
    _, data = read_head(snapshot)
    config, mac = parse_config(data)
    # What the file says is the volume's counts only if its own key says so too.
    decrypt_volume_keys(config, talk).check_config(config.signed_bytes(), mac)
    lease = VolumeLease(config, read_only=True)
    lease.claim(talk.open_transport())
    keys = [config.key_arn, *sorted(set(lease.directory_keys.values()))]
    for key in keys:
        _refuse_service_key(key)
    grantee = f"arn:kmsfs:iam::{to}:root" if len(to) == 12 and to.isdigit() else principal_arn(to)
    confirm(
        f"{grantee} may decrypt everything of this volume then, also files that are written from now on, if he gets at them", snapshot.name, yes=yes
    )
    made = [
        {"KeyId": key, "GrantId": call(
            "CreateGrant", KeyId=key, GranteePrincipal=grantee, Operations=_OPERATIONS,
            Constraints={"EncryptionContextSubset": {"kmsfs:volume": config.volume_id.hex()}},
            ExpiresInSeconds=seconds_of(time_left) if time_left else None, Reason=f"snapshot {snapshot.name}"[:200],
        )["GrantId"]}
        for key in keys
    ]  # fmt: skip
    show({"grantee": grantee, "grants": made}, lambda: _print_shared(made, grantee, snapshot))


def receive(
    snapshot: Snapshot,
    cipher_dir: Annotated[Path, typer.Argument(metavar="CIPHERDIR", help="An empty directory, or one that is not there yet.")],
    key: Annotated[str | None, typer.Option(help="Your KMS key that the volume is under from then on (default alias/kmsfs/default).")] = None,
) -> None:
    """Make a volume of your own out of a snapshot: every data key is wrapped anew under your KMS key, and no content is decrypted."""
    from kmsfs.mount.volume import decrypt_volume_keys, default_key

    talk = session()
    header, data = read_head(snapshot)
    config, mac = parse_config(data)
    keys = decrypt_volume_keys(config, talk)
    keys.check_config(config.signed_bytes(), mac)
    own = call("GetStatus")["Account"] == config.key_arn.split(":")[4]
    if own and key is not None:
        raise UsageError(
            "this snapshot is of your own account", hint="receive it without --key, and then: kmsfs rewrap CIPHERDIR --to KEY"
        )
    made = not cipher_dir.exists()
    if not made and any(cipher_dir.iterdir()):
        raise UsageError(f"{cipher_dir} is not empty", hint="name an empty directory, or one that is not there yet")
    cipher_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Nobody else looks at what comes before it is known whose it is: it may hold devices, or programs of root's.
    cipher_dir.chmod(0o700)
    try:
        with byte_progress("receiving", header.bytes) as advance:
            unpack_snapshot(snapshot, cipher_dir, advance)
        received = config if own else _rewrapped(cipher_dir, config, keys, talk, key or default_key(talk, os.getuid()))
        _finish(cipher_dir, received, keys, talk)
    except BaseException:
        _clear(cipher_dir, whole=made)
        raise
    found = {"cipher_dir": os.fspath(cipher_dir), "stored_files": header.stored_files, "bytes": header.bytes, "key_arn": received.key_arn}
    show(found, lambda: say(f"received into {cipher_dir}, under {received.key_arn}; mount it as any other volume"))


def _rewrapped(cipher_dir: Path, config: VolumeConfig, keys: Any, talk: ClientSession, key: str) -> VolumeConfig:
    """Wrap the volume's key and those of all its files anew; return its new configuration."""
    from kmsfs.check.rewrap import Rewrapper, Targets, wrapping_of
    from kmsfs.cli.checking import volume_tools
    from kmsfs.cli.rewrapping import re_encrypt
    from kmsfs.envelope.provider import volume_context
    from kmsfs.envelope.recovery import SessionRules
    from kmsfs.mount.volume import OpenVolume

    key_arn = call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    wrapped = re_encrypt(talk, config.wrapped_key, volume_context(config.volume_id), key_arn)
    descriptor = os.open(cipher_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tools = volume_tools(OpenVolume(config, keys, descriptor), talk, SessionRules(_RECEIVED_SESSION))
        with byte_progress("rewrapping", stored_bytes(cipher_dir)) as advance:
            worker = Rewrapper(
                tools, Targets(wrapping_of(wrapped), config.root_id),
                lambda blob, context, _key_id: re_encrypt(talk, blob, context, key_arn), advance,
            )  # fmt: skip
            report = worker.run(descriptor)
    finally:
        os.close(descriptor)
    if report.failed:
        name, problem = report.failed[0]
        raise CorruptVolume(f"{len(report.failed)} files of the snapshot could not be taken, such as {name}: {problem}")
    return VolumeConfig(config.volume_id, key_arn, wrapped, config.root_id, config.chunk_log2, config.bind)


def _finish(cipher_dir: Path, config: VolumeConfig, keys: Any, talk: ClientSession) -> None:
    """Make the files durable, and then a volume of them: the configuration comes last."""
    from kmsfs.backing.posix import sync_file_system
    from kmsfs.mount.volume import write_config

    descriptor = os.open(cipher_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)
    talk.call("AcceptVolumeRestore", {"KeyId": config.key_arn, "VolumeId": config.volume_id.hex()})
    write_config(cipher_dir, config, keys)


def _clear(cipher_dir: Path, *, whole: bool) -> None:
    """Remove what was unpacked of a snapshot that could not be received."""
    if whole:
        shutil.rmtree(cipher_dir, ignore_errors=True)
        return
    for entry in cipher_dir.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _refuse_service_key(key: str) -> None:
    """A service's own key is not shared (EBS user guide, "Share the KMS key used to encrypt a shared snapshot").

    Raises:
        UsageError: if it is one.
    """
    try:
        aliases = call("ListAliases", KeyId=key)["Aliases"]
    except (AccessDenied, NotFound):
        aliases = []
    if any(alias["AliasName"].startswith(_SERVICE_ALIASES) for alias in aliases):
        raise UsageError(
            "a volume under a default key cannot be shared: what is under that key is more than this volume",
            hint="kmsfs key create --alias alias/shared; kmsfs rewrap CIPHERDIR --to alias/shared; then snapshot and share",
        )


def _print_shared(made: list[dict[str, str]], grantee: str, snapshot: Path) -> None:
    say(f"{grantee} may receive {snapshot.name}: kmsfs volume receive FILE CIPHERDIR")
    say(f"the file is yours alone to read: copy it to him. {CONFIG_NAME} and all else in it are encrypted.")
    for grant in made:
        print(f"kmsfs grant revoke {grant['KeyId']} {grant['GrantId']}")
