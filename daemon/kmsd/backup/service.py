"""Make a backup of a realm that may be running, open one again, and prove that it would do."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from kmsd.audit.journal import Journal
from kmsd.audit.segments import segments_held
from kmsd.backup.archive import HEADER_BYTES as ARCHIVE_HEADER_BYTES
from kmsd.backup.archive import ArchiveReader, ArchiveWriter, Header, parse_archive_header
from kmsd.config import Config
from kmsd.keys.material import MaterialVault
from kmsd.keys.registry import KeyRegistry
from kmsd.realm import read_url
from kmsd.root.keyring import HEADER_BYTES as KEYRING_HEADER_BYTES
from kmsd.root.keyring import SealType, open_keyring
from kmsd.store.anchor import Anchor
from kmsd.store.files import sync_directory, write_atomically
from kmsd.store.schema import Table
from kmsd.store.sealing import RowSealer
from kmsd.store.snapshot import snapshot, snapshot_shared
from kmsd.store.sqlite import SqliteStore
from kmsfs.aead.kdf import Label, derive
from kmsfs.errors import Conflict, CorruptStore, StorageError
from kmsfs.ids import account_of_realm
from kmsfs.secret import KeyMaterial

MANIFEST = "manifest.json"
_NEEDED = {"keyring.kms", "state.db", "audit/audit.jsonl", "audit/audit.state"}
_OF_THE_STATE = ("keyring.kms", "state.db", "root.token")
SUFFIX = ".kmsbackup"
_COUNTED = {
    "keys": Table.KEY, "aliases": Table.ALIAS, "grants": Table.GRANT, "parameters": Table.PARAMETER,
    "secrets": Table.SECRET, "volumes": Table.VOLUME, "identities": Table.IDENTITY,
}  # fmt: skip


@dataclass(slots=True)
class Contents:
    """What a backup holds, verified: how many of each, and audit records."""

    account: str
    created: float
    root_key_source: str
    counts: dict[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "account": self.account, "created": self.created, "root_key_source": self.root_key_source, **self.counts
        }  # fmt: skip


# --- making -----------------------------------------------------------------------------------------------------


def make_backup(config: Config, root_key: KeyMaterial, destination: Path) -> Path:
    """Write an archive of a realm, running or not; into a folder under a name of its own. Return where it is.

    Raises:
        Conflict: if the file exists.
        StorageError: if something cannot be read or written; no half archive is left.
        RootKeyMissing: if the root key is not this realm's.
    """
    now = time.time()
    if destination.is_dir():
        destination /= time.strftime("kmsd-%Y%m%dT%H%M%SZ", time.gmtime(now)) + SUFFIX
    if destination.exists():
        raise Conflict(f"{destination} exists already", hint="name another file, or a folder")
    keyring = config.keyring.read_bytes()
    open_keyring(keyring, root_key)
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    copy = destination.with_name(f".{destination.name}.{os.getpid()}.db")
    try:
        with _private_file(partial) as target:
            writer = ArchiveWriter(target, Header(int(now * 1000), keyring[:KEYRING_HEADER_BYTES]), root_key, os.urandom)
            with tarfile.open(fileobj=cast("BinaryIO", writer), mode="w|") as tar:
                _add_members(tar, config, keyring, copy)
            writer.finish()
            target.flush()
            os.fsync(target.fileno())
        partial.rename(destination)
        sync_directory(destination.parent)
    except OSError as error:
        raise StorageError(f"cannot write {destination}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    return destination


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` archives that `make_backup` named in a folder; return what went.

    Raises:
        StorageError: if one cannot be removed.
    """
    old = sorted(folder.glob(f"kmsd-*{SUFFIX}"))[:-keep]
    try:
        for path in old:
            path.unlink()
    except OSError as error:
        raise StorageError(f"cannot remove an old backup: {error.strerror}") from error
    return old


@contextlib.contextmanager
def _private_file(path: Path) -> Iterator[BinaryIO]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as stream:
        yield stream


