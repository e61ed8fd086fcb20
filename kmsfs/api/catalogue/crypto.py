"""Cryptographic operations."""

from kmsfs import errors
from kmsfs.api import keyspecs, rules
from kmsfs.api.operation import ENABLED, Operation, Resource
from kmsfs.api.shapes import crypto

_USE = (
    errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied, errors.KeyDisabled, errors.KeyInvalidState,
    errors.InvalidGrantToken, errors.InvalidKeyUsage, errors.DryRunSucceeded,
)  # fmt: skip
_OPEN = (*_USE, errors.InvalidCiphertext, errors.IncorrectKey)
_ENCRYPT = frozenset({keyspecs.ENCRYPT})
_context = rules.contexts_fit("encryption_context")

CRYPTO_OPERATIONS = (
    Operation(
        "Encrypt", "kms", "kms:Encrypt", crypto.EncryptRequest, crypto.EncryptResponse,
        "Encrypt up to 4,096 bytes under a KMS key.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT, grantable=True,
        rules=(_context,), audit=("key_id", "encryption_context"), secret=("Plaintext",), errors=_USE,
    ),
    Operation(
        "Decrypt", "kms", "kms:Decrypt", crypto.DecryptRequest, crypto.DecryptResponse,
        "Decrypt a ciphertext blob; it names its own key.",
        resource=Resource.CIPHERTEXT, resource_field="key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT,
        grantable=True, rules=(_context,), audit=("key_id", "encryption_context"), secret=("CiphertextBlob",),
        errors=_OPEN,
    ),
    Operation(
        "ReEncrypt", "kms", "kms:ReEncrypt", crypto.ReEncryptRequest, crypto.ReEncryptResponse,
        "Move a ciphertext blob under another key or context without showing its plaintext.",
        resource=Resource.REENCRYPT, resource_field="destination_key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT,
        rules=(rules.contexts_fit("source_encryption_context", "destination_encryption_context"),),
        audit=("source_key_id", "destination_key_id", "source_encryption_context",
               "destination_encryption_context"),
        secret=("CiphertextBlob",), errors=_OPEN,
    ),
    Operation(
        "GenerateDataKey", "kms", "kms:GenerateDataKey", crypto.GenerateDataKeyRequest,
        crypto.GenerateDataKeyResponse,
        "Return a fresh data key in plaintext and wrapped under a KMS key.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT, grantable=True,
        rules=(rules.one_key_size, _context),
        audit=("key_id", "encryption_context", "number_of_bytes", "key_spec"), errors=_USE,
    ),
    Operation(
        "GenerateDataKeyWithoutPlaintext", "kms", "kms:GenerateDataKeyWithoutPlaintext",
        crypto.GenerateDataKeyRequest, crypto.GenerateDataKeyWithoutPlaintextResponse,
        "Return a fresh data key wrapped under a KMS key only.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT, grantable=True,
        rules=(rules.one_key_size, _context),
        audit=("key_id", "encryption_context", "number_of_bytes", "key_spec"), errors=_USE,
    ),
    Operation(
        "GenerateRandom", "kms", "kms:GenerateRandom", crypto.GenerateRandomRequest, crypto.GenerateRandomResponse,
        "Return 1 to 1,024 random bytes.",
        rules=(rules.needs_number_of_bytes,), audit=("number_of_bytes",),
    ),
    Operation(
        "GenerateDataKeyBatch", "kmsfs", "kms:GenerateDataKey", crypto.GenerateDataKeyBatchRequest,
        crypto.GenerateDataKeyBatchResponse,
        "Return one 32-byte data key per encryption context, for a mount's pool.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, cryptographic=True, usages=_ENCRYPT,
        rules=(rules.contexts_fit("encryption_contexts"),), audit=("key_id",), errors=_USE,
    ),
    Operation(
        "DecryptBatch", "kmsfs", "kms:Decrypt", crypto.DecryptBatchRequest, crypto.DecryptBatchResponse,
        "Decrypt several blobs; each is authorised and answered on its own.",
        key_states=ENABLED, cryptographic=True, usages=_ENCRYPT, secret=("Items",), errors=_OPEN,
    ),
)  # fmt: skip
