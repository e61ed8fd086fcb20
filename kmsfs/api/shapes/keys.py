"""Shapes of key, alias and policy operations."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import AliasText, Description, KeyIdText, Limit, Marker, PolicyText, Seconds


class Empty(Shape, kw_only=True):
    """No fields."""


class Tag(Shape, kw_only=True):
    """A tag of a key."""

    tag_key: Annotated[str, Meta(min_length=1, max_length=128)]
    tag_value: Annotated[str, Meta(max_length=256)]


Tags = Annotated[list[Tag], Meta(max_length=50)]
KeyUsageName = Literal[
    "SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT", "ENCAPSULATE_DECAPSULATE"
]
KeySpecName = Literal[
    "RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT", "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2", "ML_DSA_44", "ML_DSA_65", "ML_DSA_87",
    "ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024",
]  # fmt: skip


class CreateKeyRequest(Shape, kw_only=True):
    """Policy, description and kind of the new key."""

    policy: PolicyText | None = None
    description: Description = ""
    key_usage: KeyUsageName | None = None
    key_spec: KeySpecName | None = None
    customer_master_key_spec: KeySpecName | None = None
    origin: Literal["AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"] = "AWS_KMS"
    bypass_policy_lockout_safety_check: bool = False
    tags: Tags = []
    multi_region: bool = False
    custom_key_store_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class MultiRegionKey(Shape, kw_only=True):
    """One of the keys that share material."""

    arn: str
    region: str


class MultiRegionConfiguration(Shape, kw_only=True):
    """A multi-Region key and its replicas, of which there are none here."""

    multi_region_key_type: str
    primary_key: MultiRegionKey
    replica_keys: list[MultiRegionKey]


class KeyMetadata(Shape, kw_only=True):
    """What DescribeKey tells of a key."""

    aws_account_id: str = field(name="AWSAccountId")
    key_id: str
    arn: str
    creation_date: Seconds
    enabled: bool
    description: str
    key_usage: str
    key_state: str
    deletion_date: Seconds | None = None
    valid_to: Seconds | None = None
    origin: str
    custom_key_store_id: str | None = None
    cloud_hsm_cluster_id: str | None = None
    expiration_model: str | None = None
    key_manager: str
    customer_master_key_spec: str
    key_spec: str
    encryption_algorithms: list[str] | None = None
    signing_algorithms: list[str] | None = None
    key_agreement_algorithms: list[str] | None = None
    encapsulation_algorithms: list[str] | None = None
    mac_algorithms: list[str] | None = None
    multi_region: bool
    multi_region_configuration: MultiRegionConfiguration | None = None
    current_key_material_id: str | None = None


class KeyMetadataResponse(Shape, kw_only=True):
    """A key's metadata."""

    key_metadata: KeyMetadata


class DescribeKeyRequest(Shape, kw_only=True):
    """Which key."""

    key_id: KeyIdText
    grant_tokens: Annotated[list[str], Meta(max_length=10)] = []


class KeyIdRequest(Shape, kw_only=True):
    """Which key, by id or ARN."""

    key_id: KeyIdText


class ListKeysRequest(Shape, kw_only=True):
    """A page of keys."""

    limit: Limit = 100
    marker: Marker | None = None


class KeyListEntry(Shape, kw_only=True):
    """A key in a list."""

    key_id: str
    key_arn: str


class ListKeysResponse(Shape, kw_only=True):
    """A page of keys that the caller may describe."""

    keys: list[KeyListEntry]
    next_marker: str | None = None
    truncated: bool


class UpdateKeyDescriptionRequest(Shape, kw_only=True):
    """A new description."""

    key_id: KeyIdText
    description: Description


class ScheduleKeyDeletionRequest(Shape, kw_only=True):
    """When to delete the key: after 7 to 30 days."""

    key_id: KeyIdText
    pending_window_in_days: Annotated[int, Meta(ge=7, le=30)] = 30


class ScheduleKeyDeletionResponse(Shape, kw_only=True):
    """When the key will be deleted."""

    key_id: str
    deletion_date: Seconds
    key_state: str
    pending_window_in_days: int


class KeyIdResponse(Shape, kw_only=True):
    """The key's ARN."""

    key_id: str


class RotateKeyOnDemandRequest(Shape, kw_only=True):
    """Which key."""

    key_id: KeyIdText


class AliasRequest(Shape, kw_only=True):
    """An alias and the key it is to name."""

    alias_name: AliasText
    target_key_id: KeyIdText


