"""Key material: make it, wrap it at rest, and encrypt under it in ciphertext blobs."""

from collections.abc import Sequence
from typing import NoReturn

from kmsd.keys.spares import SpareKeys
from kmsd.keystores.store import KeyStores
from kmsd.tokens.token import Token
from kmsfs.aead.derived import Kdf, kdf_by, kdf_of, open_derived, seal_derived, seal_many
from kmsfs.aead.kdf import Label, derive, sha256
from kmsfs.aead.nonces import Rng
from kmsfs.api.keyspecs import SYMMETRIC, is_asymmetric
from kmsfs.errors import AuthenticationFailed, CorruptStore, InvalidCiphertext, InvariantBroken
from kmsfs.formats.blob import Blob, BlobType, make_head, parse_blob
from kmsfs.formats.context import canonical
from kmsfs.ids import owner_of
from kmsfs.secret import KeyMaterial

MATERIAL_BYTES = 32
DATA_KEY_BYTES = 32


class MaterialVault:
    """Wraps key material under the domain keyring (blobs of type 2)."""

    def __init__(
        self, realm_id: bytes, domain_keys: dict[int, KeyMaterial], rng: Rng, spares: SpareKeys | None = None,
        stores: KeyStores | None = None,
    ) -> None:  # fmt: skip
        """`stores` keep the material of keys that lie in tokens; without them such keys cannot be used."""
        self.stores = stores
        self._spares = spares or SpareKeys()
        self._realm_id = realm_id
        self._newest = max(domain_keys)
        self._keys = {number: kdf_of(derive(key.reveal(), Label.DOMAIN_EKT)) for number, key in domain_keys.items()}
        self._rng = rng

    def make(self, spec: str) -> KeyMaterial:
        """Return fresh material of a key spec: random bytes, or a private key as PKCS #8 DER."""
        if is_asymmetric(spec):
            return KeyMaterial(self._spares.take(spec))
        bits = int(spec.removeprefix("HMAC_")) if spec != SYMMETRIC else 8 * MATERIAL_BYTES
        return KeyMaterial(self._rng(bits // 8))

    def wrap(self, material: KeyMaterial, place: str) -> bytes:
        """Return a blob of type 2; `place` (key id/term) is bound to it."""
        head = make_head(BlobType.WRAPPED_MATERIAL, self._realm_id, self._newest)
        return head + seal_derived(
            self._keys[self._newest], self._rng, head, material.reveal(), place.encode()
        )

    def unwrap(self, data: bytes, place: str) -> KeyMaterial:
        """Return the material of a blob of type 2.

        Raises:
            CorruptStore: if it is not this material.
        """
        try:
            blob = parse_blob(data)
            if blob.kind is not BlobType.WRAPPED_MATERIAL or blob.owner != self._realm_id:
                raise CorruptStore("wrapped key material is of another kind or realm")
            return KeyMaterial(open_derived(self._keys[blob.term], blob.head, blob.body, place.encode()))
        except (InvalidCiphertext, AuthenticationFailed, KeyError) as error:
            raise CorruptStore(
                "wrapped key material is damaged", hint="restore a backup of the state"
            ) from error


class TokenMaterial(KeyMaterial):
    """Material that a token keeps: there is nothing to reveal, and it derives by the token's HMAC."""

    __slots__ = ("_arn", "_label", "_store_id", "_stores")

    def __init__(self, stores: KeyStores | None, store_id: str, key_id: str, arn: str) -> None:
        super().__init__(b"")
        self._stores, self._store_id, self._arn = stores, store_id, arn
        self._label = f"kmsfs-{key_id}"

    def make(self) -> None:
        """Make it in the token.

        Raises:
            TokenUnavailable, KeyInvalidState: if the token cannot, or is not connected.
        """
        self._token().make_mac_key(self._label)

    def destroy(self) -> None:
        """Destroy it in the token.

        Raises:
            TokenUnavailable, KeyInvalidState: if the token cannot, or is not connected.
        """
        self._token().destroy_mac_key(self._label)

    def hmac_sha256(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of a message under it.

        Raises:
            TokenUnavailable, KeyInvalidState: if the token cannot, or is not connected.
        """
        return self._token().mac(self._label, message)

    def reveal(self) -> NoReturn:
        """Refuse: it is in the token, and stays there.

        Raises:
            InvariantBroken: always.
        """
        raise InvariantBroken("material in a token cannot be revealed")

    def _token(self) -> Token:
        if self._stores is None:
            raise InvariantBroken("there are no custom key stores here")
        return self._stores.token_of(self._store_id, self._arn)


def _kdf(material: KeyMaterial) -> Kdf:
    return kdf_by(material.hmac_sha256) if isinstance(material, TokenMaterial) else kdf_of(material.reveal())


def material_id(material: KeyMaterial) -> str:
    """Return the public id of material: 64 hex digits that tell nothing of it."""
    return sha256(b"kmsfs/material-id" + material.reveal()).hex()


def encrypt(
    material: KeyMaterial, key_id: str, term: int, plain: bytes, context: dict[str, str], rng: Rng
) -> bytes:
    """Return a ciphertext blob (type 1)."""
    head = make_head(BlobType.KMS_CIPHERTEXT, owner_of(key_id), term)
    return head + seal_derived(_kdf(material), rng, head, plain, canonical(context))


def data_keys(
    material: KeyMaterial, key_id: str, term: int, contexts: Sequence[dict[str, str]], rng: Rng
) -> list[tuple[bytes, bytes]]:
    """Return a fresh data key of 32 bytes and its ciphertext blob (type 1) for each context."""
    head = make_head(BlobType.KMS_CIPHERTEXT, owner_of(key_id), term)
    drawn = rng(DATA_KEY_BYTES * len(contexts))
    plains = [drawn[at : at + DATA_KEY_BYTES] for at in range(0, len(drawn), DATA_KEY_BYTES)]
    sealed = seal_many(_kdf(material), rng, head, plains, [canonical(context) for context in contexts])
    return [(plain, head + body) for plain, body in zip(plains, sealed, strict=True)]


def decrypt(material: KeyMaterial, blob: Blob, context: dict[str, str]) -> bytes:
    """Return a blob's plaintext.

    Raises:
        InvalidCiphertext: whatever is wrong with it.
    """
    try:
        return open_derived(_kdf(material), blob.head, blob.body, canonical(context))
    except AuthenticationFailed as error:
        raise InvalidCiphertext(evidence=error.detail) from None
