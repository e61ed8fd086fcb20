"""Handlers of operations on key pairs and HMAC keys."""

from kmsd.dispatch.call import Call
from kmsd.keys.crypto import CryptoService
from kmsd.keys.loaded import PairStore
from kmsd.keys.registry import KmsKey
from kmsd.keys.spares import SpareKeys
from kmsfs.aead.asymmetric import MU_BYTES, KeyPair, digest_bytes, mac
from kmsfs.aead.kdf import equal
from kmsfs.api.keyspecs import (
    AGREE,
    DATA_KEY_PAIR_SPECS,
    ENCAPSULATE,
    ENCRYPT,
    MAC,
    SIGN,
    SPECS,
    SYMMETRIC,
    is_asymmetric,
    require_algorithm,
)
from kmsfs.api.shapes import signing as shapes
from kmsfs.errors import (
    AuthenticationFailed,
    InvalidCiphertext,
    MacMismatch,
    ShapeError,
    SignatureMismatch,
    UnsupportedOperation,
)

_MESSAGE_TYPES = {
    "ML_DSA_SHAKE_256": ("RAW", "EXTERNAL_MU"),
    "ED25519_SHA_512": ("RAW",),
    "ED25519_PH_SHA_512": ("DIGEST",),
}
"""Of the algorithms that do not take RAW and DIGEST (AWS KMS API reference, Sign, MessageType)."""


