"""Why the evaluator says what it says: every statement and grant with what it is about and what it is not. Pure.

The verdict is `decide`'s own; the steps only tell how each part of the policies meets the question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kmsd.authz.conditions import Condition, RequestValues
from kmsd.authz.decide import Decision, Question, decide
from kmsd.authz.grants import Grant
from kmsd.authz.guardrails import Guardrails
from kmsd.authz.identity import ALLOW, IdentityPolicy
from kmsd.authz.policy import KeyPolicy
from kmsd.authz.principal import Caller
from kmsd.authz.statement import Statement
from kmsfs.ids import root_principal

GUARDRAIL, KEY_POLICY, GRANT, IDENTITY, BOUNDARY, SESSION = (
    "guardrail", "key policy", "grant", "identity policy", "permissions boundary", "session policy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One statement or grant: where it is from, its name, and why it does not apply; empty if it does."""

    source: str
    name: str
    allow: bool
    against: str = ""

    @property
    def applies(self) -> bool:
        """Whether it speaks of this call."""
        return not self.against


def explain(
    caller: Caller,
    question: Question,
    policy: KeyPolicy,
    grants: Iterable[Grant],
    guardrails: dict[str, KeyPolicy] | None = None,
) -> tuple[Decision, list[Step]]:
    """Return the decision on a call, and how each statement and grant of the key and the caller meets it."""
    listed = list(grants)
    rails = Guardrails(guardrails)
    decision = rails.decide(caller, question) or decide(caller, question, policy, listed)
    values = question.request_values(caller)
    steps = [
        replace(_of_key(statement, index, caller, question, values), source=GUARDRAIL, name=f"{name}:{statement.sid or index}")
        for name, rail in rails.policies.items()
        for index, statement in enumerate(rail.statements)
    ]
    steps += [_of_key(statement, index, caller, question, values) for index, statement in enumerate(policy.statements)]
    steps += [Step(GRANT, grant.name or grant.grant_id, True, _against_grant(grant, caller, question)) for grant in listed]
    if caller.identity is not None:
        steps += _of_policies(IDENTITY, caller.identity.policies, question, values)
        if caller.identity.boundary is not None:
            steps += _of_policies(BOUNDARY, (caller.identity.boundary,), question, values)
        steps += _of_policies(SESSION, caller.identity.session or (), question, values)
    return decision, steps


def without_conditions(policy: KeyPolicy) -> KeyPolicy:
    """Return a policy whose Allow statements ask for no conditions: what it could allow at best."""
    relaxed = tuple(
        replace(statement, conditions=()) if statement.allow else statement for statement in policy.statements
    )
    return KeyPolicy(policy.text, relaxed)


def without_constraints(grant: Grant) -> Grant:
    """Return a grant that asks for no encryption context."""
    return replace(grant, equals=None, subset=None)


def _of_key(
    statement: Statement, index: int, caller: Caller, question: Question, values: RequestValues
) -> Step:
    account = root_principal(caller.account)
    delegates = caller.identity is not None and account in statement.principals and not statement.not_principals
    against = ""
    if not statement.names(caller.principals) and not delegates:
        against = "it names other principals"
    return Step(
        KEY_POLICY, statement.sid or str(index), statement.allow, against or _against(statement, question, values)
    )


def _of_policies(
    source: str, policies: Sequence[IdentityPolicy], question: Question, values: RequestValues
) -> list[Step]:
    return [
        Step(source, f"{policy.name}:{statement.sid or index}", statement.allow, _against(statement, question, values))
        for policy in policies
        for index, statement in enumerate(policy.statements)
    ]


def _against(statement: Statement, question: Question, values: RequestValues) -> str:
    """Why a statement does not speak of a question; empty if it does."""
    if statement.speaks_of(question.action, question.key_arn, values):
        return ""
    if not replace(statement, resources=("*",), not_resources=False, conditions=()).speaks_of(
        question.action, question.key_arn, values
    ):
        return f"it does not speak of {question.action}"
    if not replace(statement, conditions=()).speaks_of(question.action, question.key_arn, values):
        return f"it does not speak of {question.key_arn}"
    for condition in statement.conditions:
        alone = replace(statement, resources=("*",), not_resources=False, conditions=(condition,))
        if not alone.speaks_of(question.action, question.key_arn, values):
            return _unmet(condition, values)
    return "it has a policy variable that the call has no value for"


def _unmet(condition: Condition, values: RequestValues) -> str:
    wanted = ", ".join(condition.values)
    actual = values.get(condition.key)
    has = "the call has none" if actual is None else f"the call has {actual if isinstance(actual, str) else ', '.join(actual)}"
    return f"condition {condition.operator} {condition.key} wants {wanted}; {has}"


def _against_grant(grant: Grant, caller: Caller, question: Question) -> str:
    operation = question.action.removeprefix("kms:")
    identity = caller.identity
    delegated = identity is not None and identity.says(question.action, question.key_arn, question.request_values(caller))[0] == ALLOW
    if grant.permits(caller, operation, question.context, question.now, delegated=delegated):
        return ""
    if grant.grantee not in caller.principals and not (delegated and grant.grantee == root_principal(caller.account)):
        return f"its grantee principal is {grant.grantee}"
    if operation not in grant.operations:
        return f"it does not speak of {operation}"
    if grant.over(question.now):
        return "its time is over"
    return "its constraint wants another encryption context"
