"""Key, alias and policy operations."""

from kmsfs import errors
from kmsfs.api import rules
from kmsfs.api.operation import ANY_STATE, ENABLED, NOT_DELETED, NOT_PENDING, PENDING, Operation, Resource
from kmsfs.api.shapes import importing, keys

_COMMON = (errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied)
_STATE = (*_COMMON, errors.KeyInvalidState)

KEY_OPERATIONS = (
    Operation(
        "CreateKey", "kms", "kms:CreateKey", keys.CreateKeyRequest, keys.KeyMetadataResponse,
        "Create a KMS key; its creator may do everything with it unless a policy says otherwise.",
        mutates=True, rules=(rules.one_key_spec, rules.good_tags), audit=("description", "key_usage", "key_spec", "origin"),
        errors=(errors.UnsupportedOperation, errors.InvalidTag, errors.MalformedPolicy, errors.LimitExceeded, errors.InvalidArn),
    ),
    Operation(
        "DescribeKey", "kms", "kms:DescribeKey", keys.DescribeKeyRequest, keys.KeyMetadataResponse,
        "Tell a key's state, ARN and dates.",
        cross_account=True, resource=Resource.KEY, resource_field="key_id", key_states=ANY_STATE, grantable=True, audit=("key_id",),
        errors=_COMMON,
    ),
    Operation(
        "ListKeys", "kms", "kms:ListKeys", keys.ListKeysRequest, keys.ListKeysResponse,
        "List the keys that the caller may describe.", errors=(errors.InvalidMarker,),
    ),
    Operation(
        "UpdateKeyDescription", "kms", "kms:UpdateKeyDescription", keys.UpdateKeyDescriptionRequest, keys.Empty,
        "Change a key's description.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_DELETED, mutates=True,
        audit=("key_id", "description"), errors=_STATE,
    ),
    Operation(
        "EnableKey", "kms", "kms:EnableKey", keys.KeyIdRequest, keys.Empty,
        "Let a disabled key be used again.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_PENDING, mutates=True, audit=("key_id",),
        errors=_STATE,
    ),
    Operation(
        "DisableKey", "kms", "kms:DisableKey", keys.KeyIdRequest, keys.Empty,
        "Stop every use of a key at once, in mounts too.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_PENDING, mutates=True, audit=("key_id",),
        errors=_STATE,
    ),
    Operation(
        "ScheduleKeyDeletion", "kms", "kms:ScheduleKeyDeletion", keys.ScheduleKeyDeletionRequest,
        keys.ScheduleKeyDeletionResponse,
        "Delete a key after a waiting period; until then it cannot be used and the deletion can be cancelled.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_DELETED, mutates=True,
        audit=("key_id", "pending_window_in_days"), errors=_STATE,
    ),
    Operation(
        "CancelKeyDeletion", "kms", "kms:CancelKeyDeletion", keys.KeyIdRequest, keys.KeyIdResponse,
        "Keep a key that was to be deleted; it is disabled afterwards.",
        resource=Resource.KEY, resource_field="key_id", key_states=PENDING, mutates=True, audit=("key_id",),
        errors=_STATE,
    ),
    Operation(
        "RotateKeyOnDemand", "kms", "kms:RotateKeyOnDemand", keys.RotateKeyOnDemandRequest, keys.KeyIdResponse,
        "Give a key new key material; what the old material encrypted stays readable.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, mutates=True, audit=("key_id",),
        errors=(*_STATE, errors.KeyDisabled, errors.LimitExceeded, errors.UnsupportedOperation),
    ),
    Operation(
        "EnableKeyRotation", "kms", "kms:EnableKeyRotation", keys.EnableKeyRotationRequest, keys.Empty,
        "Give a key new material by itself, every 365 days or as told.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, mutates=True,
        audit=("key_id", "rotation_period_in_days"),
        errors=(*_STATE, errors.KeyDisabled, errors.UnsupportedOperation),
    ),
    Operation(
        "DisableKeyRotation", "kms", "kms:DisableKeyRotation", keys.KeyIdRequest, keys.Empty,
        "Keep a key's present material until told otherwise.",
        resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, mutates=True, audit=("key_id",),
        errors=(*_STATE, errors.KeyDisabled, errors.UnsupportedOperation),
    ),
    Operation(
        "GetKeyRotationStatus", "kms", "kms:GetKeyRotationStatus", keys.KeyIdRequest, keys.KeyRotationStatus,
        "Tell whether and when a key gets new material by itself.",
        cross_account=True, resource=Resource.KEY, resource_field="key_id", audit=("key_id",),
        errors=(*_COMMON, errors.UnsupportedOperation),
    ),
    Operation(
        "GetKeyLastUsage", "kms", "kms:GetKeyLastUsage", keys.KeyIdRequest, keys.GetKeyLastUsageResponse,
        "Tell when and for what a key was last used.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id",), errors=_COMMON,
    ),
    Operation(
        "ListKeyRotations", "kms", "kms:ListKeyRotations", keys.ListKeyRotationsRequest,
        keys.ListKeyRotationsResponse, "List a key's past rotations.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id",),
        errors=(*_COMMON, errors.InvalidMarker, errors.UnsupportedOperation),
    ),
    Operation(
        "GetParametersForImport", "kms", "kms:GetParametersForImport", importing.GetParametersForImportRequest,
        importing.GetParametersForImportResponse, "Return a public key to wrap key material under, and its token.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id", "wrapping_algorithm", "wrapping_key_spec"),
        errors=(*_STATE, errors.UnsupportedOperation),
    ),
    Operation(
        "ImportKeyMaterial", "kms", "kms:ImportKeyMaterial", importing.ImportKeyMaterialRequest,
        importing.ImportedMaterialResponse, "Give a key of EXTERNAL origin its key material.",
        resource=Resource.KEY, resource_field="key_id", mutates=True,
        audit=("key_id", "valid_to", "expiration_model", "import_type", "key_material_id"),
        secret=("ImportToken", "EncryptedKeyMaterial"),
        errors=(
            *_STATE, errors.UnsupportedOperation, errors.InvalidCiphertext, errors.IncorrectKeyMaterial,
            errors.ExpiredImportToken, errors.InvalidImportToken,
        ),
    ),
    Operation(
        "DeleteImportedKeyMaterial", "kms", "kms:DeleteImportedKeyMaterial",
        importing.DeleteImportedKeyMaterialRequest, importing.ImportedMaterialResponse,
        "Take a key its imported material; nothing under it opens until the same material is imported again.",
        resource=Resource.KEY, resource_field="key_id", mutates=True, audit=("key_id", "key_material_id"),
        errors=(*_STATE, errors.UnsupportedOperation, errors.KeyMaterialIdNotFound),
    ),
    Operation(
        "ReplicateKey", "kms", "kms:ReplicateKey", importing.ReplicateKeyRequest, keys.Empty,
        "Not offered: there are no multi-Region keys on one's own machines.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id", "replica_region"),
        errors=(*_COMMON, errors.UnsupportedOperation),
    ),
    Operation(
        "UpdatePrimaryRegion", "kms", "kms:UpdatePrimaryRegion", importing.UpdatePrimaryRegionRequest, keys.Empty,
        "Not offered: there are no multi-Region keys on one's own machines.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id", "primary_region"),
        errors=(*_COMMON, errors.UnsupportedOperation),
    ),
    Operation(
        "TagResource", "kms", "kms:TagResource", keys.TagResourceRequest, keys.Empty,
        "Add tags to a key.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_DELETED, mutates=True, rules=(rules.good_tags,),
        audit=("key_id",), errors=(*_STATE, errors.InvalidTag),
    ),
    Operation(
        "UntagResource", "kms", "kms:UntagResource", keys.UntagResourceRequest, keys.Empty,
        "Take tags from a key.",
        resource=Resource.KEY, resource_field="key_id", key_states=NOT_DELETED, mutates=True,
        audit=("key_id", "tag_keys"), errors=_STATE,
    ),
    Operation(
        "ListResourceTags", "kms", "kms:ListResourceTags", keys.ListOfKeyRequest, keys.ListResourceTagsResponse,
        "List a key's tags.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id",), errors=(*_COMMON, errors.InvalidMarker),
    ),
    Operation(
        "ListKeyPolicies", "kms", "kms:ListKeyPolicies", keys.ListOfKeyRequest, keys.ListKeyPoliciesResponse,
        "List the names of a key's policies: default.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id",), errors=_COMMON,
    ),
    Operation(
        "PutKeyPolicy", "kms", "kms:PutKeyPolicy", keys.PutKeyPolicyRequest, keys.Empty,
        "Replace a key's policy.",
        resource=Resource.KEY, resource_field="key_id", key_states=ANY_STATE, mutates=True,
        audit=("key_id", "policy_name", "bypass_policy_lockout_safety_check"),
        errors=(*_COMMON, errors.MalformedPolicy, errors.LimitExceeded),
    ),
    Operation(
        "GetKeyPolicy", "kms", "kms:GetKeyPolicy", keys.GetKeyPolicyRequest, keys.GetKeyPolicyResponse,
        "Read a key's policy.",
        resource=Resource.KEY, resource_field="key_id", key_states=ANY_STATE, audit=("key_id", "policy_name"),
        errors=_COMMON,
    ),
    Operation(
        "CreateAlias", "kms", "kms:CreateAlias", keys.AliasRequest, keys.Empty,
        "Give a key a name.",
        resource=Resource.ALIAS, resource_field="target_key_id", key_states=NOT_DELETED, mutates=True,
        audit=("alias_name", "target_key_id"),
        errors=(*_STATE, errors.AlreadyExists, errors.InvalidAliasName, errors.LimitExceeded),
    ),
    Operation(
        "UpdateAlias", "kms", "kms:UpdateAlias", keys.AliasRequest, keys.Empty,
        "Let an alias name another key.",
        resource=Resource.ALIAS, resource_field="target_key_id", key_states=NOT_DELETED, mutates=True,
        audit=("alias_name", "target_key_id"), errors=(*_STATE, errors.AliasNotFound, errors.InvalidAliasName),
    ),
    Operation(
        "DeleteAlias", "kms", "kms:DeleteAlias", keys.DeleteAliasRequest, keys.Empty,
        "Remove a name; the key stays.",
        resource=Resource.ALIAS, key_states=ANY_STATE, mutates=True, audit=("alias_name",),
        errors=(errors.AliasNotFound, errors.AccessDenied),
    ),
    Operation(
        "ListAliases", "kms", "kms:ListAliases", keys.ListAliasesRequest, keys.ListAliasesResponse,
        "List aliases of keys that the caller may describe.", audit=("key_id",),
        errors=(errors.InvalidMarker, errors.KeyNotFound, errors.InvalidArn),
    ),
)  # fmt: skip
