"""A realm's files: make them, open them, recover them."""

import hashlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmsd.audit.journal import Journal
from kmsd.audit.segments import closed_segments
from kmsd.config import Config
from kmsd.root.keyring import Argon2Parameters, Keyring, SealType, open_keyring, parse_header
from kmsd.root.recovery import recovery_code
from kmsd.root.shares import make_shares
from kmsd.root.sources import make_root_key, read_key_file, read_pin, read_root_key
from kmsd.root.token import read_token_root
from kmsd.store.anchor import Anchor
from kmsd.store.database import SealedStore, seal_head
from kmsd.store.files import sync_directory, write_atomically
from kmsd.store.postgres import PostgresStore, create_shared
from kmsd.store.sealing import RowSealer
from kmsd.store.snapshot import share
from kmsd.store.sqlite import SqliteStore
from kmsd.tokens.token import TokenPlace
from kmsfs.aead.kdf import Label, derive
from kmsfs.errors import Conflict, RootKeyMissing, StorageError, UnsupportedOperation, UsageError
from kmsfs.formats.audit import LOG_NAME, segment_name
from kmsfs.ids import realm_of_account
from kmsfs.secret import KeyMaterial


@dataclass(frozen=True, slots=True)
class OpenRealm:
    """A keyring with its domain keys, and the key of the anchor."""

    keyring: Keyring
    anchor_key: bytes


@dataclass(frozen=True, slots=True)
class NewRealm:
    """What `init` shows once: nothing of it is stored. A realm of which people hold shares has those instead of a code."""

    recovery_code: str
    audit_verification_key: str
    shares: list[str]


def initialise(
    config: Config,
    seal_type: SealType,
    passphrase_file: Path | None,
    account: str | None = None,
    shares: tuple[int, int] = (0, 0),
    token: TokenPlace | None = None,
    url: str | None = None,
) -> NewRealm:
    """Make a realm: root key, keyring, empty store, anchor, audit log. Its account is given, or made at random.

    `shares` is how many shares of the root key are enough and how many are made, where people are to hold it; `token` is
    where it is to be, where a token keeps it; `url` is the database that it shares with other hosts, where it does.

    Raises:
        DatabaseUnreachable: if that cannot be written.
        Conflict: if there is one already.
        InvalidArn: if the account has not twelve digits.
        UsageError: if shares cannot be made so.
        RootKeyMissing: if the root key source has no key.
        StorageError: if the disk refuses.
    """
    _make_folders(config)
    root_key, argon2 = make_root_key(config.source(seal_type, passphrase_file, token), os.urandom)
    held = make_shares(root_key, *shares) if seal_type is SealType.SHARES else []
    realm_id = realm_of_account(account, os.urandom) if account else os.urandom(16)
    keyring = Keyring(
        seal_type, realm_id, argon2, 1, {1: KeyMaterial(os.urandom(32))}, {1: time.time()}
    )
    for leftover in (*config.state.glob("state.db*"), config.database_url, config.host_file):
        leftover.unlink(missing_ok=True)
    if url is None:
        store: SealedStore = SqliteStore(config.database, RowSealer(keyring.domain_keys, os.urandom), create=True)
    else:
        create_shared(url, realm_id, (), seal_head(RowSealer(keyring.domain_keys, os.urandom), 0, 0))
        place_in(config, url)
        store = open_store(config, keyring)
    Anchor(config.anchor, derive(root_key.reveal(), Label.ROOT_ANCHOR)).write(store)
    store.close()
    audit_key = _begin_audit(config, keyring)
    # The keyring comes last: without it there is no realm, so a half-made one is simply made again.
    write_atomically(config.keyring, keyring.encode(root_key, os.urandom), mode=0o600)
    return NewRealm("" if held else recovery_code(root_key), audit_key, held)


