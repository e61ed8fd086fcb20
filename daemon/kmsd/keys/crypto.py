"""Handlers of the cryptographic operations."""

from kmsd.dispatch.call import Call
from kmsd.keys.material import decrypt, encrypt, material_id
from kmsd.keys.registry import KmsKey
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import crypto as shapes
from kmsfs.errors import InvalidCiphertext
from kmsfs.formats.blob import Blob
from kmsfs.quantity import KMS_PLAINTEXT_MAX_BYTES

ALGORITHM = "SYMMETRIC_DEFAULT"
_SPEC_BYTES = {"AES_256": 32, "AES_128": 16}


def open_blob(key: KmsKey, blob: Blob, context: dict[str, str]) -> bytes:
    """Return a blob's plaintext.

    Raises:
        InvalidCiphertext: whatever is wrong with it, an unknown term included.
    """
    material = key.materials.get(blob.term)
    if material is None:
        raise InvalidCiphertext(evidence="unknown term")
    return decrypt(material, blob, context)


class CryptoService:
    """Encrypt to GenerateRandom."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._material_ids: dict[tuple[str, int], str] = {}

    def encrypt(self, call: Call) -> shapes.EncryptResponse:
        """Encrypt."""
        request: shapes.EncryptRequest = call.request
        key = call.the_key
        blob = self._seal(key, request.plaintext, request.encryption_context)
        return shapes.EncryptResponse(ciphertext_blob=blob, key_id=key.arn, encryption_algorithm=ALGORITHM)

    def decrypt(self, call: Call) -> shapes.DecryptResponse:
        """Decrypt."""
        request: shapes.DecryptRequest = call.request
        key, blob = call.the_key, call.blob
        if blob is None:
            raise InvalidCiphertext
        plaintext = open_blob(key, blob, request.encryption_context)
        return shapes.DecryptResponse(
            key_id=key.arn,
            plaintext=plaintext,
            encryption_algorithm=ALGORITHM,
            key_material_id=self._material_id(key, blob.term),
        )

    def re_encrypt(self, call: Call) -> shapes.ReEncryptResponse:
        """ReEncrypt."""
        request: shapes.ReEncryptRequest = call.request
        if call.source is None or call.blob is None:
            raise InvalidCiphertext
        plaintext = open_blob(call.source, call.blob, request.source_encryption_context)
        if len(plaintext) > KMS_PLAINTEXT_MAX_BYTES:
            raise InvalidCiphertext
        return shapes.ReEncryptResponse(
            ciphertext_blob=self._seal(call.the_key, plaintext, request.destination_encryption_context),
            source_key_id=call.source.arn,
            key_id=call.the_key.arn,
            source_encryption_algorithm=ALGORITHM,
            destination_encryption_algorithm=ALGORITHM,
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
        size = request.number_of_bytes or _SPEC_BYTES[request.key_spec or "AES_256"]
        plaintext = self._rng(size)
        return plaintext, self._seal(call.the_key, plaintext, request.encryption_context)

    def seal_data_key(self, key: KmsKey, context: dict[str, str]) -> tuple[bytes, bytes]:
        """Return a fresh 32-byte data key and its blob, for batches."""
        plaintext = self._rng(32)
        return plaintext, self._seal(key, plaintext, context)

    def _seal(self, key: KmsKey, plaintext: bytes, context: dict[str, str]) -> bytes:
        return encrypt(key.current_material, key.key_id, key.term, plaintext, context, self._rng)

    def _material_id(self, key: KmsKey, term: int) -> str:
        place = (key.key_id, term)
        if place not in self._material_ids:
            self._material_ids[place] = material_id(key.materials[term])
        return self._material_ids[place]
