"""Handlers of ExplainDecision, SimulateKeyAccess and ListAuthorizedPrincipals."""

import os
import pwd
from collections.abc import Iterator

from kmsd.access.denials import Denials
from kmsd.authz.decide import Decision, Question, decide
from kmsd.authz.explain import Step, explain, without_conditions, without_constraints
from kmsd.authz.guardrails import Guardrails
from kmsd.authz.policy import compile_new_policy
from kmsd.authz.principal import Caller, make_caller
from kmsd.dispatch.authorise import Authoriser
from kmsd.dispatch.call import Call
from kmsd.iam.records import ROLE, USER
from kmsd.iam.store import IamStore
from kmsd.keys.registry import KeyRegistry, KmsKey
from kmsfs.api.shapes import access as shapes
from kmsfs.errors import AccessDenied, DecisionNotFound, NoSuchEntity
from kmsfs.ids import check_principal, is_unique_id, root_principal

_NOBODY = 65_534
EVERYBODY = "*"


class AccessService:
    """Answers about access, to who may read the key's policy."""

    def __init__(
        self,
        registry: KeyRegistry,
        authoriser: Authoriser,
        denials: Denials,
        iam: IamStore,
        administrators: frozenset[str],
        guardrails: Guardrails,
    ) -> None:
        self._guardrails = guardrails
        self._registry = registry
        self._authoriser = authoriser
        self._denials = denials
        self._iam = iam
        self._administrators = administrators

    def explain_decision(self, call: Call) -> shapes.AccessResponse:
        """ExplainDecision: as it was decided then, with the policies of then."""
        decision_id: str = call.request.decision_id
        denial = self._denials.find(decision_id)
        key = self._registry.keys.get(denial.question.key_arn.rpartition("/")[2]) if denial is not None else None
        if denial is None or key is None:
            raise DecisionNotFound(
                f"No denial {decision_id} is remembered",
                hint="the newest ten thousand since kmsd started are; the audit log has all",
            )
        try:
            self._authoriser.require(call, key, "kms:GetKeyPolicy", {})
        except AccessDenied:
            raise DecisionNotFound(
                f"No denial {decision_id} is remembered that you may look into",
                hint="whoever may read the key's policy may: kms:GetKeyPolicy",
            ) from None
        decision, steps = explain(
            denial.caller, denial.question, denial.policy, denial.grants, denial.guardrails
        )
        return _answer(denial.caller.principal, denial.question, decision, steps)

    def simulate_key_access(self, call: Call) -> shapes.AccessResponse:
        """SimulateKeyAccess: what the evaluator would say now, of the key's policy or of another one in its place."""
        request: shapes.SimulateKeyAccessRequest = call.request
        key = call.the_key
        caller = self._caller(check_principal(request.principal))
        question = self._question(call, request.action, request.asked_context, request.via_service)
        policy = key.policy if request.policy is None else compile_new_policy(request.policy)
        decision, steps = explain(caller, question, policy, key.grants.values(), self._guardrails.policies)
        return _answer(caller.principal, question, decision, steps)

    def list_authorized_principals(self, call: Call) -> shapes.ListAuthorizedPrincipalsResponse:
        """ListAuthorizedPrincipals: everybody who has a name here, asked one by one."""
        request: shapes.ListAuthorizedPrincipalsRequest = call.request
        key = call.the_key
        question = self._question(call, request.action, request.asked_context, request.via_service)
        found = []
        for principal in sorted(self._candidates(call, key)):
            caller = _anybody(call.caller.account) if principal == EVERYBODY else self._caller(principal)
            if self._guardrails.decide(caller, question) is not None:
                continue
            decision = decide(caller, question, key.policy, key.grants.values())
            conditional = False
            if not decision.allowed:
                grants = [without_constraints(grant) for grant in key.grants.values()]
                decision = decide(caller, question, without_conditions(key.policy), grants)
                conditional = decision.allowed
            if decision.allowed:
                found.append(
                    shapes.AuthorizedPrincipal(principal=principal, decided_by=decision.by, conditional=conditional)
                )
        return shapes.ListAuthorizedPrincipalsResponse(principals=found)

    def _question(self, call: Call, action: str, context: dict[str, str], via: str | None) -> Question:
        key = call.the_key
        return Question(action, key.arn, context, via, call.now, key.condition_values())

    def _candidates(self, call: Call, key: KmsKey) -> Iterator[str]:
        """Every name that a policy, a grant, IAM or the daemon's own settings know, once."""
        account = call.caller.account
        names = {root_principal(account), call.caller.principal, *self._administrators}
        for statement in key.policy.statements:
            names |= statement.principals
            if statement.everyone:
                names.add(EVERYBODY)
        names |= {grant.grantee for grant in key.grants.values()}
        names |= {entity.arn for kind in (USER, ROLE) for entity in self._iam.all_of(account, kind)}
        # What is left of a user or role who is gone speaks of nobody; so does a grant to one who never was.
        yield from (name for name in names if not is_unique_id(name) and self._iam.principal_exists(name))

    def _caller(self, principal: str) -> Caller:
        """The caller that goes by a name: with the policies of an IAM entity, or the groups of a local user."""
        account, resource = principal.split(":", 5)[4:]
        entity = self._iam.of_arn(principal)
        if entity is not None and entity.kind in (USER, ROLE):
            return Caller(
                account, _NOBODY, _NOBODY, 0, principal, frozenset({principal}), identity=self._iam.identity(entity), tags=entity.tags
            )
        kind, _, number = resource.partition("/")
        if kind == "uid":
            gid, groups = _groups_of(int(number))
            return make_caller(account, int(number), gid, 0, groups, administrators=self._administrators)
        if kind in ("user", "role"):
            raise NoSuchEntity(f"{principal} cannot be found.")
        root = principal == root_principal(account)
        return Caller(account, _NOBODY, _NOBODY, 0, principal, frozenset({principal}), root=root)


def _anybody(account: str) -> Caller:
    """Somebody whom no policy and no grant names."""
    return Caller(account, _NOBODY, _NOBODY, 0, EVERYBODY, frozenset())


def _groups_of(uid: int) -> tuple[int, tuple[int, ...]]:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return _NOBODY, ()
    return entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _answer(principal: str, question: Question, decision: Decision, steps: list[Step]) -> shapes.AccessResponse:
    return shapes.AccessResponse(
        principal=principal,
        action=question.action,
        resource=question.key_arn,
        encryption_context=question.context,
        via_service=question.via,
        allowed=decision.allowed,
        decided_by=decision.by,
        time=question.now,
        steps=[
            shapes.AccessStep(
                source=step.source, name=step.name, effect="Allow" if step.allow else "Deny", applies=step.applies,
                reason=step.against or None,
            )
            for step in steps
        ],
    )  # fmt: skip