def _make_folders(config: Config) -> None:
    if config.keyring.exists():
        raise Conflict(f"{config.state} already holds a realm", hint="choose another folder with --state")
    try:
        for folder in (config.state, config.audit, config.anchor.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make {config.state}: {error.strerror}") from error


def _begin_audit(config: Config, keyring: Keyring) -> str:
    """Begin an audit log; return its verification key."""
    audit_key = os.urandom(32)
    log = config.audit / LOG_NAME
    log.unlink(missing_ok=True)
    for _first, path in closed_segments(log):
        path.unlink()
    oldest = keyring.domain_keys[min(keyring.domain_keys)].reveal()
    Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom, first_key=audit_key).close()
    sync_directory(config.audit)
    return audit_key.hex()


def open_store(config: Config, keyring: Keyring) -> SealedStore:
    """Open a realm's state: in the folder, or in the database that it shares with other hosts.

    Raises:
        DatabaseUnreachable, StorageError: if it cannot be read.
        CorruptStore, UnsupportedFormat, UsageError: if it is not what it should be.
    """
    sealer = RowSealer(keyring.domain_keys, os.urandom)
    url = read_url(config)
    if url is None:
        return SqliteStore(config.database, sealer)
    return PostgresStore(url, sealer, keyring.realm_id, config.host_file.read_text(encoding="utf-8").strip())


def place_in(config: Config, url: str) -> None:
    """Let a realm's state be in a shared database from now on, and give this host a name there.

    Raises:
        StorageError: if the disk refuses.
    """
    for path, text in ((config.host_file, f"{socket.gethostname()}-{os.urandom(4).hex()}"), (config.database_url, url)):
        write_atomically(path, f"{text}\n".encode(), mode=0o600)


def join_realm(config: Config, keyring_bytes: bytes, root_key: KeyMaterial, url: str) -> str:
    """Make a state folder of this host for a realm whose state is in a shared database; return the audit verification key.

    The root key comes from the same kind of source here as where the keyring was made; a keyfile is written.

    Raises:
        Conflict: if there is a realm already.
        RootKeyMissing: if the root key is another realm's.
        CorruptStore, UsageError, DatabaseUnreachable: if keyring or database are not what they should be.
        StorageError: if the disk refuses.
    """
    _make_folders(config)
    keyring = open_keyring(keyring_bytes, root_key)
    place_in(config, url)
    store = open_store(config, keyring)
    Anchor(config.anchor, derive(root_key.reveal(), Label.ROOT_ANCHOR)).write(store)
    store.close()
    if keyring.seal_type is SealType.KEYFILE:
        write_atomically(config.keyfile, root_key.reveal(), mode=0o400)
    audit_key = _begin_audit(config, keyring)
    write_atomically(config.keyring, keyring_bytes, mode=0o600)
    return audit_key


def share_state(config: Config, keyring: Keyring, url: str) -> Path:
    """Move a realm's state, which no daemon may be using, from its folder into an empty database; return where the old file is kept.

    Raises:
        Conflict: if it is shared already, or the database holds a state.
        DatabaseUnreachable, StorageError, CorruptStore: if one cannot be written, or the other not be read.
    """
    if read_url(config) is not None:
        raise Conflict(f"the state of {config.state} is in a shared database already")
    # Opened once, so that nothing damaged is carried over, and the log is in the file.
    SqliteStore(config.database, RowSealer(keyring.domain_keys, os.urandom)).close()
    share(config.database, url, keyring.realm_id)
    place_in(config, url)
    kept = config.database.with_name(config.database.name + ".before-sharing")
    config.database.rename(kept)
    sync_directory(config.state)
    return kept


def read_url(config: Config) -> str | None:
    """Return where a realm's shared database is, None if its state is its own.

    Raises:
        StorageError: if that cannot be read.
    """
    try:
        return config.database_url.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {config.database_url}: {error.strerror}") from error


def open_realm(config: Config, passphrase_file: Path | None) -> OpenRealm:
    """Read the root key from the realm's source and open the keyring.

    Raises:
        UsageError: if there is no realm.
        RootKeyMissing: if the root key is missing or wrong.
        CorruptStore: if the keyring is damaged.
    """
    return open_with(config, read_root(config, passphrase_file))


