"""Shapes of the operations on imported key material (bounds: botocore kms/2014-11-01)."""

from typing import Annotated, Literal

from msgspec import Meta

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Description, KeyIdText, PolicyText, Seconds
from kmsfs.api.shapes.keys import Tags

ImportBlob = Annotated[bytes, Meta(min_length=1, max_length=6144)]
MaterialId = Annotated[str, Meta(min_length=64, max_length=64, pattern=r"^[a-f0-9]+$")]


class GetParametersForImportRequest(Shape, kw_only=True):
    """A key of EXTERNAL origin, and how its material will be wrapped."""

    key_id: KeyIdText
    wrapping_algorithm: Literal[
        "RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256",
        "SM2PKE",
    ]  # fmt: skip
    wrapping_key_spec: Literal["RSA_2048", "RSA_3072", "RSA_4096", "SM2"]


class GetParametersForImportResponse(Shape, kw_only=True):
    """The public key to wrap under, and the token that belongs to it."""

    key_id: str
    import_token: bytes
    public_key: bytes
    parameters_valid_to: Seconds


class ImportKeyMaterialRequest(Shape, kw_only=True):
    """Wrapped key material with its token."""

    key_id: KeyIdText
    import_token: ImportBlob
    encrypted_key_material: ImportBlob
    valid_to: Seconds | None = None
    expiration_model: Literal["KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"] = "KEY_MATERIAL_EXPIRES"
    import_type: Literal["NEW_KEY_MATERIAL", "EXISTING_KEY_MATERIAL"] | None = None
    key_material_description: (
        Annotated[str, Meta(max_length=256, pattern=r"^[a-zA-Z0-9:/_\s.-]*$")] | None
    ) = None
    key_material_id: MaterialId | None = None


class DeleteImportedKeyMaterialRequest(Shape, kw_only=True):
    """Whose material shall go."""

    key_id: KeyIdText
    key_material_id: MaterialId | None = None


class ImportedMaterialResponse(Shape, kw_only=True):
    """The key, and the id of its material."""

    key_id: str
    key_material_id: str | None = None


class ReplicateKeyRequest(Shape, kw_only=True):
    """A multi-Region key and where a replica is wanted."""

    key_id: KeyIdText
    replica_region: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^([a-z]+-){2,3}\d+$")]
    policy: PolicyText | None = None
    bypass_policy_lockout_safety_check: bool = False
    description: Description = ""
    tags: Tags = []


class UpdatePrimaryRegionRequest(Shape, kw_only=True):
    """A multi-Region key and its new primary region."""

    key_id: KeyIdText
    primary_region: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^([a-z]+-){2,3}\d+$")]
