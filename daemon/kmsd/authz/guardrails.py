"""Guardrails: what nobody may do, whatever key policies, grants and IAM say. Pure.

They are key policies of Deny statements only (compare the service control policies of AWS Organizations), asked before
everything else, of the account's root and of administrators too.
"""

from kmsd.authz.decide import Decision, Question
from kmsd.authz.policy import KeyPolicy, compile_new_policy
from kmsd.authz.principal import Caller
from kmsd.authz.statement import ANY_SERVICE
from kmsfs.errors import AccessDenied, MalformedPolicy


def compile_guardrail(name: str, text: str) -> KeyPolicy:
    """Return a compiled guardrail.

    Raises:
        MalformedPolicy, LimitExceeded: naming it, if it is none.
    """
    try:
        policy = compile_new_policy(text, ANY_SERVICE)
    except MalformedPolicy as error:
        raise MalformedPolicy(f"guardrail {name}: {error.detail}") from error
    if any(statement.allow for statement in policy.statements):
        raise MalformedPolicy(f"guardrail {name}: guardrails only deny; Allow is for key policies")
    return policy


class Guardrails:
    """All guardrails of a daemon, by name; they may be replaced while it runs."""

    def __init__(self, policies: dict[str, KeyPolicy] | None = None) -> None:
        self.policies = policies or {}

    def decide(self, caller: Caller, question: Question) -> Decision | None:
        """Return a denial, or None where no guardrail speaks of the call."""
        for name, policy in self.policies.items():
            for index, statement in enumerate(policy.statements):
                values = question.request_values(caller) if statement.asks_for_values else {}
                if statement.names(caller.principals) and statement.speaks_of(question.action, question.key_arn, values):
                    return Decision(allowed=False, by=f"guardrail:{name}:{statement.sid or index}")
        return None

    def require_silence(self, caller: Caller, question: Question) -> None:
        """Let a call pass of which no guardrail speaks.

        Raises:
            AccessDenied: if one does; its name goes to the audit record.
        """
        denied = self.decide(caller, question) if self.policies else None
        if denied is not None:
            raise AccessDenied(
                f"User: {caller.principal} is not authorized to perform: {question.action} with an explicit deny in a guardrail",
                evidence=denied.by,
            )