class DeleteAliasRequest(Shape, kw_only=True):
    """Which alias."""

    alias_name: AliasText


class ListAliasesRequest(Shape, kw_only=True):
    """A page of aliases, of one key or of all."""

    key_id: KeyIdText | None = None
    limit: Limit = 50
    marker: Marker | None = None


class AliasEntry(Shape, kw_only=True):
    """An alias in a list."""

    alias_name: str
    alias_arn: str
    target_key_id: str
    creation_date: Seconds
    last_updated_date: Seconds


class ListAliasesResponse(Shape, kw_only=True):
    """A page of aliases of keys that the caller may describe."""

    aliases: list[AliasEntry]
    next_marker: str | None = None
    truncated: bool


class PutKeyPolicyRequest(Shape, kw_only=True):
    """A new key policy."""

    key_id: KeyIdText
    policy_name: Literal["default"] = "default"
    policy: PolicyText
    bypass_policy_lockout_safety_check: bool = False


class GetKeyPolicyRequest(Shape, kw_only=True):
    """Which key's policy."""

    key_id: KeyIdText
    policy_name: Literal["default"] = "default"


class GetKeyPolicyResponse(Shape, kw_only=True):
    """The key policy as text."""

    policy: str
    policy_name: str


class TagResourceRequest(Shape, kw_only=True):
    """Tags to add to a key; the value of a key that is there already is replaced."""

    key_id: KeyIdText
    tags: Annotated[list[Tag], Meta(min_length=0, max_length=50)]


class UntagResourceRequest(Shape, kw_only=True):
    """Tags to take away by their keys."""

    key_id: KeyIdText
    tag_keys: list[Annotated[str, Meta(min_length=1, max_length=128)]]


class ListOfKeyRequest(Shape, kw_only=True):
    """Of which key, and which page."""

    key_id: KeyIdText
    limit: Limit | None = None
    marker: Marker | None = None


class ListResourceTagsResponse(Shape, kw_only=True):
    """A page of a key's tags."""

    tags: list[Tag]
    next_marker: str | None = None
    truncated: bool


class ListKeyPoliciesResponse(Shape, kw_only=True):
    """A key has one policy, named default."""

    policy_names: list[str]
    truncated: bool


class EnableKeyRotationRequest(Shape, kw_only=True):
    """How many days new material stays current: 90 to 2,560, default 365."""

    key_id: KeyIdText
    rotation_period_in_days: Annotated[int, Meta(ge=90, le=2560)] | None = None


class KeyRotationStatus(Shape, kw_only=True):
    """Whether and when a key gets new material by itself."""

    key_rotation_enabled: bool
    key_id: str
    rotation_period_in_days: int | None = None
    next_rotation_date: Seconds | None = None


class ListKeyRotationsRequest(Shape, kw_only=True):
    """Of which key; with ALL_KEY_MATERIAL the first material too."""

    key_id: KeyIdText
    include_key_material: Literal["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"] = "ROTATIONS_ONLY"
    limit: Limit | None = None
    marker: Marker | None = None


class Rotation(Shape, kw_only=True):
    """One change of key material."""

    key_id: str
    key_material_id: str
    key_material_description: str | None = None
    import_state: str | None = None
    key_material_state: str | None = None
    expiration_model: str | None = None
    valid_to: Seconds | None = None
    rotation_date: Seconds | None = None
    rotation_type: str | None = None


class ListKeyRotationsResponse(Shape, kw_only=True):
    """A page of a key's rotations."""

    rotations: list[Rotation]
    next_marker: str | None = None
    truncated: bool


USED_BY = (
    "Decrypt", "DeriveSharedSecret", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "ReEncrypt", "Sign", "Verify",
    "VerifyMac", "Encapsulate", "Decapsulate",
)  # fmt: skip
"""The operations that count as a key's use (AWS KMS API reference, KeyLastUsageData)."""


class KeyLastUsage(Shape, kw_only=True):
    """A key's last successful cryptographic operation. Both ids are that of its record in the audit log."""

    operation: str
    timestamp: Seconds
    cloud_trail_event_id: str
    kms_request_id: str


class GetKeyLastUsageResponse(Shape, kw_only=True):
    """When and for what a key was last used, since uses are noted."""

    key_id: str
    key_last_usage: KeyLastUsage | None = None
    tracking_start_date: Seconds
    key_creation_date: Seconds