class PairService:
    """Sign to GenerateDataKeyPairWithoutPlaintext."""

    def __init__(self, crypto: CryptoService, pairs: PairStore, spares: SpareKeys) -> None:
        self._spares = spares
        self._crypto = crypto
        self._pairs = pairs

    def sign(self, call: Call) -> shapes.SignResponse:
        """Sign."""
        request: shapes.SignRequest = call.request
        prehashed = _prehashed(call.the_key, request)
        pair = self._pairs.of(call.the_key)
        signature = pair.sign(request.signing_algorithm, request.message, prehashed=prehashed)
        return shapes.SignResponse(
            key_id=call.the_key.arn, signature=signature, signing_algorithm=request.signing_algorithm
        )

    def verify(self, call: Call) -> shapes.VerifyResponse:
        """Verify."""
        request: shapes.VerifyRequest = call.request
        prehashed = _prehashed(call.the_key, request)
        pair = self._pairs.of(call.the_key)
        try:
            pair.verify(request.signing_algorithm, request.message, request.signature, prehashed=prehashed)
        except AuthenticationFailed as error:
            raise SignatureMismatch from error
        return shapes.VerifyResponse(
            key_id=call.the_key.arn, signature_valid=True, signing_algorithm=request.signing_algorithm
        )

    def generate_mac(self, call: Call) -> shapes.GenerateMacResponse:
        """GenerateMac."""
        request: shapes.GenerateMacRequest = call.request
        made = _mac(call.the_key, request.mac_algorithm, request.message)
        return shapes.GenerateMacResponse(
            mac=made, mac_algorithm=request.mac_algorithm, key_id=call.the_key.arn
        )

    def verify_mac(self, call: Call) -> shapes.VerifyMacResponse:
        """VerifyMac."""
        request: shapes.VerifyMacRequest = call.request
        if not equal(_mac(call.the_key, request.mac_algorithm, request.message), request.mac):
            raise MacMismatch
        return shapes.VerifyMacResponse(
            key_id=call.the_key.arn, mac_valid=True, mac_algorithm=request.mac_algorithm
        )

    def get_public_key(self, call: Call) -> shapes.GetPublicKeyResponse:
        """GetPublicKey."""
        key = call.the_key
        if not is_asymmetric(key.spec):
            raise UnsupportedOperation(
                f"{key.arn} key spec is {key.spec} which is not valid for GetPublicKey."
            )
        algorithms = {key.usage: list(SPECS[key.spec].algorithms[key.usage])}
        return shapes.GetPublicKeyResponse(
            key_id=key.arn,
            public_key=self._pairs.of(key).public_der(),
            customer_master_key_spec=key.spec,
            key_spec=key.spec,
            key_usage=key.usage,
            encryption_algorithms=algorithms.get(ENCRYPT),
            signing_algorithms=algorithms.get(SIGN),
            key_agreement_algorithms=algorithms.get(AGREE),
            encapsulation_algorithms=algorithms.get(ENCAPSULATE),
        )

    def derive_shared_secret(self, call: Call) -> shapes.DeriveSharedSecretResponse:
        """DeriveSharedSecret."""
        request: shapes.DeriveSharedSecretRequest = call.request
        return shapes.DeriveSharedSecretResponse(
            key_id=call.the_key.arn,
            shared_secret=self._pairs.of(call.the_key).agree(request.public_key),
            key_agreement_algorithm=request.key_agreement_algorithm,
            key_origin="AWS_KMS",
        )

    def encapsulate(self, call: Call) -> shapes.EncapsulateResponse:
        """Encapsulate."""
        secret, sealed = self._pairs.of(call.the_key).encapsulate()
        return shapes.EncapsulateResponse(
            key_id=call.the_key.arn,
            shared_secret=secret,
            shared_secret_ciphertext_blob=sealed,
            encapsulation_algorithm=call.request.encapsulation_algorithm,
        )

    def decapsulate(self, call: Call) -> shapes.DecapsulateResponse:
        """Decapsulate."""
        request: shapes.DecapsulateRequest = call.request
        try:
            secret = self._pairs.of(call.the_key).decapsulate(request.shared_secret_ciphertext_blob)
        except AuthenticationFailed as error:
            raise InvalidCiphertext(evidence=error.detail) from None
        return shapes.DecapsulateResponse(
            key_id=call.the_key.arn,
            shared_secret=secret,
            encapsulation_algorithm=request.encapsulation_algorithm,
        )

    def generate_data_key_pair(self, call: Call) -> shapes.GenerateDataKeyPairResponse:
        """GenerateDataKeyPair."""
        private, public, blob = self._data_key_pair(call)
        return shapes.GenerateDataKeyPairResponse(
            private_key_ciphertext_blob=blob,
            private_key_plaintext=private,
            public_key=public,
            key_id=call.the_key.arn,
            key_pair_spec=call.request.key_pair_spec,
            key_material_id=self._crypto.current_material_id(call.the_key),
        )

    def generate_data_key_pair_without_plaintext(
        self, call: Call
    ) -> shapes.GenerateDataKeyPairWithoutPlaintextResponse:
        """GenerateDataKeyPairWithoutPlaintext."""
        _, public, blob = self._data_key_pair(call)
        return shapes.GenerateDataKeyPairWithoutPlaintextResponse(
            private_key_ciphertext_blob=blob,
            public_key=public,
            key_id=call.the_key.arn,
            key_pair_spec=call.request.key_pair_spec,
            key_material_id=self._crypto.current_material_id(call.the_key),
        )

    def _data_key_pair(self, call: Call) -> tuple[bytes, bytes, bytes]:
        request: shapes.GenerateDataKeyPairRequest = call.request
        key, spec = call.the_key, request.key_pair_spec
        if key.spec != SYMMETRIC:
            raise UnsupportedOperation(
                f"{key.arn} key spec is {key.spec} which is not valid for this operation."
            )
        if key.store:
            raise UnsupportedOperation(f"{key.arn} is in a custom key store, which is not valid for this operation.")
        if spec not in DATA_KEY_PAIR_SPECS:
            raise UnsupportedOperation(f"KeyPairSpec {spec} is not offered here.")
        private = self._spares.take(spec)
        blob = self._crypto.seal(key, private, request.encryption_context)
        return private, KeyPair(spec, private).public_der(), blob


def _prehashed(key: KmsKey, request: shapes.SignRequest | shapes.VerifyRequest) -> bool:
    """Check algorithm, message type and digest length; return whether the message is a digest.

    Raises:
        InvalidKeyUsage: if the key has no such algorithm.
        ShapeError: if type or length do not fit it.
    """
    algorithm, kind = request.signing_algorithm, request.message_type
    require_algorithm(key.spec, SIGN, algorithm)
    if kind not in _MESSAGE_TYPES.get(algorithm, ("RAW", "DIGEST")):
        raise ShapeError(f"MessageType {kind} is not valid for algorithm {algorithm}.")
    if kind == "RAW":
        return False
    if len(request.message) != (MU_BYTES if kind == "EXTERNAL_MU" else digest_bytes(algorithm)):
        raise ShapeError(f"Digest is invalid length for algorithm {algorithm}.")
    return True


def _mac(key: KmsKey, algorithm: str, message: bytes) -> bytes:
    require_algorithm(key.spec, MAC, algorithm)
    return mac(algorithm, key.current_material.reveal(), message)