def open_with(config: Config, root_key: KeyMaterial) -> OpenRealm:
    """Open the keyring with the root key, which is wiped then.

    Raises:
        UsageError: if there is no realm.
        RootKeyMissing: if it is another realm's key.
        CorruptStore: if the keyring is damaged.
    """
    keyring = open_keyring(_keyring_bytes(config), root_key)
    anchor_key = derive(root_key.reveal(), Label.ROOT_ANCHOR)
    root_key.wipe()
    return OpenRealm(keyring, anchor_key)


def read_header(config: Config) -> Keyring:
    """Return what the keyring says in the clear: its realm, and where its root key comes from.

    Raises:
        UsageError: if there is no realm.
        CorruptStore: if the keyring is damaged.
    """
    return parse_header(_keyring_bytes(config))


def read_root(config: Config, passphrase_file: Path | None) -> KeyMaterial:
    """Read the root key from the realm's source.

    Raises:
        UsageError: if there is no realm.
        RootKeyMissing: if the root key is missing.
        CorruptStore: if the keyring is damaged.
    """
    header = read_header(config)
    if header.seal_type is SealType.KEYFILE:
        _finish_change(config, config.keyfile, read_key_file)
    elif header.seal_type is SealType.PKCS11 and next_path(config.token_file).exists():
        pin = read_pin(passphrase_file)
        _finish_change(config, config.token_file, lambda path: read_token_root(path, pin))
        return read_token_root(config.token_file, pin)
    return read_root_key(config.source(header.seal_type, passphrase_file), header.argon2)


def begin_new_audit(config: Config, realm: OpenRealm) -> tuple[Path, str]:
    """Put the audit log aside and begin a new chain whose first record names it; return (where it is, new verification key).

    Its closed segments go with it, so that `--log` reads all of it where it is.

    Raises:
        AuditUnavailable, StorageError: if the disk refuses.
    """
    domain_keys = realm.keyring.domain_keys
    log = config.audit / LOG_NAME
    kept = config.audit / f"audit.until-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl"
    moved = [(path, kept.with_name(segment_name(kept.name, first))) for first, path in closed_segments(log)]
    moved += [(log, kept)] if log.exists() else []
    digest = hashlib.sha256()
    try:
        for path, to in moved:
            with path.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
            path.rename(to)
        sync_directory(config.audit)
    except OSError as error:
        raise StorageError(f"cannot put {log} aside: {error.strerror}") from error
    first_key = os.urandom(32)
    oldest = domain_keys[min(domain_keys)].reveal()
    journal = Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom, first_key=first_key)
    journal.append(
        {
            "ts": round(time.time(), 3), "req": "-", "uid": os.getuid(), "op": "AuditRestarted", "res": "ok",
            "params": {"old_log": kept.name, "old_sha256": digest.hexdigest()},
        }
    )  # fmt: skip
    journal.close()
    sync_directory(config.audit)
    return kept, first_key.hex()


def change_root(
    config: Config, old: KeyMaterial, new: KeyMaterial, seal_type: SealType, argon2: Argon2Parameters
) -> None:
    """Let a realm's root key be another one, from another source. Keys, blobs and files stay as they are.

    A crash at any point leaves a realm that opens with the old key or with the new one, from where the keyring says.

    Raises:
        RootKeyMissing: if `old` is not the realm's.
        CorruptStore, StorageError: if its files are damaged, or the disk refuses.
    """
    keyring = open_keyring(_keyring_bytes(config), old)
    before = keyring.seal_type.name.lower()
    if seal_type is SealType.KEYFILE:
        write_atomically(next_path(config.keyfile), new.reveal(), mode=0o400)
    Anchor(config.anchor, derive(old.reveal(), Label.ROOT_ANCHOR)).write_next(derive(new.reveal(), Label.ROOT_ANCHOR))
    keyring.seal_type, keyring.argon2 = seal_type, argon2
    keyring.generation += 1
    write_atomically(config.keyring, keyring.encode(new, os.urandom), mode=0o600)
    oldest = keyring.domain_keys[min(keyring.domain_keys)].reveal()
    journal = Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom)
    journal.append(
        {
            "ts": round(time.time(), 3), "req": "-", "uid": os.getuid(), "op": "RootKeyChanged", "res": "ok",
            "params": {"from": before, "to": seal_type.name.lower()},
        }
    )  # fmt: skip
    journal.close()
    for kind, path in ((SealType.KEYFILE, config.keyfile), (SealType.PKCS11, config.token_file)):
        if seal_type is kind:
            _finish_change(config, path, lambda _path: KeyMaterial(new.reveal()))
        else:
            path.unlink(missing_ok=True)
    sync_directory(config.state)


