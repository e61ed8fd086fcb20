"""Shapes of the cryptographic operations."""

from typing import Annotated

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import (
    Blob,
    Context,
    DataKeySpec,
    EncryptionAlgorithm,
    GrantTokens,
    KeyIdText,
    NumberOfBytes,
    Plaintext,
)

BATCH_MAX = 512


class EncryptRequest(Shape, kw_only=True):
    """At most 4,096 bytes to encrypt."""

    key_id: KeyIdText
    plaintext: Plaintext
    encryption_context: Context = {}
    grant_tokens: GrantTokens = []
    encryption_algorithm: EncryptionAlgorithm = "SYMMETRIC_DEFAULT"
    dry_run: bool = False


class EncryptResponse(Shape, kw_only=True):
    """The ciphertext blob."""

    ciphertext_blob: bytes
    key_id: str
    encryption_algorithm: str = field(default="")


class DecryptRequest(Shape, kw_only=True):
    """A ciphertext blob and the context it was made with."""

    ciphertext_blob: Blob
    encryption_context: Context = {}
    grant_tokens: GrantTokens = []
    key_id: KeyIdText | None = None
    encryption_algorithm: EncryptionAlgorithm = "SYMMETRIC_DEFAULT"
    dry_run: bool = False


class DecryptResponse(Shape, kw_only=True):
    """The plaintext."""

    key_id: str
    plaintext: bytes
    encryption_algorithm: str = field(default="")
    key_material_id: str | None = None


class ReEncryptRequest(Shape, kw_only=True):
    """A ciphertext blob to move under another key or context."""

    ciphertext_blob: Blob
    source_encryption_context: Context = {}
    source_key_id: KeyIdText | None = None
    destination_key_id: KeyIdText
    destination_encryption_context: Context = {}
    source_encryption_algorithm: EncryptionAlgorithm = "SYMMETRIC_DEFAULT"
    destination_encryption_algorithm: EncryptionAlgorithm = "SYMMETRIC_DEFAULT"
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class ReEncryptResponse(Shape, kw_only=True):
    """The new ciphertext blob."""

    ciphertext_blob: bytes
    source_key_id: str
    key_id: str
    source_encryption_algorithm: str = field(default="")
    destination_encryption_algorithm: str = field(default="")


class GenerateDataKeyRequest(Shape, kw_only=True):
    """Size of the data key: KeySpec or NumberOfBytes, exactly one."""

    key_id: KeyIdText
    encryption_context: Context = {}
    number_of_bytes: NumberOfBytes | None = None
    key_spec: DataKeySpec | None = None
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class GenerateDataKeyResponse(Shape, kw_only=True):
    """A fresh data key, in plaintext and wrapped."""

    ciphertext_blob: bytes
    plaintext: bytes
    key_id: str
    key_material_id: str | None = None


class GenerateDataKeyWithoutPlaintextResponse(Shape, kw_only=True):
    """A fresh wrapped data key."""

    ciphertext_blob: bytes
    key_id: str
    key_material_id: str | None = None


class GenerateRandomRequest(Shape, kw_only=True):
    """How many bytes."""

    number_of_bytes: NumberOfBytes | None = None


class GenerateRandomResponse(Shape, kw_only=True):
    """Random bytes."""

    plaintext: bytes


class GenerateDataKeyBatchRequest(Shape, kw_only=True):
    """One 32-byte data key per encryption context, each authorised and audited on its own."""

    key_id: KeyIdText
    encryption_contexts: Annotated[list[Context], Meta(min_length=1, max_length=BATCH_MAX)]
    grant_tokens: GrantTokens = []


class BatchedKey(Shape, kw_only=True):
    """One data key of a batch."""

    ciphertext_blob: bytes
    plaintext: bytes


class GenerateDataKeyBatchResponse(Shape, kw_only=True):
    """The data keys, in the order of the contexts."""

    key_id: str
    data_keys: list[BatchedKey]


class DecryptItem(Shape, kw_only=True):
    """One blob of a batch."""

    ciphertext_blob: Blob
    encryption_context: Context = {}


class DecryptBatchRequest(Shape, kw_only=True):
    """Blobs to decrypt, each authorised and audited on its own."""

    items: Annotated[list[DecryptItem], Meta(min_length=1, max_length=BATCH_MAX)]
    grant_tokens: GrantTokens = []


class DecryptedItem(Shape, kw_only=True):
    """The plaintext of one blob, or why there is none."""

    plaintext: bytes | None = None
    key_id: str | None = None
    error_code: str | None = None


class DecryptBatchResponse(Shape, kw_only=True):
    """One answer per blob, in order."""

    items: list[DecryptedItem]
