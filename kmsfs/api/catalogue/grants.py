"""Grant operations."""

from kmsfs import errors
from kmsfs.api import rules
from kmsfs.api.operation import ANY_STATE, ENABLED, Operation, Resource
from kmsfs.api.shapes import grants
from kmsfs.api.shapes.keys import Empty

_FOUND = (errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied)
_COMMON = (*_FOUND, errors.DryRunSucceeded)

GRANT_OPERATIONS = (
    Operation(
        "CreateGrant", "kms", "kms:CreateGrant", grants.CreateGrantRequest, grants.CreateGrantResponse,
        "Let a principal use a key for some operations, within constraints.",
        cross_account=True, resource=Resource.KEY, resource_field="key_id", key_states=ENABLED, grantable=True, mutates=True,
        rules=(rules.one_grant_constraint,),
        audit=("key_id", "grantee_principal", "retiring_principal", "operations", "name"),
        errors=(*_COMMON, errors.KeyDisabled, errors.KeyInvalidState, errors.LimitExceeded, errors.InvalidGrantToken),
    ),
    Operation(
        "ListGrants", "kms", "kms:ListGrants", grants.ListGrantsRequest, grants.ListGrantsResponse,
        "List a key's grants.",
        cross_account=True, resource=Resource.KEY, resource_field="key_id", key_states=ANY_STATE, audit=("key_id",),
        errors=(*_FOUND, errors.InvalidMarker, errors.InvalidGrantId),
    ),
    Operation(
        "ListRetirableGrants", "kms", "kms:ListRetirableGrants", grants.ListRetirableGrantsRequest,
        grants.ListGrantsResponse,
        "List the grants that the calling principal may retire.", audit=("retiring_principal",),
        errors=(errors.InvalidMarker, errors.InvalidArn, errors.AccessDenied),
    ),
    Operation(
        "RetireGrant", "kms", "kms:RetireGrant", grants.RetireGrantRequest, Empty,
        "End a grant, by its retiring principal, or by its grantee where it says RetireGrant.",
        cross_account=True, resource=Resource.GRANT, key_states=ANY_STATE, grantable=True, mutates=True, rules=(rules.token_or_id,),
        audit=("key_id", "grant_id"), errors=(*_COMMON, errors.InvalidGrantToken, errors.InvalidGrantId),
    ),
    Operation(
        "RevokeGrant", "kms", "kms:RevokeGrant", grants.RevokeGrantRequest, Empty,
        "End a grant, by who administers the key.",
        cross_account=True, resource=Resource.KEY, resource_field="key_id", key_states=ANY_STATE, mutates=True,
        audit=("key_id", "grant_id"), errors=(*_COMMON, errors.InvalidGrantId),
    ),
)  # fmt: skip
