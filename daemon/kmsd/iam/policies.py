"""Handlers of managed policies and access keys."""

import base64
from dataclasses import replace

from kmsd.dispatch.call import Call
from kmsd.iam.entities import new_entity_id
from kmsd.iam.pages import as_policy, as_user, as_version, check_document, page, tags_of, user_meant
from kmsd.iam.records import ACTIVE, POLICY, USER, AccessKey, Entity
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import with_tags
from kmsfs.aead.nonces import Rng
from kmsfs.api.operation import Shape
from kmsfs.api.shapes import iam as shapes
from kmsfs.api.shapes import identities
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    AccessDenied,
    DeleteConflict,
    EntityAlreadyExists,
    IamLimitExceeded,
    InvalidIamInput,
    NoSuchEntity,
)
from kmsfs.ids import iam_arn

VERSIONS_MAX = 5
KEYS_PER_USER_MAX = 2


class PolicyService:
    """CreatePolicy to DeletePolicyVersion."""

    def __init__(self, store: IamStore, rng: Rng) -> None:
        self._store = store
        self._rng = rng

    def create_policy(self, call: Call) -> shapes.PolicyResponse:
        """CreatePolicy."""
        request: shapes.CreatePolicyRequest = call.request
        account = call.caller.account
        if self._store.get(account, POLICY, request.policy_name) is not None:
            raise EntityAlreadyExists(
                f"A policy called {request.policy_name} already exists. Duplicate names are not allowed."
            )
        document = check_document(request.policy_document)
        entity = Entity(
            POLICY, iam_arn(account, POLICY, request.path, request.policy_name), account, request.path, request.policy_name,
            new_entity_id(POLICY, self._rng), call.now, call.now, description=request.description,
            tags=with_tags({}, request.tags), versions={"v1": document}, version_dates={"v1": call.now},
            default_version="v1",
        )  # fmt: skip
        self._store.put(entity)
        made = as_policy(entity, 0, whole=False)
        made.tags = tags_of(entity)
        return shapes.PolicyResponse(policy=made)

    def get_policy(self, call: Call) -> shapes.PolicyResponse:
        """GetPolicy."""
        entity = self._named(call)
        return shapes.PolicyResponse(policy=as_policy(entity, len(list(self._store.users_of(entity.arn)))))

    def list_policies(self, call: Call) -> shapes.ListPoliciesResponse:
        """ListPolicies: there are none of AWS's own."""
        request: shapes.ListPoliciesRequest = call.request
        found = [] if request.scope == "AWS" else self._store.all_of(call.caller.account, POLICY)
        counted = [
            (entity, len(list(self._store.users_of(entity.arn))))
            for entity in found
            if entity.path.startswith(request.path_prefix)
        ]
        wanted = [item for item in counted if item[1] or not request.only_attached]
        items, more = page(wanted, lambda item: item[0].name, request)
        return shapes.ListPoliciesResponse(policies=[as_policy(*item, whole=False) for item in items], **more)

    def delete_policy(self, call: Call) -> Empty:
        """DeletePolicy."""
        entity = self._named(call)
        if any(self._store.users_of(entity.arn)):
            raise DeleteConflict("Cannot delete a policy attached to entities.")
        if len(entity.versions) > 1:
            raise DeleteConflict(
                "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy."
            )
        self._store.remove(entity)
        return Empty()

    def create_policy_version(self, call: Call) -> shapes.PolicyVersionResponse:
        """CreatePolicyVersion."""
        request: shapes.CreatePolicyVersionRequest = call.request
        entity = self._named(call)
        document = check_document(request.policy_document)
        if len(entity.versions) >= VERSIONS_MAX:
            raise IamLimitExceeded(
                f"A managed policy can have up to {VERSIONS_MAX} versions. Before you create a new version, you must delete an existing version."
            )
        number = max(int(version[1:]) for version in [*entity.versions, entity.default_version]) + 1
        version = f"v{number}"
        changed = replace(
            entity,
            versions={**entity.versions, version: document},
            version_dates={**entity.version_dates, version: call.now},
            default_version=version if request.set_as_default else entity.default_version,
            updated=call.now,
        )
        self._store.put(changed)
        return shapes.PolicyVersionResponse(policy_version=as_version(changed, version))

    def get_policy_version(self, call: Call) -> shapes.PolicyVersionResponse:
        """GetPolicyVersion."""
        entity = self._named(call)
        version = _require_version(entity, call.request.version_id)
        return shapes.PolicyVersionResponse(policy_version=as_version(entity, version, whole=True))

    def list_policy_versions(self, call: Call) -> shapes.ListPolicyVersionsResponse:
        """ListPolicyVersions, newest first."""
        entity = self._named(call)
        versions = [as_version(entity, version) for version in reversed(entity.versions)]
        return shapes.ListPolicyVersionsResponse(versions=versions, is_truncated=False)

    def set_default_policy_version(self, call: Call) -> Empty:
        """SetDefaultPolicyVersion."""
        entity = self._named(call)
        version = _require_version(entity, call.request.version_id)
        self._store.put(replace(entity, default_version=version, updated=call.now))
        return Empty()

    def delete_policy_version(self, call: Call) -> Empty:
        """DeletePolicyVersion."""
        entity = self._named(call)
        version = _require_version(entity, call.request.version_id)
        if version == entity.default_version:
            raise DeleteConflict("Cannot delete the default version of a policy.")
        versions = {name: text for name, text in entity.versions.items() if name != version}
        dates = {name: date for name, date in entity.version_dates.items() if name != version}
        self._store.put(replace(entity, versions=versions, version_dates=dates, updated=call.now))
        return Empty()

    def _named(self, call: Call) -> Entity:
        return self._store.policy(call.caller.account, call.request.policy_arn)


