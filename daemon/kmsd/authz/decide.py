"""The one decision: explicit deny, then key policy or a live grant, else no."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kmsd.authz.conditions import RequestValues
from kmsd.authz.grants import Grant
from kmsd.authz.policy import KeyPolicy
from kmsd.authz.principal import Caller


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller wants to do with a key. `values` are condition keys beyond those derived here."""

    action: str
    key_arn: str
    context: dict[str, str] = field(default_factory=dict)
    via: str | None = None
    now: float = 0.0
    values: dict[str, str | list[str]] = field(default_factory=dict)

    def request_values(self, caller: Caller) -> RequestValues:
        """Return the condition keys of this call."""
        values: dict[str, str | list[str]] = {
            "kms:CallerAccount": caller.account,
            "aws:PrincipalArn": caller.principal,
            "aws:CurrentTime": str(self.now),
            "aws:EpochTime": str(self.now),
        }
        if self.via is not None:
            values["kms:ViaService"] = self.via
        if self.context:
            values["kms:EncryptionContextKeys"] = list(self.context)
            values.update({f"kms:EncryptionContext:{key}": value for key, value in self.context.items()})
            if "kmsfs:volume" in self.context:
                values["kmsfs:VolumeId"] = self.context["kmsfs:volume"]
        values.update(self.values)
        return values


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer; `by` names the statement or grant for the audit log."""

    allowed: bool
    by: str


def decide(caller: Caller, question: Question, policy: KeyPolicy, grants: Iterable[Grant]) -> Decision:
    """Decide one call: an explicit Deny always wins, then Allow by policy or grant, else the answer is no."""
    allowed_by = ""
    values: RequestValues | None = None
    for index, statement in enumerate(policy.statements):
        if statement.allow and allowed_by:
            continue
        if values is None and statement.conditions:
            values = question.request_values(caller)
        if statement.applies(caller, question.action, question.key_arn, values or {}):
            name = statement.sid or str(index)
            if not statement.allow:
                return Decision(allowed=False, by=f"deny:{name}")
            allowed_by = f"policy:{name}"
    if allowed_by:
        return Decision(allowed=True, by=allowed_by)
    operation = question.action.removeprefix("kms:")
    for grant in grants:
        if grant.permits(caller, operation, question.context):
            return Decision(allowed=True, by=f"grant:{grant.grant_id}")
    return Decision(allowed=False, by="no-allow")
