"""Handlers of the Security Token Service."""

from kmsd.authz.decide import Question, decide, decide_by_identity
from kmsd.authz.guardrails import Guardrails
from kmsd.dispatch.call import Call
from kmsd.dispatch.conditionkeys import values_of_resource, values_of_tags
from kmsd.iam.mfa import MfaCodes
from kmsd.iam.pages import check_document
from kmsd.iam.records import ROLE
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import with_tags
from kmsd.sts.sessions import SessionIdentity, session_policies
from kmsd.sts.tokens import IssuedCredentials, SessionTokens
from kmsfs.api.shapes import sts as shapes
from kmsfs.errors import (
    AccessDenied,
    InvalidSessionTag,
    MalformedIdentityPolicy,
)
from kmsfs.ids import session_principal


class TokenService:
    """The Security Token Service: of local users, who they are comes from the socket; of others, from IAM."""

    def __init__(self, tokens: SessionTokens, iam: IamStore, codes: MfaCodes, guardrails: Guardrails) -> None:
        self._guardrails = guardrails
        self._tokens = tokens
        self._iam = iam
        self._codes = codes

    def get_caller_identity(self, call: Call) -> shapes.CallerIdentity:
        """GetCallerIdentity."""
        caller = call.caller
        entity = self._iam.of_arn(caller.principal)
        user_id = str(caller.uid) if caller.identity is None else caller.principal.rpartition("/")[2]
        if entity is not None:
            user_id = entity.entity_id
        elif ":assumed-role/" in caller.principal:
            role = next(
                (self._iam.of_arn(each) for each in caller.principals if each != caller.principal), None
            )
            user_id = f"{role.entity_id if role else ''}:{user_id}"
        elif caller.principal.endswith(":root"):
            user_id = caller.account
        return shapes.CallerIdentity(user_id=user_id, account=caller.account, arn=caller.principal)

    def get_session_token(self, call: Call) -> shapes.GetSessionTokenResponse:
        """GetSessionToken: not with credentials that are temporary themselves, as at AWS."""
        request: shapes.GetSessionTokenRequest = call.request
        caller = call.caller
        if caller.access_key_id.startswith("ASIA"):
            raise AccessDenied("Cannot call GetSessionToken with session credentials")
        shown = self._codes.shown(call)
        if caller.access_key_id:
            entity = self._iam.of_arn(caller.principal)
            session = SessionIdentity(
                caller.principal, entity.entity_id if entity else "", root=entity is None and caller.root,
                mfa_at=call.now if shown else None,
            )  # fmt: skip
            made = self._tokens.issue({"iam": session.facts()}, call.now, request.duration_seconds)
        else:
            facts = {"uid": caller.uid, "gid": caller.gid, "groups": list(caller.groups)}
            made = self._tokens.issue(facts, call.now, request.duration_seconds)
        return shapes.GetSessionTokenResponse(credentials=_credentials(made))

    def assume_role(self, call: Call) -> shapes.AssumeRoleResponse:
        """AssumeRole: the role's trust policy must let the caller in, by name or by account with IAM's consent."""
        request: shapes.AssumeRoleRequest = call.request
        caller = call.caller
        refused = AccessDenied(
            f"User: {caller.principal} is not authorized to perform: sts:AssumeRole on resource: {request.role_arn}"
        )
        role = self._iam.of_arn(request.role_arn)
        if role is None or role.kind != ROLE:
            raise refused
        values = {
            **values_of_tags(call), **values_of_resource("iam", role.tags), "sts:RoleSessionName": request.role_session_name,
        }  # fmt: skip
        if request.transitive_tag_keys:
            values["sts:TransitiveTagKeys"] = list(request.transitive_tag_keys)
        if request.external_id is not None:
            values["sts:ExternalId"] = request.external_id
        if self._codes.shown(call):
            values["aws:MultiFactorAuthPresent"], values["aws:MultiFactorAuthAge"] = "true", "0"
        for action in ("sts:TagSession", "sts:AssumeRole") if request.tags else ("sts:AssumeRole",):
            question = Question(action, role.arn, now=call.now, values=values)
            self._guardrails.require_silence(caller, question)
            decision = decide(caller, question, self._iam.trust(role), ())
            call.decided_by = decision.by
            if not decision.allowed:
                raise refused if action == "sts:AssumeRole" else AccessDenied(
                    f"User: {caller.principal} is not authorized to perform: {action} on resource: {request.role_arn}"
                )
        if request.duration_seconds > role.session_seconds:
            raise MalformedIdentityPolicy(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            )
        tags, transitive = _session_tags(request, caller.transitive)
        session = SessionIdentity(
            role.arn, role.entity_id, request.role_session_name, request.policy,
            [descriptor.arn for descriptor in request.policy_arns], tags=tags, transitive=transitive,
        )  # fmt: skip
        if request.policy is not None:
            check_document(request.policy)
        session_policies(self._iam, role.account, session)
        made = self._tokens.issue({"iam": session.facts()}, call.now, request.duration_seconds)
        return shapes.AssumeRoleResponse(
            credentials=_credentials(made),
            assumed_role_user=shapes.AssumedRoleUser(
                assumed_role_id=f"{role.entity_id}:{request.role_session_name}",
                arn=session_principal(role.account, role.name, request.role_session_name),
            ),
        )

    def get_access_key_info(self, call: Call) -> shapes.AccessKeyInfoResponse:
        """GetAccessKeyInfo: of every key there is one account."""
        key = self._iam.access_keys.get(call.request.access_key_id)
        question = Question("sts:GetAccessKeyInfo", "*", now=call.now)
        own = call.request.access_key_id == call.caller.access_key_id
        if not own and not decide_by_identity(call.caller, question).allowed:
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: sts:GetAccessKeyInfo"
            )
        return shapes.AccessKeyInfoResponse(account=key.account if key is not None else call.caller.account)


def _session_tags(request: shapes.AssumeRoleRequest, inherited: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the tags of a new session, those of the session that assumes the role among them, and the keys of the transitive ones.

    Raises:
        InvalidSessionTag: if a transitive key is none of the request's tags, or a tag that goes on already is given anew.
        InvalidIamInput, IamLimitExceeded: as `with_tags`.
    """
    given = with_tags({}, request.tags)
    by_fold = {key.casefold(): key for key in given}
    wanted = [by_fold.get(key.casefold(), "") for key in request.transitive_tag_keys]
    if not all(wanted):
        raise InvalidSessionTag("The specified transitive tag key must be included in the requested tags.")
    if by_fold.keys() & {key.casefold() for key in inherited}:
        raise InvalidSessionTag(
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session."
        )
    return inherited | given, [*inherited, *wanted]


def _credentials(made: IssuedCredentials) -> shapes.Credentials:
    return shapes.Credentials(
        access_key_id=made.access_key_id,
        secret_access_key=made.secret,
        session_token=made.token,
        expiration=made.expires,
    )
