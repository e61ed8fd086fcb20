"""Handlers of imported key material (KMS developer guide, "Importing key material for AWS KMS keys")."""

from dataclasses import dataclass

from kmsd.dispatch.call import Call
from kmsd.keys.material import material_id
from kmsd.keys.registry import EXTERNAL, Import, KeyRegistry, KmsKey
from kmsd.keys.spares import SpareKeys
from kmsfs.aead.asymmetric import KeyPair, is_private_of
from kmsfs.aead.gcm import GcmKey
from kmsfs.aead.importing import unwrap_imported
from kmsfs.aead.nonces import Rng
from kmsfs.api.keyspecs import SYMMETRIC, is_asymmetric
from kmsfs.api.operation import KeyState
from kmsfs.api.shapes import importing as shapes
from kmsfs.errors import (
    AuthenticationFailed,
    BadFrame,
    ExpiredImportToken,
    IncorrectKeyMaterial,
    InvalidCiphertext,
    InvalidImportToken,
    KeyInvalidState,
    KeyMaterialIdNotFound,
    ShapeError,
    UnsupportedOperation,
)
from kmsfs.formats.packing import pack, unpack
from kmsfs.secret import KeyMaterial

TOKEN_SECONDS = 86_400
_AAD = b"kmsfs/import/v1"
NEW = "NEW_KEY_MATERIAL"
EXPIRES, LASTS = "KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"


@dataclass(frozen=True, slots=True)
class _Token:
    """What an import token holds, sealed: the wrapping private key, and for which key, how and until when."""

    key_id: str
    algorithm: str
    private_der: bytes
    expires: float


class ImportService:
    """GetParametersForImport, ImportKeyMaterial, DeleteImportedKeyMaterial, and the end of material that expires."""

    def __init__(self, registry: KeyRegistry, token_key: bytes, rng: Rng, spares: SpareKeys) -> None:
        self._spares = spares
        self._registry = registry
        self._cipher = GcmKey(token_key)
        self._rng = rng

    def get_parameters(self, call: Call) -> shapes.GetParametersForImportResponse:
        """GetParametersForImport: good for a day."""
        request: shapes.GetParametersForImportRequest = call.request
        key = _external(call.the_key)
        if request.wrapping_algorithm in ("RSAES_PKCS1_V1_5", "SM2PKE") or request.wrapping_key_spec == "SM2":
            raise UnsupportedOperation(
                f"{request.wrapping_algorithm} with {request.wrapping_key_spec} is not offered here."
            )
        private = self._spares.take(request.wrapping_key_spec)
        expires = call.now + TOKEN_SECONDS
        plain = pack(
            {
                "key": key.key_id,
                "algorithm": request.wrapping_algorithm,
                "private": private,
                "expires": expires,
            }
        )
        return shapes.GetParametersForImportResponse(
            key_id=key.arn,
            import_token=self._cipher.seal(self._rng, plain, _AAD),
            public_key=KeyPair(request.wrapping_key_spec, private).public_der(),
            parameters_valid_to=expires,
        )

    def import_material(self, call: Call) -> shapes.ImportedMaterialResponse:
        """ImportKeyMaterial: what was imported once can be imported again; new material of a symmetric key waits for a rotation."""
        request: shapes.ImportKeyMaterialRequest = call.request
        key = _external(call.the_key)
        if request.import_type == NEW and request.key_material_id is not None:
            raise ShapeError("A KeyMaterialId must not be set if the ImportType is NEW_KEY_MATERIAL.")
        valid_to = _valid_to(request, call.now)
        token = self._read(request.import_token)
        if token.key_id != key.key_id:
            raise InvalidImportToken("The import token is of another key.")
        if token.expires <= call.now:
            raise ExpiredImportToken("The import token has expired.")
        try:
            plain = unwrap_imported(token.private_der, token.algorithm, request.encrypted_key_material)
        except AuthenticationFailed as error:
            raise InvalidCiphertext(evidence=error.detail) from error
        material = _checked(key.spec, plain)
        found = material_id(material)
        if request.key_material_id not in (None, found):
            raise IncorrectKeyMaterial("The key material is not the one with this id.")
        term = _term_for(key, found, new=request.import_type == NEW)
        before = key.imports.get(term)
        told = request.key_material_description
        if told is None and before is not None:
            told = before.description
        self._registry.import_material(key, term, material, Import(found, valid_to, request.expiration_model, told))
        return shapes.ImportedMaterialResponse(key_id=key.arn, key_material_id=found)

    def delete_material(self, call: Call) -> shapes.ImportedMaterialResponse:
        """DeleteImportedKeyMaterial: the key stays, and cannot be used until the same material is imported again."""
        key = _external(call.the_key)
        wanted = call.request.key_material_id
        terms = {known.material_id: term for term, known in key.imports.items()}
        if wanted is not None and wanted not in terms:
            raise KeyMaterialIdNotFound("The key has no such key material.")
        term = key.term if wanted is None else terms[wanted]
        known = key.imports.get(term)
        if term in key.materials:
            self._registry.drop_material(key, term)
        return shapes.ImportedMaterialResponse(key_id=key.arn, key_material_id=known.material_id if known else None)

    def expire_due(self, now: float) -> list[str]:
        """Drop material whose time is over; return the ARNs of its keys."""
        due = [(key, term) for key in self._registry.keys.values() if key.imports for term in key.overdue(now)]
        for key, term in due:
            self._registry.drop_material(key, term)
        return [key.arn for key, _ in due]

    def _read(self, token: bytes) -> _Token:
        try:
            facts = unpack(self._cipher.open(token, _AAD))
            return _Token(facts["key"], facts["algorithm"], facts["private"], facts["expires"])
        except (AuthenticationFailed, BadFrame, KeyError) as error:
            raise InvalidImportToken("The import token is not one of this key service.") from error


