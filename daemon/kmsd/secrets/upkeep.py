"""Handlers that tell of secrets, and of their tags and policies."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kmsd.authz.policy import KeyPolicy, compile_new_policy
from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import Names
from kmsd.secrets.filters import make_test
from kmsd.secrets.records import Secret, Version
from kmsd.secrets.service import check_tags, require_not_deleted, secret_page
from kmsd.secrets.store import SERVICE, SecretStore
from kmsfs.api.shapes import secrets as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    InvalidParameter,
    KmsfsError,
    LimitExceeded,
    MalformedPolicy,
    PublicPolicy,
)

_SORTS: dict[str, Callable[[Secret], Any]] = {
    "name": lambda secret: secret.name,
    "created-date": lambda secret: (secret.created, secret.name),
    "last-changed-date": lambda secret: (secret.changed, secret.name),
    "last-accessed-date": lambda secret: (secret.accessed or 0.0, secret.name),
}


class SecretUpkeepService:
    """DescribeSecret to ValidateResourcePolicy."""

    def __init__(self, store: SecretStore) -> None:
        self._store = store

    # --- telling ----------------------------------------------------------------------------------------------

    def describe_secret(self, call: Call) -> shapes.DescribeSecretResponse:
        """DescribeSecret: of those marked for deletion too."""
        secret = self._store.find(call, call.request.secret_id, "secretsmanager:DescribeSecret")
        return shapes.DescribeSecretResponse(**_facts(secret), version_ids_to_stages=secret.stages() or None)

    def list_secrets(self, call: Call) -> shapes.ListSecretsResponse:
        """ListSecrets, newest first unless told otherwise."""
        request: shapes.ListSecretsRequest = call.request
        test = make_test(request.filters)
        names, secret_at = self._in_order(call.scope, request.sort_by, request.sort_order)

        def wanted(place: str) -> bool:
            secret = secret_at(place)
            return (secret.deleted is None or request.include_planned_deletion) and test(secret) and self._store.may_see(call, secret)

        page, token = secret_page(names, request.max_results, request.next_token, wanted)
        return shapes.ListSecretsResponse(secret_list=[_entry(secret_at(place)) for place in page], next_token=token)

    def _in_order(self, scope: str, sort_by: str, sort_order: str) -> tuple[Names, Callable[[str], Secret]]:
        """Return what sorts the secrets of a scope as asked, and what tells the secret of a place."""
        if (sort_by, sort_order) == ("created-date", "desc"):
            return self._store.newest_in(scope), lambda place: self._store.at(scope, place.partition(" ")[2])
        ordered = sorted(self._store.all_in(scope), key=_SORTS[sort_by], reverse=sort_order == "desc")
        places = {f"{position:08d}": secret for position, secret in enumerate(ordered)}
        return Names(places), places.__getitem__

    def list_secret_version_ids(self, call: Call) -> shapes.ListSecretVersionIdsResponse:
        """ListSecretVersionIds, oldest first."""
        request: shapes.ListSecretVersionIdsRequest = call.request
        secret = self._store.find(call, request.secret_id, "secretsmanager:ListSecretVersionIds")
        places = {
            f"{position:08d}": version
            for position, version in enumerate(secret.versions)
            if version.stages or request.include_deprecated
        }
        page, token = secret_page(Names(places), request.max_results, request.next_token)
        return shapes.ListSecretVersionIdsResponse(
            versions=[_version(places[place]) for place in page],
            next_token=token,
            arn=secret.arn,
            name=secret.name,
        )

    # --- tags and policies ------------------------------------------------------------------------------------

    def tag_resource(self, call: Call) -> Empty:
        """TagResource of Secrets Manager."""
        secret = self._usable(call, "secretsmanager:TagResource")
        tags = {**secret.tags, **{tag.key: tag.value for tag in call.request.tags}}
        check_tags(tags)
        self._store.put(replace(secret, tags=tags, changed=call.now))
        return Empty()

    def untag_resource(self, call: Call) -> Empty:
        """UntagResource of Secrets Manager."""
        secret = self._usable(call, "secretsmanager:UntagResource")
        gone = set(call.request.tag_keys)
        tags = {key: value for key, value in secret.tags.items() if key not in gone}
        self._store.put(replace(secret, tags=tags, changed=call.now))
        return Empty()

    def put_resource_policy(self, call: Call) -> shapes.SecretNameResponse:
        """PutResourcePolicy: its author must still be able to change it."""
        request: shapes.PutResourcePolicyRequest = call.request
        secret = self._usable(call, "secretsmanager:PutResourcePolicy")
        _require_default(request.policy_name)
        policy = _compiled(request.resource_policy)
        if request.block_public_policy and _is_public(policy):
            raise PublicPolicy("You can't attach a policy that allows broad access to the secret.")
        if not self._store.may_under(
            policy, call.caller, secret, "secretsmanager:PutResourcePolicy", call.now
        ):
            raise MalformedPolicy("This resource policy would not let you change it in the future.")
        self._store.put(replace(secret, policy=policy.text, changed=call.now))
        return shapes.SecretNameResponse(arn=secret.arn, name=secret.name)

    def get_resource_policy(self, call: Call) -> shapes.GetResourcePolicyResponse:
        """GetResourcePolicy."""
        secret = self._usable(call, "secretsmanager:GetResourcePolicy")
        _require_default(call.request.policy_name)
        return shapes.GetResourcePolicyResponse(
            arn=secret.arn, name=secret.name, resource_policy=secret.policy
        )

    def list_resource_policies(self, call: Call) -> shapes.ListResourcePoliciesResponse:
        """ListResourcePolicies: one at most."""
        _request: shapes.ListResourcePoliciesRequest = call.request
        secret = self._usable(call, "secretsmanager:ListResourcePolicies")
        names = [shapes.ResourcePolicySummary(policy_name="default")] if secret.policy is not None else []
        return shapes.ListResourcePoliciesResponse(resource_policies=names)

    def delete_resource_policy(self, call: Call) -> shapes.SecretNameResponse:
        """DeleteResourcePolicy."""
        secret = self._usable(call, "secretsmanager:DeleteResourcePolicy")
        _require_default(call.request.policy_name)
        self._store.put(replace(secret, policy=None, changed=call.now))
        return shapes.SecretNameResponse(arn=secret.arn, name=secret.name)

    def validate_resource_policy(self, call: Call) -> shapes.ValidateResourcePolicyResponse:
        """ValidateResourcePolicy."""
        request: shapes.ValidateResourcePolicyRequest = call.request
        if request.secret_id is not None:
            self._store.find(call, request.secret_id, "secretsmanager:ValidateResourcePolicy")
        problems = []
        try:
            if _is_public(_compiled(request.resource_policy)):
                problems.append(("PUBLIC_POLICY", "The policy allows everybody."))
        except KmsfsError as error:
            problems.append(("POLICY_SYNTAX", error.detail))
        return shapes.ValidateResourcePolicyResponse(
            policy_validation_passed=not problems,
            validation_errors=[
                shapes.PolicyProblem(check_name=name, error_message=text) for name, text in problems
            ],
        )

    def _usable(self, call: Call, action: str) -> Secret:
        secret = self._store.find(call, call.request.secret_id, action)
        require_not_deleted(secret)
        return secret


def _require_default(policy_name: str) -> None:
    if policy_name != "default":
        raise InvalidParameter("A secret has one policy here, named default.")


def _compiled(text: str) -> KeyPolicy:
    try:
        return compile_new_policy(text, SERVICE)
    except (MalformedPolicy, LimitExceeded) as error:
        raise MalformedPolicy(f"This resource policy contains an error: {error.detail}") from error


def _is_public(policy: KeyPolicy) -> bool:
    return any(s.allow and s.everyone and not s.conditions for s in policy.statements)


def _facts(secret: Secret) -> dict[str, Any]:
    rules = shapes.RotationRules(**secret.rotation_rules) if secret.rotation_rules else None
    return {
        "arn": secret.arn, "name": secret.name, "description": secret.description, "kms_key_id": secret.key or None,
        "rotation_enabled": secret.rotation_enabled, "rotation_lambda_arn": secret.rotator, "rotation_rules": rules,
        "last_rotated_date": secret.rotated, "last_accessed_date": secret.accessed, "last_changed_date": secret.changed, "deleted_date": secret.deleted,
        "next_rotation_date": secret.next_rotation, "created_date": secret.created,
        "tags": [shapes.Tag(key=key, value=value) for key, value in secret.tags.items()] or None,
    }  # fmt: skip


def _entry(secret: Secret) -> shapes.SecretListEntry:
    return shapes.SecretListEntry(**_facts(secret), secret_versions_to_stages=secret.stages() or None)


def _version(version: Version) -> shapes.SecretVersionsListEntry:
    return shapes.SecretVersionsListEntry(
        version_id=version.version_id,
        version_stages=list(version.stages) or None,
        created_date=version.created,
        kms_key_ids=version.keys or None,
    )
