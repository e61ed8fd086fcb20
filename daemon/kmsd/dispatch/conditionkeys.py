"""The condition keys of a call, from its request (KMS developer guide, "Condition keys for AWS KMS")."""

from kmsd.dispatch.call import Call
from kmsfs.api.keyspecs import usage_of
from kmsfs.api.operation import Operation

_FIELDS = (
    ("encryption_algorithm", "kms:EncryptionAlgorithm"), ("signing_algorithm", "kms:SigningAlgorithm"),
    ("mac_algorithm", "kms:MacAlgorithm"), ("message_type", "kms:MessageType"),
    ("wrapping_algorithm", "kms:WrappingAlgorithm"),
)  # fmt: skip
_FIELDS_OF: dict[str, tuple[tuple[str, str], ...]] = {}
"""By operation: looked up on every call, and found once."""


def values_of_call(call: Call) -> dict[str, str | list[str]]:
    """Return the condition keys that requests on a key have: algorithms, and the alias by which it is named."""
    fields = _FIELDS_OF.get(call.operation.wire_name)
    if fields is None:
        fields = _FIELDS_OF[call.operation.wire_name] = _fields(call.operation)
    values: dict[str, str | list[str]] = {key: getattr(call.request, field) for field, key in fields}
    named = getattr(call.request, "key_id", None)
    if named is not None and "alias/" in named:
        values["kms:RequestAlias"] = named[named.index("alias/") :]
    return values


def _fields(operation: Operation) -> tuple[tuple[str, str], ...]:
    return tuple((field, key) for field, key in _FIELDS if field in operation.request.__struct_fields__)


def values_of_management(call: Call) -> dict[str, str | list[str]]:
    """Return the condition keys that only some management operations have."""
    request = call.request
    if call.operation.name == "CreateGrant":
        values: dict[str, str | list[str]] = {
            "kms:GrantOperations": list(request.operations),
            "kms:GranteePrincipal": request.grantee_principal,
        }
        if request.retiring_principal is not None:
            values["kms:RetiringPrincipal"] = request.retiring_principal
        if request.constraints is not None:
            equals = request.constraints.encryption_context_equals is not None
            values["kms:GrantConstraintType"] = (
                "EncryptionContextEquals" if equals else "EncryptionContextSubset"
            )
        return values
    if call.operation.name == "PutKeyPolicy":
        return {"kms:BypassPolicyLockoutSafetyCheck": str(request.bypass_policy_lockout_safety_check).lower()}
    if call.operation.name == "ScheduleKeyDeletion":
        return {"kms:ScheduleKeyDeletionPendingWindowInDays": str(request.pending_window_in_days)}
    if call.operation.service == "kms" and call.operation.name in ("CreateKey", "TagResource", "UntagResource"):
        return _of_tags(call)
    return {}


def _of_tags(call: Call) -> dict[str, str | list[str]]:
    request = call.request
    values: dict[str, str | list[str]] = {}
    tags = {tag.tag_key: tag.tag_value for tag in getattr(request, "tags", ())}
    for name, value in tags.items():
        values[f"aws:RequestTag/{name}"] = value
    names = [*tags, *getattr(request, "tag_keys", ())]
    if names:
        values["aws:TagKeys"] = names
    if call.operation.name == "CreateKey":
        values["kms:KeyOrigin"] = request.origin
        values["kms:KeySpec"] = request.key_spec
        values["kms:KeyUsage"] = usage_of(request.key_spec, request.key_usage)
    return values
