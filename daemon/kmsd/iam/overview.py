"""What there is of identities, looked over: who has a policy, everybody with what he may do, and what there is none of here."""

from collections.abc import Callable, Iterator
from typing import Any

from kmsd.dispatch.call import Call, Handler
from kmsd.iam.entities import PER_KIND_MAX
from kmsd.iam.pages import as_version, attached_of, boundary_of, page, tags_of, user_meant
from kmsd.iam.policies import KEYS_PER_USER_MAX, VERSIONS_MAX
from kmsd.iam.records import GROUP, POLICY, ROLE, USER, Entity
from kmsd.iam.store import IamStore
from kmsfs.api.operation import Shape
from kmsfs.api.shapes import identities as shapes
from kmsfs.errors import NoSuchEntity

_PERMISSIONS, _BOUNDARY = "PermissionsPolicy", "PermissionsBoundary"
_KINDS = {"User": USER, "Group": GROUP, "Role": ROLE, "LocalManagedPolicy": POLICY}
"""What a filter names; of AWS's own policies there are none."""


class OverviewService:
    """ListEntitiesForPolicy, GetAccountSummary, GetAccountAuthorizationDetails, and lists that are always empty."""

    def __init__(self, store: IamStore) -> None:
        self._store = store

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by their operations' names."""
        return {
            "ListEntitiesForPolicy": self.entities_for_policy,
            "GetAccountSummary": self.summary,
            "GetAccountAuthorizationDetails": self.details,
            "ListInstanceProfilesForRole": self.instance_profiles,
            "ListInstanceProfiles": lambda _call: shapes.InstanceProfilesResponse(instance_profiles=[], is_truncated=False),
            "ListAccountAliases": lambda _call: shapes.AccountAliasesResponse(account_aliases=[], is_truncated=False),
            "ListSSHPublicKeys": self._of_user(lambda: shapes.SshPublicKeysResponse(ssh_public_keys=[], is_truncated=False)),
            "ListSigningCertificates": self._of_user(lambda: shapes.SigningCertificatesResponse(certificates=[], is_truncated=False)),
            "ListServiceSpecificCredentials": self._of_user(lambda: shapes.ServiceCredentialsResponse(service_specific_credentials=[])),
            "GetLoginProfile": self.login_profile,
        }

    # --- who has a policy -------------------------------------------------------------------------------------

    def entities_for_policy(self, call: Call) -> shapes.ListEntitiesForPolicyResponse:
        """ListEntitiesForPolicy."""
        request: shapes.ListEntitiesForPolicyRequest = call.request
        arn = self._store.policy(call.caller.account, request.policy_arn).arn
        kind = None if request.entity_filter is None else _KINDS.get(request.entity_filter, "")
        usage = request.policy_usage_filter
        chosen = [
            entity
            for entity in self._store.users_of(arn)
            if kind in (None, entity.kind) and entity.path.startswith(request.path_prefix)
            and ((usage != _BOUNDARY and arn in entity.attached) or (usage != _PERMISSIONS and arn == entity.boundary))
        ]  # fmt: skip
        found, more = page(chosen, _place, request)
        return shapes.ListEntitiesForPolicyResponse(
            policy_groups=[shapes.PolicyGroup(group_name=e.name, group_id=e.entity_id) for e in found if e.kind == GROUP],
            policy_users=[shapes.PolicyUser(user_name=e.name, user_id=e.entity_id) for e in found if e.kind == USER],
            policy_roles=[shapes.PolicyRole(role_name=e.name, role_id=e.entity_id) for e in found if e.kind == ROLE],
            **more,
        )

    # --- everybody --------------------------------------------------------------------------------------------

    def summary(self, call: Call) -> shapes.GetAccountSummaryResponse:
        """GetAccountSummary: what there is here, under AWS's names."""
        account = call.caller.account
        users, groups, roles, policies = (self._store.all_of(account, kind) for kind in (USER, GROUP, ROLE, POLICY))
        devices = [device for device in self._store.mfa_devices.values() if device.account == account]
        return shapes.GetAccountSummaryResponse(
            summary_map={
                "Users": len(users), "UsersQuota": PER_KIND_MAX, "Groups": len(groups), "GroupsQuota": PER_KIND_MAX,
                "Roles": len(roles), "RolesQuota": PER_KIND_MAX, "Policies": len(policies),
                "PolicyVersionsInUse": sum(len(policy.versions) for policy in policies), "VersionsPerPolicyQuota": VERSIONS_MAX,
                "MFADevices": len(devices), "MFADevicesInUse": sum(device.user is not None for device in devices),
                "AccessKeysPerUserQuota": KEYS_PER_USER_MAX, "AccountAccessKeysPresent": int(bool(self._store.keys_of(account, None))),
                "AccountMFAEnabled": 0, "AccountSigningCertificatesPresent": 0, "ServerCertificates": 0, "InstanceProfiles": 0, "Providers": 0,
            }
        )  # fmt: skip

    def details(self, call: Call) -> shapes.GetAccountAuthorizationDetailsResponse:
        """GetAccountAuthorizationDetails."""
        request: shapes.GetAccountAuthorizationDetailsRequest = call.request
        kinds = {_KINDS.get(name, "") for name in request.filter} or set(_KINDS.values())
        chosen = [entity for kind in sorted(kinds) for entity in self._store.all_of(call.caller.account, kind)]
        found, more = page(chosen, _place, request)
        of_kind: Callable[[str], Iterator[Entity]] = lambda kind: (entity for entity in found if entity.kind == kind)  # noqa: E731
        return shapes.GetAccountAuthorizationDetailsResponse(
            user_detail_list=[self._user(entity) for entity in of_kind(USER)],
            group_detail_list=[self._group(entity) for entity in of_kind(GROUP)],
            role_detail_list=[self._role(entity) for entity in of_kind(ROLE)],
            policies=[self._policy(entity) for entity in of_kind(POLICY)],
            **more,
        )

    def _user(self, entity: Entity) -> shapes.UserDetail:
        return shapes.UserDetail(
            user_name=entity.name, user_id=entity.entity_id, user_policy_list=_own(entity), group_list=list(entity.groups),
            permissions_boundary=boundary_of(entity), tags=tags_of(entity), **self._common(entity),
        )  # fmt: skip

    def _group(self, entity: Entity) -> shapes.GroupDetail:
        return shapes.GroupDetail(
            group_name=entity.name, group_id=entity.entity_id, group_policy_list=_own(entity), **self._common(entity)
        )

    def _role(self, entity: Entity) -> shapes.RoleDetail:
        return shapes.RoleDetail(
            role_name=entity.name, role_id=entity.entity_id, assume_role_policy_document=entity.trust, instance_profile_list=[],
            role_policy_list=_own(entity), permissions_boundary=boundary_of(entity), tags=tags_of(entity), **self._common(entity),
        )  # fmt: skip

    def _common(self, entity: Entity) -> dict[str, Any]:
        return {
            "path": entity.path, "arn": entity.arn, "create_date": entity.created, "attached_managed_policies": attached_of(self._store, entity),
        }  # fmt: skip

    def _policy(self, entity: Entity) -> shapes.ManagedPolicyDetail:
        users = list(self._store.users_of(entity.arn))
        return shapes.ManagedPolicyDetail(
            policy_name=entity.name, policy_id=entity.entity_id, arn=entity.arn, path=entity.path, default_version_id=entity.default_version,
            attachment_count=sum(entity.arn in user.attached for user in users),
            permissions_boundary_usage_count=sum(entity.arn == user.boundary for user in users), is_attachable=True,
            description=entity.description, create_date=entity.created, update_date=entity.updated,
            policy_version_list=[as_version(entity, version, whole=True) for version in reversed(entity.versions)],
        )  # fmt: skip

    # --- what there is none of ----------------------------------------------------------------------------------

    def instance_profiles(self, call: Call) -> shapes.InstanceProfilesResponse:
        """ListInstanceProfilesForRole: tools ask before they remove a role."""
        self._store.find(call.caller.account, ROLE, call.request.role_name)
        return shapes.InstanceProfilesResponse(instance_profiles=[], is_truncated=False)

    def login_profile(self, call: Call) -> Shape:
        """GetLoginProfile: nobody has a password for AWS's console here."""
        user = user_meant(self._store, call)
        raise NoSuchEntity(f"Login Profile for User {user.name} cannot be found.")

    def _of_user(self, make: Callable[[], Shape]) -> Handler:
        """Return a handler that finds nothing of a user's, whom tools want to remove."""

        def handler(call: Call) -> Shape:
            """Look for the user alone."""
            if call.request.user_name is not None or not call.caller.root:
                user_meant(self._store, call)
            return make()

        return handler


def _place(entity: Entity) -> str:
    return f"{entity.kind}/{entity.name}"


def _own(entity: Entity) -> list[shapes.PolicyDetail]:
    return [shapes.PolicyDetail(policy_name=name, policy_document=text) for name, text in entity.inline.items()]
