"""Handlers of the cryptographic operations."""

from collections.abc import Sequence

from kmsd.dispatch.call import Call
from kmsd.keys.loaded import PairStore
from kmsd.keys.material import data_keys, decrypt, encrypt, material_id
from kmsd.keys.registry import KmsKey
from kmsfs.aead.asymmetric import oaep_max_bytes
from kmsfs.aead.nonces import Rng
from kmsfs.api.keyspecs import ENCRYPT, SYMMETRIC, require_algorithm
from kmsfs.api.shapes import crypto as shapes
from kmsfs.errors import AuthenticationFailed, InvalidCiphertext, InvalidKeyUsage, ShapeError
from kmsfs.formats.blob import Blob
from kmsfs.quantity import KMS_PLAINTEXT_MAX_BYTES

_SPEC_BYTES = {"AES_256": 32, "AES_128": 16}


def open_blob(key: KmsKey, blob: Blob, context: dict[str, str]) -> bytes:
    """Return a blob's plaintext.

    Raises:
        InvalidCiphertext: whatever is wrong with it, an unknown term included.
    """
    material = key.materials.get(blob.term)
    if material is None:
        key.require_undamaged(blob.term)
        raise InvalidCiphertext(evidence="unknown term")
    return decrypt(material, blob, context)


class CryptoService:
    """Encrypt to GenerateRandom."""

    def __init__(self, rng: Rng, pairs: PairStore) -> None:
        self._rng = rng
        self._pairs = pairs
        self._material_ids: dict[tuple[str, int], str] = {}

    def encrypt(self, call: Call) -> shapes.EncryptResponse:
        """Encrypt."""
        request: shapes.EncryptRequest = call.request
        key, algorithm = call.the_key, request.encryption_algorithm
        blob = self._encrypt(key, algorithm, request.plaintext, request.encryption_context)
        return shapes.EncryptResponse(ciphertext_blob=blob, key_id=key.arn, encryption_algorithm=algorithm)

    def _encrypt(self, key: KmsKey, algorithm: str, plain: bytes, context: dict[str, str]) -> bytes:
        require_algorithm(key.spec, ENCRYPT, algorithm)
        if algorithm == SYMMETRIC:
            return self.seal(key, plain, context)
        _no_context(context)
        if len(plain) > oaep_max_bytes(key.spec, algorithm):
            raise ShapeError(
                f"Algorithm {algorithm} and key spec {key.spec} cannot encrypt data larger than "
                f"{oaep_max_bytes(key.spec, algorithm)} bytes."
            )
        return self._pairs.of(key).encrypt(algorithm, plain)

    def _decrypt(
        self, key: KmsKey, blob: Blob | None, data: bytes, algorithm: str, context: dict[str, str]
    ) -> bytes:
        require_algorithm(key.spec, ENCRYPT, algorithm)
        if blob is not None:
            return open_blob(key, blob, context)
        _no_context(context)
        try:
            return self._pairs.of(key).decrypt(algorithm, data)
        except AuthenticationFailed as error:
            raise InvalidCiphertext(evidence=error.detail) from None

    def decrypt(self, call: Call) -> shapes.DecryptResponse:
        """Decrypt."""
        request: shapes.DecryptRequest = call.request
        key, blob = call.the_key, call.blob
        algorithm = request.encryption_algorithm
        plaintext = self._decrypt(key, blob, request.ciphertext_blob, algorithm, request.encryption_context)
        return shapes.DecryptResponse(
            key_id=key.arn,
            plaintext=plaintext,
            encryption_algorithm=algorithm,
            key_material_id=self._material_id(key, blob.term) if blob is not None else None,
        )

    def re_encrypt(self, call: Call) -> shapes.ReEncryptResponse:
        """ReEncrypt."""
        request: shapes.ReEncryptRequest = call.request
        if call.source is None:
            raise InvalidCiphertext
        opened_by, sealed_by = request.source_encryption_algorithm, request.destination_encryption_algorithm
        plaintext = self._decrypt(
            call.source, call.blob, request.ciphertext_blob, opened_by, request.source_encryption_context
        )
        if len(plaintext) > KMS_PLAINTEXT_MAX_BYTES:
            raise InvalidCiphertext
        sealed = self._encrypt(call.the_key, sealed_by, plaintext, request.destination_encryption_context)
        return shapes.ReEncryptResponse(
            ciphertext_blob=sealed,
            source_key_id=call.source.arn,
            key_id=call.the_key.arn,
            source_encryption_algorithm=opened_by,
            destination_encryption_algorithm=sealed_by,
        )

    def generate_data_key(self, call: Call) -> shapes.GenerateDataKeyResponse:
        """GenerateDataKey."""
        key = call.the_key
        plaintext, blob = self._data_key(call)
        return shapes.GenerateDataKeyResponse(
            ciphertext_blob=blob,
            plaintext=plaintext,
            key_id=key.arn,
            key_material_id=self._material_id(key, key.term),
        )

    def generate_data_key_without_plaintext(
        self, call: Call
    ) -> shapes.GenerateDataKeyWithoutPlaintextResponse:
        """GenerateDataKeyWithoutPlaintext."""
        key = call.the_key
        _, blob = self._data_key(call)
        return shapes.GenerateDataKeyWithoutPlaintextResponse(
            ciphertext_blob=blob, key_id=key.arn, key_material_id=self._material_id(key, key.term)
        )

    def generate_random(self, call: Call) -> shapes.GenerateRandomResponse:
        """GenerateRandom."""
        return shapes.GenerateRandomResponse(plaintext=self._rng(call.request.number_of_bytes))

    def _data_key(self, call: Call) -> tuple[bytes, bytes]:
        request: shapes.GenerateDataKeyRequest = call.request
        if call.the_key.spec != SYMMETRIC:
            arn, spec = call.the_key.arn, call.the_key.spec
            raise InvalidKeyUsage(f"{arn} key spec is {spec} which is not valid for {call.operation.name}.")
        size = request.number_of_bytes or _SPEC_BYTES[request.key_spec or "AES_256"]
        plaintext = self._rng(size)
        return plaintext, self.seal(call.the_key, plaintext, request.encryption_context)

    def data_keys(self, key: KmsKey, contexts: Sequence[dict[str, str]]) -> list[tuple[bytes, bytes]]:
        """Return a fresh 32-byte data key and its blob for each context, for batches.

        Raises:
            InvalidKeyUsage: if the key is no symmetric one.
        """
        require_algorithm(key.spec, ENCRYPT, SYMMETRIC)
        return data_keys(key.current_material, key.key_id, key.term, contexts, self._rng)

    def seal(self, key: KmsKey, plaintext: bytes, context: dict[str, str]) -> bytes:
        """Return a ciphertext blob under a symmetric key's current material."""
        return encrypt(key.current_material, key.key_id, key.term, plaintext, context, self._rng)

    def current_material_id(self, key: KmsKey) -> str | None:
        """Return the public id of the material that encrypts now, where it has one."""
        return self._material_id(key, key.term)

    def _material_id(self, key: KmsKey, term: int) -> str | None:
        if key.store:
            # Of what a token keeps nothing is told (KMS API reference, "KeyMaterialId": not for custom key stores).
            return None
        place = (key.key_id, term)
        if place not in self._material_ids:
            self._material_ids[place] = material_id(key.materials[term])
        return self._material_ids[place]


def _no_context(context: dict[str, str]) -> None:
    if context:
        raise ShapeError("An encryption context is for symmetric encryption keys only.")
