"""The one decision, in AWS's order: explicit deny anywhere, resource policy, delegation to IAM, grants, else no.

Source: IAM user guide, "Policy evaluation logic"; KMS developer guide, "Troubleshooting key access".
"""

from collections.abc import Iterable

import msgspec

from kmsd.authz.conditions import PRINCIPAL_TAG, RequestValues, tag_key
from kmsd.authz.grants import Grant
from kmsd.authz.identity import ALLOW, DENY, SILENT
from kmsd.authz.policy import KeyPolicy
from kmsd.authz.principal import Caller
from kmsfs.ids import root_principal

TEMPORARY = "ASIA"
"""What the ids of temporary access keys begin with."""


class Question(msgspec.Struct, frozen=True):
    """What a caller wants to do with a resource. `values` are condition keys beyond those derived here."""

    action: str
    key_arn: str
    context: dict[str, str] = {}
    via: str | None = None
    now: float = 0.0
    values: dict[str, str | list[str]] = {}

    def request_values(self, caller: Caller) -> RequestValues:
        """Return the condition keys of this call."""
        values: dict[str, str | list[str]] = {
            "kms:CallerAccount": caller.account,
            "aws:PrincipalAccount": caller.account,
            "aws:PrincipalArn": caller.principal,
            "aws:CurrentTime": str(self.now),
            "aws:EpochTime": str(self.now),
        }
        if caller.address:
            values["aws:SourceIp"] = caller.address
        if ":user/" in caller.principal:
            values["aws:username"] = caller.principal.rpartition("/")[2]
        if caller.access_key_id.startswith(TEMPORARY):
            # Requests with long-lived keys have neither (IAM user guide, "AWS global condition context keys").
            values["aws:MultiFactorAuthPresent"] = "true" if caller.mfa_at is not None else "false"
            if caller.mfa_at is not None:
                values["aws:MultiFactorAuthAge"] = str(max(0, int(self.now - caller.mfa_at)))
        for name, value in caller.tags.items():
            values[tag_key(PRINCIPAL_TAG, name)] = value
        if self.via is not None:
            values["kms:ViaService"] = self.via
        if self.context:
            values["kms:EncryptionContextKeys"] = list(self.context)
            values.update({f"kms:EncryptionContext:{key}": value for key, value in self.context.items()})
            if "kmsfs:volume" in self.context:
                values["kmsfs:VolumeId"] = self.context["kmsfs:volume"]
        values.update(self.values)
        return values


class Decision(msgspec.Struct, frozen=True):
    """The answer; `by` names the statement or grant for the audit log."""

    allowed: bool
    by: str


def decide(caller: Caller, question: Question, policy: KeyPolicy, grants: Iterable[Grant]) -> Decision:
    """Decide one call on a resource that has a policy of its own.

    A resource policy that allows the account root lets the identity policies of that account decide; a caller of
    another account needs both (KMS developer guide, "Allowing users in other accounts to use a KMS key"). What names
    a role, by policy or grant, is limited by the boundary and the session policies of its sessions; what names one
    session is not (IAM user guide, "Policies and permissions", Evaluating identity-based and resource-based policies).
    """
    values = _Values(question, caller)
    denied, direct, delegated = _of_resource(caller, question, policy, values)
    if denied:
        return Decision(allowed=False, by=denied)
    if direct and caller.identity is None:
        return Decision(allowed=True, by=direct)
    identity, by = SILENT, ""
    if caller.identity is not None and not caller.root:
        identity, by = caller.identity.says(question.action, question.key_arn, values.get())
        if identity == DENY:
            return Decision(allowed=False, by=f"identity-deny:{by}")
        # Who has one name is a user, whom boundaries do not limit in what names him; a session has its role's too.
        if len(caller.principals) > 1 and caller.identity.withholds(
            question.action, question.key_arn, values.get()
        ):
            caller = caller.as_session_alone()
            direct = direct and _of_resource(caller, question, policy, values)[1]
    at_home = question.key_arn.split(":", 5)[4:5] == [caller.account]
    if direct and (at_home or identity == ALLOW):
        return Decision(allowed=True, by=direct)
    if delegated and identity == ALLOW:
        return Decision(allowed=True, by=f"{delegated}+identity:{by}")
    operation = question.action.removeprefix("kms:")
    for grant in grants:
        if grant.permits(caller, operation, question.context, question.now, delegated=identity == ALLOW):
            return Decision(allowed=True, by=f"grant:{grant.grant_id}")
    return Decision(allowed=False, by="no-allow")


def decide_by_identity(caller: Caller, question: Question) -> Decision:
    """Decide one call on something that has no policy of its own: the account, or what IAM allows."""
    if caller.root:
        return Decision(allowed=True, by="root")
    if caller.identity is None:
        return Decision(allowed=False, by="no-allow")
    verdict, by = caller.identity.says(question.action, question.key_arn, question.request_values(caller))
    return Decision(allowed=verdict == ALLOW, by=f"identity:{by}" if verdict == ALLOW else verdict)


class _Values:
    """The condition keys of a call, made when the first statement with conditions or variables asks for them."""

    def __init__(self, question: Question, caller: Caller) -> None:
        self._question = question
        self._caller = caller
        self._made: RequestValues | None = None

    def get(self) -> RequestValues:
        if self._made is None:
            self._made = self._question.request_values(self._caller)
        return self._made


def _of_resource(
    caller: Caller, question: Question, policy: KeyPolicy, values: _Values
) -> tuple[str, str, str]:
    """Return the statements that deny, that allow the caller by name, and that allow the caller's account."""
    direct = delegated = ""
    account = root_principal(caller.account) if caller.identity is not None else ""
    for name, statement, named in policy.relevant(question.action, caller.principals, account):
        if statement.allow and (direct or (delegated and not named)):
            continue
        request = values.get() if statement.asks_for_values else _NOTHING
        if statement.holds(question.key_arn, request):
            if not statement.allow:
                return f"deny:{name}", "", ""
            if named:
                direct = f"policy:{name}"
            else:
                delegated = f"policy:{name}"
    return "", direct, delegated


_NOTHING: RequestValues = {}
