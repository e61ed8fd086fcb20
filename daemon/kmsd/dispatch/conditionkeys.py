"""The condition keys of a call, from its request and from the tags of what it acts on.

Source: KMS developer guide, "Condition keys for AWS KMS"; Service Authorization Reference, "Condition keys for AWS Secrets
Manager", "… AWS Systems Manager", "… AWS Identity and Access Management"; IAM user guide, "AWS global condition context keys".
"""

from typing import Any

from kmsd.authz.conditions import REQUEST_TAG, RESOURCE_TAG, RESOURCE_TAGS, tag_key
from kmsd.dispatch.call import Call
from kmsfs.api.keyspecs import usage_of
from kmsfs.api.operation import Operation

_FIELDS = (
    ("encryption_algorithm", "kms:EncryptionAlgorithm"), ("signing_algorithm", "kms:SigningAlgorithm"),
    ("mac_algorithm", "kms:MacAlgorithm"), ("message_type", "kms:MessageType"),
    ("wrapping_algorithm", "kms:WrappingAlgorithm"),
)  # fmt: skip
_OF_SERVICES: dict[str, tuple[tuple[str, str], ...]] = {
    "ssm": (("overwrite", "ssm:Overwrite"), ("policies", "ssm:Policies"), ("recursive", "ssm:Recursive")),
    "secretsmanager": (
        ("block_public_policy", "secretsmanager:BlockPublicPolicy"), ("description", "secretsmanager:Description"),
        ("force_delete_without_recovery", "secretsmanager:ForceDeleteWithoutRecovery"), ("kms_key_id", "secretsmanager:KmsKeyId"),
        ("name", "secretsmanager:Name"), ("recovery_window_in_days", "secretsmanager:RecoveryWindowInDays"),
        ("rotate_immediately", "secretsmanager:RotateImmediately"), ("rotation_lambda_arn", "secretsmanager:RotationLambdaARN"),
        ("version_id", "secretsmanager:VersionId"), ("version_stage", "secretsmanager:VersionStage"),
    ),
}  # fmt: skip
_TAGGING = frozenset({"ssm", "secretsmanager", "iam", "sts"})
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
    request, service = call.request, call.operation.service
    if service in _TAGGING:
        return values_of_tags(call) | _of_service(request, service)
    if call.operation.name == "CreateGrant":
        values: dict[str, str | list[str]] = {
            "kms:GrantOperations": list(request.operations),
            "kms:GranteePrincipal": request.grantee_principal,
            "kms:GrantIsForAWSResource": str(call.via is not None).lower(),
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
    if service == "kms" and call.operation.name in ("CreateKey", "TagResource", "UntagResource"):
        return _of_keys_tags(call)
    return {}


def values_of_resource(service: str, tags: dict[str, str]) -> dict[str, str | list[str]]:
    """Return the condition keys of a resource's tags."""
    own = RESOURCE_TAGS[service]
    values: dict[str, str | list[str]] = {}
    for name, value in tags.items():
        values[tag_key(RESOURCE_TAG, name)] = values[tag_key(own, name)] = value
    return values


def values_of_tags(call: Call) -> dict[str, str | list[str]]:
    """Return the condition keys of the tags that a request gives or takes."""
    request = call.request
    tags = dict(_pair(tag) for tag in getattr(request, "tags", None) or ())
    values: dict[str, str | list[str]] = {tag_key(REQUEST_TAG, name): value for name, value in tags.items()}
    names = [*tags, *(getattr(request, "tag_keys", None) or ())]
    if names:
        values["aws:TagKeys"] = names
    return values


def _pair(tag: Any) -> tuple[str, str]:
    """KMS calls them TagKey and TagValue, all others Key and Value."""
    return (tag.tag_key, tag.tag_value) if hasattr(tag, "tag_key") else (tag.key, tag.value)


def _of_service(request: Any, service: str) -> dict[str, str | list[str]]:
    found = ((key, getattr(request, field, None)) for field, key in _OF_SERVICES.get(service, ()))
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in found if value is not None}


def _of_keys_tags(call: Call) -> dict[str, str | list[str]]:
    request, values = call.request, values_of_tags(call)
    if call.operation.name == "CreateKey":
        values["kms:KeyOrigin"] = request.origin
        values["kms:KeySpec"] = request.key_spec
        values["kms:KeyUsage"] = usage_of(request.key_spec, request.key_usage)
    return values
