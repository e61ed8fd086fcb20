"""SimulatePrincipalPolicy and SimulateCustomPolicy: the evaluator itself answers, over identity policies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kmsd.authz.conditions import spelling_of
from kmsd.authz.decide import Question
from kmsd.authz.identity import ALLOW, DENY, Identity, IdentityPolicy, compile_identity_policy
from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.iam.pages import check_document
from kmsd.iam.records import POLICY
from kmsd.iam.store import IamStore
from kmsfs.api.shapes import iam as shapes
from kmsfs.api.shapes import identities
from kmsfs.errors import InvalidIamInput, NoSuchEntity
from kmsfs.ids import root_principal

_WORDS = {ALLOW: "allowed", DENY: "explicitDeny"}
_NOBODY = -1


class SimulationService:
    """Both simulations."""

    def __init__(self, store: IamStore) -> None:
        self._store = store

    def of_principal(self, call: Call) -> shapes.SimulationResponse:
        """SimulatePrincipalPolicy: with what an entity has, and more."""
        request: shapes.SimulatePrincipalPolicyRequest = call.request
        entity = self._store.of_arn(request.policy_source_arn)
        if entity is None or entity.kind == POLICY or entity.account != call.caller.account:
            raise NoSuchEntity(f"{request.policy_source_arn} cannot be found.")
        identity = self._store.identity(entity)
        identity = replace(identity, policies=(*identity.policies, *_given(request.policy_input_list)))
        caller = Caller(entity.account, _NOBODY, _NOBODY, 0, entity.arn, frozenset({entity.arn}), tags=entity.tags)
        return _answered(call, identity, caller)

    def custom(self, call: Call) -> shapes.SimulationResponse:
        """SimulateCustomPolicy: with the policies of the request alone."""
        request: identities.SimulateCustomPolicyRequest = call.request
        boundary = next(_given(request.permissions_boundary_policy_input_list), None)
        principal = root_principal(call.caller.account)
        caller = Caller(call.caller.account, _NOBODY, _NOBODY, 0, principal, frozenset({principal}))
        return _answered(call, Identity(tuple(_given(request.policy_input_list)), boundary), caller)


def _given(texts: Sequence[str]) -> Iterator[IdentityPolicy]:
    return (compile_identity_policy(f"input/{number}", check_document(text)) for number, text in enumerate(texts))


def _answered(call: Call, identity: Identity, caller: Caller) -> shapes.SimulationResponse:
    request = call.request
    given: dict[str, str | list[str]] = {
        spelling_of(entry.context_key_name): entry.context_key_values
        if (entry.context_key_type or "").endswith("List") or len(entry.context_key_values) != 1
        else entry.context_key_values[0]
        for entry in request.context_entries
        if entry.context_key_name is not None
    }
    results = []
    for action in request.action_names:
        if ":" not in action:
            raise InvalidIamInput(f"Invalid Entity Action: {action}")
        for resource in request.resource_arns or ["*"]:
            values = Question(action, resource, now=call.now, values=given).request_values(caller)
            verdict, _ = identity.says(action, resource, values)
            results.append(
                shapes.EvaluationResult(
                    eval_action_name=action,
                    eval_resource_name=resource,
                    eval_decision=_WORDS.get(verdict, "implicitDeny"),
                )
            )
    return shapes.SimulationResponse(evaluation_results=results, is_truncated=False)
