"""The keyring file: domain keys wrapped under the root key (docs/formats/store-v1.md)."""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.kdf import Label, derive
from kmsfs.aead.nonces import Rng
from kmsfs.errors import AuthenticationFailed, BadFrame, CorruptStore, RootKeyMissing, UnsupportedFormat
from kmsfs.formats.packing import pack, unpack
from kmsfs.secret import KeyMaterial

MAGIC = b"KMSKRNG1"
_HEADER = struct.Struct("<8sB3s16s16sIIIII")
HEADER_BYTES = _HEADER.size


class SealType(IntEnum):
    """Where the root key comes from."""

    CREDENTIAL = 1
    KEYFILE = 2
    PASSPHRASE = 3
    SHARES = 4
    """Nowhere: people hold shares of it, and give them to a sealed daemon."""
    PKCS11 = 5
    """A token of PKCS #11, which decrypts it for whoever has its PIN: kmsd.root.token."""


@dataclass(slots=True)
class Argon2Parameters:
    """Costs of the passphrase's derivation (RFC 9106)."""

    salt: bytes = bytes(16)
    memory_kib: int = 0
    iterations: int = 0
    lanes: int = 0


@dataclass(slots=True)
class Keyring:
    """The realm's identity and its domain keys by number; the highest is active."""

    seal_type: SealType
    realm_id: bytes
    argon2: Argon2Parameters
    generation: int
    domain_keys: dict[int, KeyMaterial] = field(default_factory=dict)
    created: dict[int, float] = field(default_factory=dict)

    def encode(self, root_key: KeyMaterial, rng: Rng) -> bytes:
        """Return the file's bytes."""
        entries = [
            {"id": number, "created": self.created[number], "key": key.reveal()}
            for number, key in sorted(self.domain_keys.items())
        ]
        plain = pack(entries)
        header = _HEADER.pack(
            MAGIC, self.seal_type, b"", self.realm_id, self.argon2.salt, self.argon2.memory_kib,
            self.argon2.iterations, self.argon2.lanes, self.generation, len(plain) + 16,
        )  # fmt: skip
        return header + _wrapper(root_key).seal(rng, plain, header)


def parse_header(data: bytes, *, whole: bool = True) -> Keyring:
    """Read the clear header: enough to know which root key is needed. `data` is the file, if `whole`.

    Raises:
        CorruptStore: if it is no keyring.
        UnsupportedFormat: if its seal type is unknown.
    """
    if len(data) < HEADER_BYTES + 28 or data[:8] != MAGIC:
        raise CorruptStore(
            "the keyring file is damaged or is no keyring", hint="restore a backup of the state"
        )
    _, seal, reserved, realm, salt, memory, iterations, lanes, generation, length = _HEADER.unpack_from(data)
    if reserved != bytes(3) or (whole and length != len(data) - HEADER_BYTES - 12):
        raise CorruptStore("the keyring file is damaged", hint="restore a backup of the state")
    try:
        seal_type = SealType(seal)
    except ValueError as error:
        raise UnsupportedFormat(f"keyring seal type {seal} is unknown") from error
    return Keyring(seal_type, realm, Argon2Parameters(salt, memory, iterations, lanes), generation)


def open_keyring(data: bytes, root_key: KeyMaterial) -> Keyring:
    """Return the keyring with its domain keys.

    Raises:
        RootKeyMissing: if this root key does not open it.
        CorruptStore: if it is damaged.
    """
    keyring = parse_header(data)
    try:
        plain = _wrapper(root_key).open(data[HEADER_BYTES:], data[:HEADER_BYTES])
        entries: list[dict[str, Any]] = unpack(plain)
        keyring.domain_keys = {entry["id"]: KeyMaterial(entry["key"]) for entry in entries}
        keyring.created = {entry["id"]: entry["created"] for entry in entries}
    except AuthenticationFailed as error:
        raise RootKeyMissing(
            "the root key does not open the keyring: it is another key, or the keyring is damaged",
            hint="check the root key source, or use `kmsd recover` with the recovery code",
        ) from error
    except (BadFrame, KeyError, TypeError) as error:
        raise CorruptStore("the keyring's content is damaged") from error
    return keyring


def _wrapper(root_key: KeyMaterial) -> GcmKey:
    return GcmKey(derive(root_key.reveal(), Label.ROOT_KEK))
