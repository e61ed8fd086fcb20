"""Shapes of IAM's operations that change, look over and try out identities (AWS IAM API reference, 2010-05-08; bounds: botocore iam)."""

from typing import Annotated, Literal

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Seconds
from kmsfs.api.shapes.iam import (
    AccessKeyIdText,
    ActionNames,
    ArnText,
    AttachedBoundary,
    AttachedPolicy,
    ContextEntry,
    EntityName,
    EntityPath,
    IamMarker,
    MaxItems,
    PolicyDocument,
    PolicyVersion,
    SerialNumber,
    Tag,
)

RoleDescription = Annotated[str, Meta(max_length=1000)]


class UpdateUserRequest(Shape, kw_only=True):
    """A user's new name or path."""

    user_name: EntityName
    new_path: EntityPath | None = None
    new_user_name: EntityName | None = None


class UpdateGroupRequest(Shape, kw_only=True):
    """A group's new name or path."""

    group_name: EntityName
    new_path: EntityPath | None = None
    new_group_name: EntityName | None = None


class UpdateRoleRequest(Shape, kw_only=True):
    """A role's description, and how long its sessions last at most, in seconds."""

    role_name: EntityName
    description: RoleDescription | None = None
    max_session_duration: Annotated[int, Meta(ge=3600, le=43_200)] | None = None


class UpdateRoleDescriptionRequest(Shape, kw_only=True):
    """A role's description."""

    role_name: EntityName
    description: RoleDescription


class ListEntitiesForPolicyRequest(Shape, kw_only=True):
    """A managed policy, and which of those that have it."""

    policy_arn: ArnText
    entity_filter: Literal["User", "Role", "Group", "LocalManagedPolicy", "AWSManagedPolicy"] | None = None
    path_prefix: str = "/"
    policy_usage_filter: Literal["PermissionsPolicy", "PermissionsBoundary"] | None = None
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class PolicyGroup(Shape, kw_only=True):
    """A group that has a policy."""

    group_name: str
    group_id: str


class PolicyUser(Shape, kw_only=True):
    """A user who has a policy."""

    user_name: str
    user_id: str


class PolicyRole(Shape, kw_only=True):
    """A role that has a policy."""

    role_name: str
    role_id: str


class ListEntitiesForPolicyResponse(Shape, kw_only=True):
    """A page of those who have a policy."""

    policy_groups: list[PolicyGroup]
    policy_users: list[PolicyUser]
    policy_roles: list[PolicyRole]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class GetAccessKeyLastUsedRequest(Shape, kw_only=True):
    """Which access key."""

    access_key_id: AccessKeyIdText


class AccessKeyLastUsed(Shape, kw_only=True):
    """When and for what an access key was last used; no date and N/A if never."""

    last_used_date: Seconds | None = None
    service_name: str
    region: str


class GetAccessKeyLastUsedResponse(Shape, kw_only=True):
    """An access key's last use, and whose it is."""

    user_name: str
    access_key_last_used: AccessKeyLastUsed


class GetAccountSummaryResponse(Shape, kw_only=True):
    """How much there is of everything, and how much there may be."""

    summary_map: dict[str, int]


class GetMfaDeviceRequest(Shape, kw_only=True):
    """A device, and whose it is thought to be."""

    serial_number: SerialNumber
    user_name: EntityName | None = None


class GetMfaDeviceResponse(Shape, kw_only=True):
    """A device."""

    user_name: str | None = None
    serial_number: str
    enable_date: Seconds | None = None


class SimulateCustomPolicyRequest(Shape, kw_only=True):
    """What somebody might do who had some policies."""

    policy_input_list: Annotated[list[PolicyDocument], Meta(min_length=1)]
    permissions_boundary_policy_input_list: Annotated[list[PolicyDocument], Meta(max_length=1)] = []
    action_names: ActionNames
    resource_arns: Annotated[list[str], Meta(max_length=100)] = []
    context_entries: list[ContextEntry] = []
    marker: IamMarker | None = None
    max_items: MaxItems = 1000


