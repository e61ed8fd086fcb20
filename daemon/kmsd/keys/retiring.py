"""Handler of DestroyKeyMaterial: what a rotation replaced can go once nothing is encrypted under it any more.

That nothing is, the key service proves for what it keeps itself: parameters and secrets. For files `kmsfs rewrap` counts.
"""

from collections.abc import Callable, Iterator

from kmsd.dispatch.call import Call
from kmsd.keys.material import material_id
from kmsd.keys.registry import KeyRegistry
from kmsfs.api.shapes import admin as shapes
from kmsfs.errors import InvalidCiphertext, KeyMaterialIdNotFound, MaterialInUse, UnsupportedOperation
from kmsfs.formats.blob import parse_blob
from kmsfs.formats.message import parse_message

StoredValues = Callable[[], Iterator[tuple[str, bytes]]]
"""Yields (ARN, sealed value) of everything that is kept encrypted under KMS keys."""


class RetirementService:
    """Destroys old material."""

    def __init__(self, registry: KeyRegistry, stored: tuple[StoredValues, ...]) -> None:
        self._registry = registry
        self._stored = stored

    def destroy_key_material(self, call: Call) -> shapes.DestroyKeyMaterialResponse:
        """DestroyKeyMaterial."""
        key, wanted = call.the_key, call.request.key_material_id
        if key.store:
            raise UnsupportedOperation(f"{key.arn} is in a custom key store, which has one material for it.")
        term = next((t for t, material in key.materials.items() if material_id(material) == wanted), None)
        if term is None:
            raise KeyMaterialIdNotFound(f"{key.arn} has no key material {wanted}.")
        if term >= key.term:
            raise MaterialInUse(
                "This key material is the one that encrypts, or will after the next rotation.", hint="rotate the key first: kmsfs key rotate"
            )
        users = [arn for values in self._stored for arn, value in values() if _under(value, key.key_id, term)]
        if users:
            raise MaterialInUse(
                f"{len(users)} stored value(s) are encrypted under this key material, such as {users[0]}.",
                hint="store them anew, or delete those versions, and try again",
            )
        if self._registry.store.quarantined:
            raise MaterialInUse(
                "Records of the key daemon's state are damaged, and may be encrypted under this key material.", hint="restore a backup of the state first"
            )
        self._registry.destroy_material(key, term)
        return shapes.DestroyKeyMaterialResponse(key_id=key.arn, material_version=term)


def _under(value: bytes, key_id: str, term: int) -> bool:
    """Tell whether a ciphertext blob, or the message of an advanced value, is sealed under this material."""
    try:
        blob = parse_blob(value)
    except InvalidCiphertext:
        try:
            blob = parse_blob(parse_message(value).header.wrapped_key)
        except InvalidCiphertext:
            return False
    return blob.key_id == key_id and blob.term == term