def _require_version(entity: Entity, version: str) -> str:
    if version not in entity.versions:
        raise NoSuchEntity(f"Policy {entity.arn} version {version} does not exist or is not attachable.")
    return version


class AccessKeyService:
    """CreateAccessKey to PutAccessKey, and GetUser, which like them may mean the caller himself."""

    def __init__(self, store: IamStore, rng: Rng) -> None:
        self._store = store
        self._rng = rng

    def get_user(self, call: Call) -> Shape:
        """GetUser."""
        made = shapes.USERS.one
        answer: Shape = made(
            user=as_user(self._store.find(call.caller.account, USER, self._user(call) or ""))
        )
        return answer

    def create_access_key(self, call: Call) -> shapes.AccessKeyResponse:
        """CreateAccessKey: two a user."""
        user = self._user(call)
        if len(self._store.keys_of(call.caller.account, user)) >= KEYS_PER_USER_MAX:
            raise IamLimitExceeded(f"Cannot exceed quota for AccessKeysPerUser: {KEYS_PER_USER_MAX}")
        key_id = "AKIA" + base64.b32encode(self._rng(10)).decode()
        secret = base64.b64encode(self._rng(30)).decode()
        key = AccessKey(key_id, call.caller.account, user, secret, ACTIVE, call.now)
        self._store.put_key(key)
        return shapes.AccessKeyResponse(
            access_key=shapes.AccessKey(
                user_name=user or "root",
                access_key_id=key_id,
                status=ACTIVE,
                secret_access_key=secret,
                create_date=call.now,
            )
        )

    def list_access_keys(self, call: Call) -> shapes.ListAccessKeysResponse:
        """ListAccessKeys."""
        keys = [
            shapes.AccessKeyMetadata(
                user_name=key.user or "root",
                access_key_id=key.key_id,
                status=key.status,
                create_date=key.created,
            )
            for key in self._store.keys_of(call.caller.account, self._user(call))
        ]
        return shapes.ListAccessKeysResponse(access_key_metadata=keys, is_truncated=False)

    def get_access_key_last_used(self, call: Call) -> identities.GetAccessKeyLastUsedResponse:
        """GetAccessKeyLastUsed: of an access key of this account."""
        key = self._store.access_keys.get(call.request.access_key_id)
        if key is None or key.account != call.caller.account:
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: iam:GetAccessKeyLastUsed on resource: access key {call.request.access_key_id}"
            )
        used = self._store.last_use(key)
        shown = identities.AccessKeyLastUsed(last_used_date=used.at or None, service_name=used.service or "N/A", region=used.region or "N/A")
        return identities.GetAccessKeyLastUsedResponse(user_name=key.user or "root", access_key_last_used=shown)

    def update_access_key(self, call: Call) -> Empty:
        """UpdateAccessKey."""
        self._store.put_key(replace(self._key(call), status=call.request.status))
        return Empty()

    def delete_access_key(self, call: Call) -> Empty:
        """DeleteAccessKey."""
        self._store.remove_key(self._key(call))
        return Empty()

    def put_access_key(self, call: Call) -> Empty:
        """PutAccessKey: for tools whose credentials are fixed, such as other people's test suites."""
        request: shapes.PutAccessKeyRequest = call.request
        if request.access_key_id.startswith("ASIA"):
            raise InvalidIamInput("Access key ids that begin with ASIA are those of temporary credentials.")
        account = call.caller.account
        if request.user_name is not None:
            self._store.find(account, USER, request.user_name)
        present = self._store.access_keys.get(request.access_key_id)
        if present is not None and (present.account, present.user) != (account, request.user_name):
            raise EntityAlreadyExists("This access key id belongs to somebody else.")
        key = AccessKey(
            request.access_key_id, account, request.user_name, request.secret_access_key, ACTIVE, call.now
        )
        self._store.put_key(key)
        return Empty()

    def _user(self, call: Call) -> str | None:
        """Return the user whom a request means: the named one, or the caller; None for the account root.

        Raises:
            NoSuchEntity: if there is no such user.
            InvalidIamInput: if the caller is no user.
        """
        root = call.caller.root and self._store.of_arn(call.caller.principal) is None
        if call.request.user_name is None and root and call.operation.name != "GetUser":
            return None
        return user_meant(self._store, call).name

    def _key(self, call: Call) -> AccessKey:
        key = self._store.access_keys.get(call.request.access_key_id)
        if key is None or (key.account, key.user) != (call.caller.account, self._user(call)):
            raise NoSuchEntity(f"The Access Key with id {call.request.access_key_id} cannot be found.")
        return key
