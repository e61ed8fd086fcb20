"""Make and open a volume: its configuration file, its keys, its session with the daemon."""

import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsfs.client.remote import to_exception
from kmsfs.client.session import ClientSession
from kmsfs.client.transport import Transport
from kmsfs.envelope.provider import volume_context
from kmsfs.envelope.volumekeys import VolumeKeys
from kmsfs.errors import AccessDenied, KmsfsError, NotFound, StorageError, UsageError, VolumeBusy
from kmsfs.formats.volume import CONFIG_NAME, VolumeConfig, parse_config
from kmsfs.quantity import DEFAULT_CHUNK_LOG2, LEASE_SECONDS
from kmsfs.secret import KeyMaterial

DEFAULT_ALIAS = "alias/kmsfs/default"


@dataclass(slots=True)
class OpenVolume:
    """A volume whose keys are open; `descriptor` is its cipher directory, locked against a second mount here."""

    config: VolumeConfig
    keys: VolumeKeys
    descriptor: int


def default_key(session: ClientSession, uid: int) -> str:
    """Return the alias of this user's default KMS key, making the key on first use.

    Raises:
        KmsfsError: as CreateKey and CreateAlias.
    """
    for alias in (DEFAULT_ALIAS, f"{DEFAULT_ALIAS}-{uid}"):
        try:
            session.call("DescribeKey", {"KeyId": alias})
        except NotFound:
            made = session.call("CreateKey", {"Description": "Default key of kmsfs volumes"})
            session.call("CreateAlias", {"AliasName": alias, "TargetKeyId": made["KeyMetadata"]["KeyId"]})
        except AccessDenied:
            continue
        return alias
    raise AccessDenied("the default key of volumes belongs to somebody else", hint="name one with --key")


def make_volume(
    cipher_dir: Path, session: ClientSession, key: str, chunk_log2: int = DEFAULT_CHUNK_LOG2
) -> None:
    """Make a volume in an empty directory.

    Raises:
        UsageError: if the directory is not empty.
        StorageError: if it cannot be written.
        KmsfsError: as GenerateDataKey.
    """
    if any(cipher_dir.iterdir()):
        raise UsageError(
            f"{cipher_dir} is not empty and holds no volume",
            hint="choose an empty directory for encrypted files",
        )
    volume_id = os.urandom(16)
    request: dict[str, Any] = {
        "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": volume_context(volume_id)
    }  # fmt: skip
    answer = session.call("GenerateDataKey", request)
    config = VolumeConfig(
        volume_id, answer["KeyId"], answer["CiphertextBlob"], os.urandom(16), chunk_log2, "enforce"
    )
    keys = VolumeKeys(volume_id, KeyMaterial(answer["Plaintext"]))
    write_config(cipher_dir, config, keys)


def require_chunk(cipher_dir: Path, chunk_log2: int) -> None:
    """Refuse a volume whose new files have chunks of another size.

    Raises:
        UsageError: if it is one.
        CorruptVolume, UnsupportedFormat, StorageError: as `read_config`.
    """
    found = read_config(cipher_dir)[0].chunk_log2
    if found != chunk_log2:
        raise UsageError(
            f"{cipher_dir} has chunks of {1 << found - 10} KiB", hint="they are chosen when a volume is made; leave the option out"
        )


