"""Where kmsd gets the root key at start: keyfile, passphrase, systemd credential, PKCS #11 token, or people with shares of it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kmsd.root.keyring import Argon2Parameters, SealType
from kmsd.root.token import PIN_CREDENTIAL, make_token_root, read_token_root
from kmsd.store.files import write_atomically
from kmsd.tokens.token import TokenPlace
from kmsfs.aead.kdf import argon2id
from kmsfs.aead.nonces import Rng
from kmsfs.errors import RootKeyMissing
from kmsfs.secret import KeyMaterial

ARGON2_MEMORY_KIB = 64 * 1024
ARGON2_ITERATIONS = 3
ARGON2_LANES = 4
CREDENTIAL_NAME = "kmsfs-root"
MIN_PASSPHRASE_BYTES = 8


@dataclass(frozen=True, slots=True)
class RootSource:
    """Which source, and where it is."""

    seal_type: SealType
    keyfile: Path
    passphrase_file: Path | None = None
    """With the passphrase, or with the token's PIN."""
    token_file: Path = Path("root.token")
    token: TokenPlace | None = None
    """Of a new realm: the token that is to keep its root key."""

    def describe(self) -> str:
        """One word for status and messages."""
        return self.seal_type.name.lower()


def make_root_key(source: RootSource, rng: Rng) -> tuple[KeyMaterial, Argon2Parameters]:
    """Make (keyfile, token, shares) or read (passphrase, credential) the root key of a new realm; who calls gives out the shares.

    Raises:
        RootKeyMissing: if a keyfile exists already, or the passphrase or credential is missing or too short.
    """
    if source.seal_type is SealType.SHARES:
        return KeyMaterial(rng(32)), Argon2Parameters()
    if source.seal_type is SealType.KEYFILE:
        if source.keyfile.exists():
            raise RootKeyMissing(
                f"{source.keyfile} exists already", hint="move it away; it may be your only root key"
            )
        key = KeyMaterial(rng(32))
        write_atomically(source.keyfile, key.reveal(), mode=0o400)
        return key, Argon2Parameters()
    if source.seal_type is SealType.PKCS11:
        return make_token_root(source.token_file, source.token, read_pin(source.passphrase_file), rng), Argon2Parameters()
    if source.seal_type is SealType.PASSPHRASE:
        argon2 = new_argon2(rng)
        return read_root_key(source, argon2), argon2
    return read_root_key(source, Argon2Parameters()), Argon2Parameters()


def new_argon2(rng: Rng) -> Argon2Parameters:
    """Return the costs of a new passphrase's derivation, with a salt of its own (RFC 9106, section 4)."""
    return Argon2Parameters(rng(16), ARGON2_MEMORY_KIB, ARGON2_ITERATIONS, ARGON2_LANES)


def key_of_passphrase(passphrase: bytes, argon2: Argon2Parameters) -> KeyMaterial:
    """Return the root key of a passphrase.

    Raises:
        RootKeyMissing: if it is too short to be one.
    """
    passphrase = passphrase.rstrip(b"\r\n")
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise RootKeyMissing(f"the passphrase has less than {MIN_PASSPHRASE_BYTES} bytes")
    return KeyMaterial(argon2id(passphrase, argon2.salt, argon2.memory_kib, argon2.iterations, argon2.lanes))


def read_root_key(source: RootSource, argon2: Argon2Parameters) -> KeyMaterial:
    """Read the root key of an existing realm.

    Raises:
        RootKeyMissing: if the source is missing, unsafe or of a wrong length.
    """
    if source.seal_type is SealType.PASSPHRASE:
        return key_of_passphrase(read_passphrase(source.passphrase_file), argon2)
    if source.seal_type is SealType.SHARES:
        raise RootKeyMissing(
            "people hold shares of this realm's root key", hint="kmsd unseal, or where a command takes it, --code-file with the shares"
        )
    if source.seal_type is SealType.PKCS11:
        return read_token_root(source.token_file, read_pin(source.passphrase_file))
    sealed = source.seal_type is SealType.CREDENTIAL
    return read_key_file(_credential_path(CREDENTIAL_NAME) if sealed else source.keyfile, guarded=sealed)


def read_key_file(path: Path, *, guarded: bool = False) -> KeyMaterial:
    """Return the key of 32 bytes in a file that only its owner can read; `guarded` as an ACL of systemd's may show.

    Raises:
        RootKeyMissing: if it is missing, unsafe or of a wrong length.
    """
    raw = _read_private(path, guarded=guarded)
    if len(raw) != 32:
        raise RootKeyMissing(f"the root key in {path} must have 32 bytes, not {len(raw)}")
    return KeyMaterial(raw)


def read_pin(path: Path | None) -> bytes:
    """Return a token's PIN: of a private file, of standard input for `-`, or of the systemd credential `kmsfs-pin`.

    Raises:
        RootKeyMissing: if there is none.
    """
    if path is not None:
        return read_passphrase(path).strip(b"\r\n")
    if not os.environ.get("CREDENTIALS_DIRECTORY"):
        raise RootKeyMissing(
            "this realm's root key is in a token, which wants its PIN",
            hint="pass --passphrase-file with the PIN, or `-` for standard input; a daemon that is started with --sealed takes it from `kmsd unseal`",
        )
    return _read_private(_credential_path(PIN_CREDENTIAL), guarded=True).strip(b"\r\n")


def _credential_path(name: str) -> Path:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise RootKeyMissing(
            "no systemd credential is passed to this process",
            hint=f"set LoadCredentialEncrypted={name} in the unit, or use a keyfile",
        )
    return Path(directory) / name


def read_passphrase(path: Path | None) -> bytes:
    """Return the passphrase in a private file, or the first line of standard input for `-`.

    Raises:
        RootKeyMissing: if there is none.
    """
    if path is None:
        raise RootKeyMissing(
            "this realm needs a passphrase",
            hint="pass --passphrase-file, or `-` for standard input; a daemon that is started with --sealed takes it from `kmsd unseal`",
        )
    if os.fspath(path) != "-":
        return _read_private(path)
    with os.fdopen(os.dup(0), "rb") as stream:
        return stream.readline()


def _read_private(path: Path, *, guarded: bool = False) -> bytes:
    """Read a file of ours alone; `guarded` where systemd lets nobody else in, by an ACL that shows as the group's bits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RootKeyMissing(
            f"cannot read the root key {path}: {error.strerror}",
            hint="restore the file, or use `kmsd recover` with the recovery code",
        ) from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_mode & (0o007 if guarded else 0o077):
            raise RootKeyMissing(
                f"{path} must be a regular file that only its owner can read", hint=f"chmod 0400 {path}"
            )
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