def renew_state_key(config: Config, root_key: KeyMaterial) -> int:
    """Give a realm, which no daemon may be serving, another domain key; return its number.

    Rows and key material are sealed under it from now on. What is there stays under the keys before it, and they in the keyring: a bound
    on how often a key seals (security.md, section 14) asks for no more.

    Raises:
        UnsupportedOperation: if the state is in a database: the other hosts' keyrings would lack the key.
        RootKeyMissing: if the root key is another realm's.
        CorruptStore, StorageError: if its files are damaged, or the disk refuses.
    """
    if read_url(config) is not None:
        raise UnsupportedOperation(f"the state of {config.state} is in a database that other hosts may share: their keyrings would lack a new key")
    keyring = open_keyring(_keyring_bytes(config), root_key)
    number = max(keyring.domain_keys) + 1
    keyring.domain_keys[number], keyring.created[number] = KeyMaterial(os.urandom(32)), time.time()
    keyring.generation += 1
    write_atomically(config.keyring, keyring.encode(root_key, os.urandom), mode=0o600)
    oldest = keyring.domain_keys[min(keyring.domain_keys)].reveal()
    journal = Journal(config.audit, derive(oldest, Label.DOMAIN_AUDIT), os.urandom)
    journal.append(
        {"ts": round(time.time(), 3), "req": "-", "uid": os.getuid(), "op": "StateKeyRenewed", "res": "ok", "params": {"number": number}}
    )
    journal.close()
    return number


def next_path(path: Path) -> Path:
    """Return where a new keyfile, or what names a new token, lies until the keyring is under it."""
    return path.with_name(path.name + ".next")


def _finish_change(config: Config, place: Path, read: Callable[[Path], KeyMaterial]) -> None:
    """Put a new root key's file into its place, if the keyring is under it already."""
    path = next_path(place)
    if not path.exists():
        return
    try:
        open_keyring(_keyring_bytes(config), read(path))
    except RootKeyMissing:
        # The change did not come that far.
        return
    path.replace(place)
    sync_directory(config.state)


def recover(config: Config, root_key: KeyMaterial) -> None:
    """Give a realm a keyfile again, from its recovery code.

    Raises:
        RootKeyMissing: if the code is not this realm's, or the keyfile is there and already right.
    """
    keyring = open_keyring(_keyring_bytes(config), root_key)
    if config.keyfile.exists() and config.keyfile.read_bytes() == root_key.reveal():
        if keyring.seal_type is SealType.KEYFILE:
            raise RootKeyMissing("nothing to recover: the keyfile is there and right")
    elif config.keyfile.exists():
        config.keyfile.replace(config.keyfile.with_name("root.key.replaced"))
    write_atomically(config.keyfile, root_key.reveal(), mode=0o400)
    keyring.seal_type = SealType.KEYFILE
    keyring.argon2 = Argon2Parameters()
    keyring.generation += 1
    write_atomically(config.keyring, keyring.encode(root_key, os.urandom), mode=0o600)


def _keyring_bytes(config: Config) -> bytes:
    try:
        return config.keyring.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{config.state} holds no realm", hint="run `kmsd init` first") from error
    except OSError as error:
        raise StorageError(f"cannot read {config.keyring}: {error.strerror}") from error