def write_config(cipher_dir: Path, config: VolumeConfig, keys: VolumeKeys) -> None:
    """Write a volume configuration, wholly or not at all.

    Raises:
        StorageError: if the disk refuses.
    """
    temporary = cipher_dir / f".{CONFIG_NAME}.new"
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(descriptor, config.encode(keys.config_mac(config.signed_bytes())))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(cipher_dir / CONFIG_NAME)
        directory = os.open(cipher_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(
            f"cannot write {cipher_dir / CONFIG_NAME}: {error.strerror}", os_errno=error.errno or 5
        ) from error


def read_config(cipher_dir: Path) -> tuple[VolumeConfig, bytes]:
    """Return (configuration, MAC) of a volume.

    Raises:
        UsageError: if there is none.
        CorruptVolume, UnsupportedFormat: if it cannot be used.
    """
    try:
        return parse_config((cipher_dir / CONFIG_NAME).read_bytes())
    except FileNotFoundError as error:
        raise UsageError(
            f"{cipher_dir} holds no kmsfs volume", hint="`kmsfs mount` makes one in an empty directory"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read {cipher_dir / CONFIG_NAME}: {error.strerror}") from error


def open_volume(cipher_dir: Path, session: ClientSession, *, read_only: bool = False, follow: bool = False) -> OpenVolume:
    """Open a volume: one Decrypt of its key, authorised by the key's policy. Who is to `follow` does not keep a writer out.

    Raises:
        UsageError, VolumeBusy, CorruptVolume, UnsupportedFormat, KmsfsError: why it cannot be opened.
    """
    config, keys = _open_config(cipher_dir, session)
    descriptor = os.open(cipher_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not follow:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise VolumeBusy(f"{cipher_dir} is mounted already", hint="unmount it there first") from error
    return OpenVolume(config, keys, descriptor)


def inherit_volume(cipher_dir: Path, session: ClientSession, descriptor: int) -> OpenVolume:
    """As `open_volume`, with a descriptor that the image of this process before had locked.

    Raises:
        UsageError, CorruptVolume, UnsupportedFormat, KmsfsError: why it cannot be opened.
    """
    return OpenVolume(*_open_config(cipher_dir, session), descriptor)


def _open_config(cipher_dir: Path, session: ClientSession) -> tuple[VolumeConfig, VolumeKeys]:
    config, mac = read_config(cipher_dir)
    keys = decrypt_volume_keys(config, session)
    keys.check_config(config.signed_bytes(), mac)
    return config, keys


def decrypt_volume_keys(config: VolumeConfig, session: ClientSession) -> VolumeKeys:
    """Return the volume's keys.

    Raises:
        KmsfsError: as Decrypt.
    """
    request = {"CiphertextBlob": config.wrapped_key, "EncryptionContext": volume_context(config.volume_id)}
    answer = session.call("Decrypt", request)
    return VolumeKeys(config.volume_id, KeyMaterial(answer["Plaintext"]))


class VolumeLease:
    """This mount's session of the volume, on a connection of its own; resumed when the connection comes back."""

    def __init__(self, config: VolumeConfig, *, read_only: bool) -> None:
        self._request: dict[str, Any] = {
            "KeyId": config.key_arn, "VolumeId": config.volume_id.hex(), "ReadOnly": read_only
        }  # fmt: skip
        self._read_only = read_only
        self._transport: Transport | None = None
        self._calling = threading.Lock()
        self.number = 0
        self.unclean: set[int] = set()
        self.head = b""
        """The head of the freshness records that kmsd knows."""
        self.may_begin = False
        """Whether new freshness records may begin."""
        self.directory_keys: dict[bytes, str] = {}
        """The KMS keys of directories that have one of their own, by directory id."""
        self._store_seconds: float | None = None
        self._held = True

    def may_store(self, silent: float) -> bool:
        """Tell whether this session may still store something, `silent` seconds after the daemon's last word."""
        return self._held and (self._store_seconds is None or silent < self._store_seconds)

    def inherit(
        self, number: int, unclean: set[int], head: bytes, directory_keys: dict[bytes, str], *, may_begin: bool
    ) -> None:
        """Be the lease of a session that this process has already; `claim` resumes it."""
        self.number, self.unclean, self.head = number, unclean, head
        self.directory_keys, self.may_begin = directory_keys, may_begin

    def claim(self, transport: Transport) -> None:
        """Take or resume the lease on this connection.

        Raises:
            VolumeBusy: if another writer holds it.
            KmsfsError: as Decrypt.
        """
        self._transport = transport
        request = dict(self._request)
        if self.number and not self._read_only:
            request["Resume"] = self.number
        try:
            answer = self._call("OpenVolumeSession", request)
        except VolumeBusy:
            self._held = False
            raise
        self._held, self._store_seconds = True, answer.get("StoreSeconds")
        if not self.number:
            # Who only reads has no session: none that is known is his own, so none is trusted for that.
            self.number = answer["Session"] + 1 if self._read_only else answer["Session"]
            self.unclean = set(answer["UncleanSessions"])
            self.head, self.may_begin = answer["FreshnessHead"], answer["FreshnessMayBegin"]
            keys = answer.get("DirectoryKeys", {})
            self.directory_keys = {bytes.fromhex(directory): key for directory, key in keys.items()}

    def claim_patiently(self, transport: Transport) -> None:
        """As `claim`, waiting out the lease of a mount that died here: the cipher directory is locked by us already.

        Raises:
            VolumeBusy: if it is still held after the lease time.
        """
        deadline = time.monotonic() + LEASE_SECONDS + 2
        while True:
            try:
                self.claim(transport)
            except VolumeBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.25)
            else:
                return

    def healed(self) -> None:
        """Tell the daemon that every file of the unclean sessions was recovered.

        Raises:
            KmsfsError: as HealVolume.
        """
        if self.unclean and not self._read_only:
            self._session_call("HealVolume", HealedSessions=sorted(self.unclean))
            self.unclean.clear()

    def move(self, key_arn: str) -> None:
        """Let the volume belong to another KMS key from its next session on.

        Raises:
            KmsfsError: as MoveVolume.
        """
        self._session_call("MoveVolume", TargetKeyId=key_arn)

    def set_directory_key(self, dir_id: bytes, key_id: str | None) -> None:
        """Let kmsd know a directory's KMS key, or that it has none of its own.

        Raises:
            KmsfsError: as SetDirectoryKey.
        """
        more = {"TargetKeyId": key_id} if key_id is not None else {}
        self._session_call("SetDirectoryKey", DirectoryId=dir_id.hex(), **more)

    def end(self, head: bytes | None = None) -> None:
        """Tell the daemon that the session ended cleanly, and the head of its freshness records, if they changed.

        Raises:
            KmsfsError: as CloseVolumeSession.
        """
        if not self._read_only:
            self._session_call("CloseVolumeSession", **({} if head is None else {"FreshnessHead": head}))

    def _session_call(self, operation: str, **more: Any) -> None:
        request = {
            "KeyId": self._request["KeyId"],
            "VolumeId": self._request["VolumeId"],
            "Session": self.number,
        }
        self._call(operation, {**request, **more})

    def _call(self, operation: str, request: dict[str, Any]) -> Any:
        # A reconnect claims the lease in the watcher's thread, while others heal, or set a directory's key.
        with self._calling:
            if self._transport is None:
                raise KmsfsError("the lease has no connection")
            answer = self._transport.call(operation, request)
        if "e" in answer:
            raise to_exception(answer["e"])
        return answer["r"]
