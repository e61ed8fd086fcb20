"""Where AWS takes a key's id or ARN alone, the door takes no alias; on the socket an alias will do wherever a key is named.

Source: AWS KMS API reference, the `KeyId` parameter of each operation.
"""

from typing import Any

from kmsfs.api.operation import Operation
from kmsfs.errors import InvalidRequest, KeyNotFound
from kmsfs.ids import is_key_id

_BY_ID_ALONE = frozenset(
    {
        "CancelKeyDeletion", "CreateGrant", "DeleteImportedKeyMaterial", "DisableKey", "DisableKeyRotation", "EnableKey",
        "EnableKeyRotation", "GetKeyPolicy", "GetKeyRotationStatus", "GetParametersForImport", "ImportKeyMaterial",
        "ListAliases", "ListGrants", "ListKeyPolicies", "ListKeyRotations", "ListResourceTags", "PutKeyPolicy",
        "ReplicateKey", "RetireGrant", "RevokeGrant", "RotateKeyOnDemand", "ScheduleKeyDeletion", "TagResource",
        "UntagResource", "UpdateKeyDescription", "UpdatePrimaryRegion",
    }
)  # fmt: skip


def refuse_alias(operation: Operation, parameters: dict[str, Any]) -> None:
    """Check how a request of KMS names its key.

    Raises:
        KeyNotFound: if it is not by id or ARN where that is asked for.
        InvalidRequest: if an alias is to name an alias.
    """
    if operation.service != "kms":
        return
    named = parameters.get("KeyId")
    if operation.name in _BY_ID_ALONE and isinstance(named, str) and named:
        by_id = is_key_id(named) or (named.startswith("arn:") and ":alias/" not in named)
        if not by_id:
            raise KeyNotFound(f"Invalid keyId {named[:120]}")
    target = parameters.get("TargetKeyId")
    if isinstance(target, str) and (target.startswith("alias/") or ":alias/" in target):
        raise InvalidRequest("Aliases must refer to keys. Not aliases")
