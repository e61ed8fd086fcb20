"""kmsfs's own operations that explain access. Who may read a key's policy may ask about it."""

from kmsfs import errors
from kmsfs.api.operation import Operation, Resource
from kmsfs.api.shapes import access

_ON_KEY = (errors.InvalidArn, errors.KeyNotFound, errors.AccessDenied)

ACCESS_OPERATIONS = (
    Operation(
        "ExplainDecision", "kmsfs", "kms:GetKeyPolicy", access.ExplainDecisionRequest, access.AccessResponse,
        "Tell why a call was denied, by the policies and grants of that moment.",
        audit=("decision_id",), errors=(errors.DecisionNotFound,),
    ),
    Operation(
        "SimulateKeyAccess", "kmsfs", "kms:GetKeyPolicy", access.SimulateKeyAccessRequest, access.AccessResponse,
        "Tell what the evaluator would say to a principal, and why.",
        resource=Resource.KEY, resource_field="key_id",
        audit=("key_id", "principal", "action"),
        errors=(*_ON_KEY, errors.NoSuchEntity, errors.MalformedPolicy, errors.LimitExceeded),
    ),
    Operation(
        "ListAuthorizedPrincipals", "kmsfs", "kms:GetKeyPolicy", access.ListAuthorizedPrincipalsRequest,
        access.ListAuthorizedPrincipalsResponse,
        "List who is allowed an action on a key: local users, IAM's users and roles, grantees.",
        resource=Resource.KEY, resource_field="key_id", audit=("key_id", "action"), errors=_ON_KEY,
    ),
)  # fmt: skip