def _term_for(key: KmsKey, found: str, *, new: bool) -> int:
    """Return the term that material belongs to: its own if the key has had it, else the first, or the next.

    Raises:
        IncorrectKeyMaterial: if the key has had other material, and this is not said to be new.
        UnsupportedOperation: if the key takes one material only.
        KeyInvalidState: if material is missing, or waits for its rotation already.
    """
    for term, known in key.imports.items():
        if known.material_id == found:
            return term
    if not key.imports:
        return key.term
    if not new:
        raise IncorrectKeyMaterial("The key material is not one that was imported before.")
    if key.spec != SYMMETRIC:
        raise UnsupportedOperation(f"{key.arn} key spec is {key.spec}: its key material cannot be changed after the first import.")
    if key.waits_for_material:
        raise KeyInvalidState(f"{key.arn} is pending import.")
    if key.term + 1 in key.imports:
        raise KeyInvalidState(f"{key.arn} has key material that is pending rotation.")
    return key.term + 1


def _external(key: KmsKey) -> KmsKey:
    if key.origin != EXTERNAL:
        raise UnsupportedOperation(f"{key.arn} origin is {key.origin} which is not valid for this operation.")
    if key.state is KeyState.PENDING_DELETION:
        raise KeyInvalidState(f"{key.arn} is pending deletion.")
    return key


def _valid_to(request: shapes.ImportKeyMaterialRequest, now: float) -> float | None:
    if request.expiration_model == LASTS:
        if request.valid_to is not None:
            raise ShapeError(
                "A validTo date must not be set if the expirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE."
            )
        return None
    if request.valid_to is None:
        raise ShapeError("A validTo date must be set if the expirationModel is KEY_MATERIAL_EXPIRES.")
    if not now < request.valid_to <= now + 365 * 86_400:
        raise ShapeError("validTo must be in the future, and at most 365 days from now.")
    return request.valid_to


def _checked(spec: str, plain: bytes) -> KeyMaterial:
    """Return material of the right kind for a key spec.

    Raises:
        InvalidCiphertext: if it is of another length or kind.
    """
    if is_asymmetric(spec):
        good = is_private_of(spec, plain)
    elif spec == SYMMETRIC:
        good = len(plain) == 32
    else:
        good = len(plain) == int(spec.removeprefix("HMAC_")) // 8
    if not good:
        raise InvalidCiphertext(evidence=f"imported material does not fit {spec}")
    return KeyMaterial(plain)