class PolicyDetail(Shape, kw_only=True):
    """A policy of an entity's own."""

    policy_name: str
    policy_document: str


class UserDetail(Shape, kw_only=True):
    """A user with what he may do."""

    path: str
    user_name: str
    user_id: str
    arn: str
    create_date: Seconds
    user_policy_list: list[PolicyDetail]
    group_list: list[str]
    attached_managed_policies: list[AttachedPolicy]
    permissions_boundary: AttachedBoundary | None = None
    tags: list[Tag] | None = None


class GroupDetail(Shape, kw_only=True):
    """A group with what it lets its members do."""

    path: str
    group_name: str
    group_id: str
    arn: str
    create_date: Seconds
    group_policy_list: list[PolicyDetail]
    attached_managed_policies: list[AttachedPolicy]


class RoleDetail(Shape, kw_only=True):
    """A role with what it may do, and who may assume it."""

    path: str
    role_name: str
    role_id: str
    arn: str
    create_date: Seconds
    assume_role_policy_document: str
    instance_profile_list: list[str]
    role_policy_list: list[PolicyDetail]
    attached_managed_policies: list[AttachedPolicy]
    permissions_boundary: AttachedBoundary | None = None
    tags: list[Tag] | None = None


class ManagedPolicyDetail(Shape, kw_only=True):
    """A managed policy with all its versions."""

    policy_name: str
    policy_id: str
    arn: str
    path: str
    default_version_id: str
    attachment_count: int
    permissions_boundary_usage_count: int
    is_attachable: bool
    description: str | None = None
    create_date: Seconds
    update_date: Seconds
    policy_version_list: list[PolicyVersion]


class GetAccountAuthorizationDetailsRequest(Shape, kw_only=True):
    """Of which kinds."""

    filter: list[Literal["User", "Role", "Group", "LocalManagedPolicy", "AWSManagedPolicy"]] = []
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class GetAccountAuthorizationDetailsResponse(Shape, kw_only=True):
    """A page of everybody with what they may do."""

    user_detail_list: list[UserDetail]
    group_detail_list: list[GroupDetail]
    role_detail_list: list[RoleDetail]
    policies: list[ManagedPolicyDetail]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class ServiceCredentialsRequest(Shape, kw_only=True):
    """Whose, and of which service."""

    user_name: EntityName | None = None
    service_name: str | None = None
    all_users: bool | None = None
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class InPathRequest(Shape, kw_only=True):
    """Those below a path."""

    path_prefix: str = "/"
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class PageRequest(Shape, kw_only=True):
    """A page."""

    marker: IamMarker | None = None
    max_items: MaxItems = 100


class InstanceProfilesResponse(Shape, kw_only=True):
    """There are no instance profiles here."""

    instance_profiles: list[str]
    is_truncated: bool = field(name="IsTruncated")


class SshPublicKeysResponse(Shape, kw_only=True):
    """There are no SSH keys of users here."""

    ssh_public_keys: list[str] = field(name="SSHPublicKeys")
    is_truncated: bool = field(name="IsTruncated")


class SigningCertificatesResponse(Shape, kw_only=True):
    """There are no signing certificates here."""

    certificates: list[str]
    is_truncated: bool = field(name="IsTruncated")


class ServiceCredentialsResponse(Shape, kw_only=True):
    """There are no credentials of single services here."""

    service_specific_credentials: list[str]


class AccountAliasesResponse(Shape, kw_only=True):
    """Accounts have no aliases here."""

    account_aliases: list[str]
    is_truncated: bool = field(name="IsTruncated")


class LoginProfile(Shape, kw_only=True):
    """A password for the console of AWS's, which is not here."""

    user_name: str
    create_date: Seconds
    password_reset_required: bool = False


class LoginProfileResponse(Shape, kw_only=True):
    """Never given: nobody has one."""

    login_profile: LoginProfile