def _add_members(tar: tarfile.TarFile, config: Config, keyring: bytes, copy: Path) -> None:
    manifest: dict[str, str] = {}
    with _private_file(copy):
        pass
    url = read_url(config)
    if url is None:
        snapshot(config.database, copy)
    else:
        snapshot_shared(url, copy)
    _add(tar, manifest, "keyring.kms", io.BytesIO(keyring), len(keyring))
    found = [("state.db", copy)]
    if config.token_file.exists():
        found.append((config.token_file.name, config.token_file))
    with segments_held(config.audit, alone=False):
        # The state of the log first: whatever is appended meanwhile continues from it.
        logs = sorted((p for p in config.audit.iterdir() if p.is_file() and p.name[0] != "."), reverse=True)
        found += [(f"audit/{path.name}", path) for path in logs]
        for place, path in found:
            with path.open("rb") as stream:
                _add(tar, manifest, place, stream, os.fstat(stream.fileno()).st_size)
    text = json.dumps(manifest, sort_keys=True).encode()
    _add(tar, {}, MANIFEST, io.BytesIO(text), len(text))


class _Hashed:
    """A stream whose first `size` bytes are hashed as they are read."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        piece = self._stream.read(min(size, self._left))
        self._left -= len(piece)
        self.digest.update(piece)
        return piece


def _add(tar: tarfile.TarFile, manifest: dict[str, str], name: str, stream: BinaryIO, size: int) -> None:
    facts = tarfile.TarInfo(name)
    facts.size, facts.mode, facts.mtime = size, 0o600, int(time.time())
    hashed = _Hashed(stream, size)
    tar.addfile(facts, cast("BinaryIO", hashed))
    manifest[name] = hashed.digest.hexdigest()


# --- opening ----------------------------------------------------------------------------------------------------


def read_header(archive: Path) -> Header:
    """Return an archive's clear header.

    Raises:
        CorruptStore: if it is no archive.
        StorageError: if it cannot be read.
    """
    try:
        with archive.open("rb") as stream:
            return parse_archive_header(stream.read(ARCHIVE_HEADER_BYTES))
    except OSError as error:
        raise StorageError(f"cannot read {archive}: {error.strerror}") from error


def verify_backup(archive: Path, root_key: KeyMaterial) -> Contents:
    """Restore an archive into a private folder, open every key and row and follow its audit chain, and remove it again.

    Raises:
        CorruptStore, AuditChainBroken: if anything is not as it was written.
        RootKeyMissing: if the root key is another realm's.
        StorageError: if it cannot be read, or there is no room for the copy.
    """
    with tempfile.TemporaryDirectory(prefix="kmsd-verify-") as scratch:
        return _unpack(archive, root_key, Config(Path(scratch) / "state", Path()))


def restore_backup(archive: Path, root_key: KeyMaterial, config: Config) -> Contents:
    """Make a realm from an archive, verified before it takes its place; the audit log says so.

    Raises:
        Conflict: if there is a realm already.
        CorruptStore, AuditChainBroken, RootKeyMissing, StorageError: as `verify_backup`; nothing is there then.
    """
    if config.keyring.exists():
        raise Conflict(
            f"{config.state} holds a realm", hint="move it away first; keep it until the restored one has proven itself"
        )
    making = config.state.with_name(f".{config.state.name}.restoring")
    shutil.rmtree(making, ignore_errors=True)
    unpacked = Config(making, config.socket)
    try:
        contents = _unpack(archive, root_key, unpacked)
        _finish(unpacked, config, root_key, archive)
        config.state.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            config.state.rmdir()
        making.rename(config.state)
        sync_directory(config.state.parent)
    except OSError as error:
        raise StorageError(f"cannot restore into {config.state}: {error.strerror}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(unpacked.anchor.parent, ignore_errors=True)
    return contents


def _finish(unpacked: Config, config: Config, root_key: KeyMaterial, archive: Path) -> None:
    """Give the unpacked state its root key and anchor, and its audit log a record of the restore."""
    keyring = open_keyring(unpacked.keyring.read_bytes(), root_key)
    if keyring.seal_type is SealType.KEYFILE:
        write_atomically(unpacked.keyfile, root_key.reveal(), mode=0o400)
    store = SqliteStore(unpacked.database, RowSealer(keyring.domain_keys, os.urandom))
    config.anchor.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    Anchor(config.anchor, derive(root_key.reveal(), Label.ROOT_ANCHOR)).write(store)
    store.close()
    journal = _journal(unpacked, keyring.domain_keys)
    journal.append(
        {
            "ts": round(time.time(), 3), "req": "-", "uid": os.getuid(), "op": "StateRestored", "res": "ok",
            "params": {"archive": archive.name, "created": read_header(archive).created_ms / 1000},
        }
    )  # fmt: skip
    journal.close()
    sync_directory(unpacked.audit)
    sync_directory(unpacked.state)


def _journal(config: Config, domain_keys: dict[int, KeyMaterial]) -> Journal:
    oldest = domain_keys[min(domain_keys)].reveal()
    return Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom)


def _unpack(archive: Path, root_key: KeyMaterial, config: Config) -> Contents:
    for folder in (config.state, config.audit):
        folder.mkdir(mode=0o700, parents=True)
    try:
        with archive.open("rb") as stream:
            reader = ArchiveReader(stream, root_key)
            _extract(reader, config)
    except OSError as error:
        raise StorageError(f"cannot unpack {archive}: {error.strerror}") from error
    return _prove(config, root_key, reader.header)


def _extract(reader: ArchiveReader, config: Config) -> None:
    found: dict[str, str] = {}
    manifest: dict[str, str] | None = None
    try:
        with tarfile.open(fileobj=cast("BinaryIO", reader), mode="r|") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if manifest is not None or stream is None:
                    raise CorruptStore(f"the backup holds {member.name!r}, which does not belong there")
                if member.name == MANIFEST:
                    manifest = json.loads(stream.read())
                else:
                    found[member.name] = _store(stream, _place(config, member.name))
        while reader.read(1 << 20):
            pass
    except (tarfile.TarError, ValueError) as error:
        raise CorruptStore(f"the backup's content is damaged: {error}") from error
    if found != manifest or not found.keys() >= _NEEDED:
        raise CorruptStore("the backup's files are not those of its manifest")


def _place(config: Config, name: str) -> Path:
    folder, _, last = name.rpartition("/")
    if folder not in ("", "audit") or last in ("", ".", "..") or (not folder and last not in _OF_THE_STATE):
        raise CorruptStore(f"the backup holds {name!r}, which does not belong there")
    return config.state / name


def _store(stream: Any, path: Path) -> str:
    digest = hashlib.sha256()
    with _private_file(path) as target:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _prove(config: Config, root_key: KeyMaterial, header: Header) -> Contents:
    """Open everything: the keyring, every row, every key's material, and the audit chain from its stored state."""
    keyring = open_keyring(config.keyring.read_bytes(), root_key)
    if header.realm.realm_id != keyring.realm_id:
        raise CorruptStore("the backup's head names another realm than its content")
    account = account_of_realm(keyring.realm_id)
    contents = Contents(account, header.created_ms / 1000, keyring.seal_type.name.lower())
    store = SqliteStore(config.database, RowSealer(keyring.domain_keys, os.urandom))
    try:
        KeyRegistry(account, store, MaterialVault(keyring.realm_id, keyring.domain_keys, os.urandom))
        for table in Table:
            if table is not Table.HEAD:
                rows = sum(1 for _ in store.scan(table))
                for name in (name for name, counted in _COUNTED.items() if counted is table):
                    contents.counts[name] = rows
        if store.quarantined:
            # A daemon goes on without them; a backup is to have everything.
            raise CorruptStore(
                f"{len(store.quarantined)} records of the state are damaged", hint="keep the backups that were made before, and restore one of them"
            )
    finally:
        store.close()
    journal = _journal(config, keyring.domain_keys)
    contents.counts["audit_records"] = journal.records
    journal.close()
    return contents

