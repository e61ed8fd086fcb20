"""Shapes of operations on key pairs and HMAC keys (bounds and enums of botocore's kms/2014-11-01)."""

from typing import Annotated, Literal

from msgspec import Meta

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Context, GrantTokens, KeyIdText

Message = Annotated[bytes, Meta(min_length=1, max_length=4096)]
Ciphertext = Annotated[bytes, Meta(min_length=1, max_length=6144)]
PublicKeyBytes = Annotated[bytes, Meta(min_length=1, max_length=8192)]
MessageType = Literal["RAW", "DIGEST", "EXTERNAL_MU"]
MacAlgorithm = Literal["HMAC_SHA_224", "HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512"]
SigningAlgorithm = Literal[
    "RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512", "RSASSA_PKCS1_V1_5_SHA_256",
    "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512", "ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512",
    "SM2DSA", "ML_DSA_SHAKE_256", "ED25519_SHA_512", "ED25519_PH_SHA_512",
]  # fmt: skip
DataKeyPairSpec = Literal[
    "RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "SM2",
    "ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024",
]  # fmt: skip


class SignRequest(Shape, kw_only=True):
    """A message, or its digest, to sign."""

    key_id: KeyIdText
    message: Message
    message_type: MessageType = "RAW"
    grant_tokens: GrantTokens = []
    signing_algorithm: SigningAlgorithm
    dry_run: bool = False


class SignResponse(Shape, kw_only=True):
    """The signature."""

    key_id: str
    signature: bytes
    signing_algorithm: str


class VerifyRequest(Shape, kw_only=True):
    """A message and a signature of it."""

    key_id: KeyIdText
    message: Message
    message_type: MessageType = "RAW"
    signature: Ciphertext
    signing_algorithm: SigningAlgorithm
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class VerifyResponse(Shape, kw_only=True):
    """Never false: a signature that does not fit is an error."""

    key_id: str
    signature_valid: bool
    signing_algorithm: str


class GenerateMacRequest(Shape, kw_only=True):
    """A message to authenticate."""

    message: Message
    key_id: KeyIdText
    mac_algorithm: MacAlgorithm
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class GenerateMacResponse(Shape, kw_only=True):
    """The HMAC."""

    mac: bytes
    mac_algorithm: str
    key_id: str


class VerifyMacRequest(Shape, kw_only=True):
    """A message and its HMAC."""

    message: Message
    key_id: KeyIdText
    mac_algorithm: MacAlgorithm
    mac: Ciphertext
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class VerifyMacResponse(Shape, kw_only=True):
    """Never false: an HMAC that does not fit is an error."""

    key_id: str
    mac_valid: bool
    mac_algorithm: str


class GetPublicKeyRequest(Shape, kw_only=True):
    """Of which key pair."""

    key_id: KeyIdText
    grant_tokens: GrantTokens = []


class GetPublicKeyResponse(Shape, kw_only=True):
    """The public key as SubjectPublicKeyInfo DER, and what it is for."""

    key_id: str
    public_key: bytes
    customer_master_key_spec: str
    key_spec: str
    key_usage: str
    encryption_algorithms: list[str] | None = None
    signing_algorithms: list[str] | None = None
    key_agreement_algorithms: list[str] | None = None
    encapsulation_algorithms: list[str] | None = None


class DeriveSharedSecretRequest(Shape, kw_only=True):
    """The other side's public key as SubjectPublicKeyInfo DER."""

    key_id: KeyIdText
    key_agreement_algorithm: Literal["ECDH"]
    public_key: PublicKeyBytes
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class DeriveSharedSecretResponse(Shape, kw_only=True):
    """The raw shared secret: derive a key from it before use."""

    key_id: str
    shared_secret: bytes
    key_agreement_algorithm: str
    key_origin: str


class EncapsulateRequest(Shape, kw_only=True):
    """Under which key pair."""

    key_id: KeyIdText
    encapsulation_algorithm: Literal["ML_KEM"]
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class EncapsulateResponse(Shape, kw_only=True):
    """A shared secret and the ciphertext that gives it to the key pair's owner."""

    key_id: str
    shared_secret: bytes
    shared_secret_ciphertext_blob: bytes
    encapsulation_algorithm: str


class DecapsulateRequest(Shape, kw_only=True):
    """A ciphertext made under this key pair's public key."""

    key_id: KeyIdText
    shared_secret_ciphertext_blob: Ciphertext
    encapsulation_algorithm: Literal["ML_KEM"]
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class DecapsulateResponse(Shape, kw_only=True):
    """The shared secret."""

    key_id: str
    shared_secret: bytes
    encapsulation_algorithm: str


class GenerateDataKeyPairRequest(Shape, kw_only=True):
    """What kind of key pair, and the context of its wrapped private key."""

    encryption_context: Context = {}
    key_id: KeyIdText
    key_pair_spec: DataKeyPairSpec
    grant_tokens: GrantTokens = []
    dry_run: bool = False


class GenerateDataKeyPairResponse(Shape, kw_only=True):
    """A fresh key pair: the private key in plaintext (PKCS #8 DER) and wrapped."""

    private_key_ciphertext_blob: bytes
    private_key_plaintext: bytes
    public_key: bytes
    key_id: str
    key_pair_spec: str
    key_material_id: str | None = None


class GenerateDataKeyPairWithoutPlaintextResponse(Shape, kw_only=True):
    """A fresh key pair: the private key wrapped only."""

    private_key_ciphertext_blob: bytes
    public_key: bytes
    key_id: str
    key_pair_spec: str
    key_material_id: str | None = None
