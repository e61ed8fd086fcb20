"""Operations of IAM. Those of users, groups and roles are declared from one pattern."""

from kmsfs import errors
from kmsfs.api.operation import Operation, Resource, Shape
from kmsfs.api.shapes import iam, identities
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import KmsfsError

_COMMON = (errors.AccessDenied, errors.InvalidIamInput, errors.InvalidMarker)
_FIND = (*_COMMON, errors.NoSuchEntity)
_MAKE = (*_FIND, errors.EntityAlreadyExists, errors.IamLimitExceeded, errors.MalformedIdentityPolicy)
_REMOVE = (*_FIND, errors.DeleteConflict)
_CODES = (*_MAKE, errors.InvalidAuthenticationCode)


def _declare(
    name: str, request: type[Shape], response: type[Shape], summary: str, declared: tuple[type[KmsfsError], ...],
    *, mutates: bool = True, service: str = "iam", secret: tuple[str, ...] = (),
) -> Operation:  # fmt: skip
    kept = {"tags", "policy_document", "assume_role_policy_document", "secret_access_key", "policy_input_list", "permissions_boundary_policy_input_list", "authentication_code1", "authentication_code2"}
    audit = tuple(field for field in request.__struct_fields__ if field not in kept)
    return Operation(
        name, service, f"{service}:{name}", request, response, summary, resource=Resource.IAM, mutates=mutates, audit=audit,
        secret=secret, errors=declared,
    )  # fmt: skip


def _of_kind(shapes: iam.KindShapes, plural: str) -> tuple[Operation, ...]:
    kind, low = shapes.kind, shapes.kind.lower()
    return (
        _declare(f"Create{kind}", shapes.create, shapes.one, f"Make a {low}.", _MAKE),
        _declare(f"Delete{kind}", shapes.named, Empty, f"Remove a {low} on which nothing hangs any more.", _REMOVE),
        _declare(f"List{plural}", shapes.listing, shapes.listed, f"List {low}s.", _COMMON, mutates=False),
        _declare(f"Put{kind}Policy", shapes.put_policy, Empty, f"Give a {low} a policy of its own.", _MAKE),
        _declare(f"Get{kind}Policy", shapes.named_policy, shapes.inline_policy, f"Read a {low}'s own policy.", _FIND,
                 mutates=False),
        _declare(f"List{kind}Policies", shapes.names, iam.PolicyNamesResponse, f"List a {low}'s own policies.", _FIND,
                 mutates=False),
        _declare(f"Delete{kind}Policy", shapes.named_policy, Empty, f"Remove a {low}'s own policy.", _FIND),
        _declare(f"Attach{kind}Policy", shapes.attach, Empty, f"Attach a managed policy to a {low}.", _MAKE),
        _declare(f"Detach{kind}Policy", shapes.attach, Empty, f"Detach a managed policy from a {low}.", _FIND),
        _declare(f"ListAttached{kind}Policies", shapes.attached, iam.AttachedPoliciesResponse,
                 f"List the managed policies of a {low}.", _FIND, mutates=False),
    )  # fmt: skip


def _bounded(shapes: iam.KindShapes) -> tuple[Operation, ...]:
    kind, low = shapes.kind, shapes.kind.lower()
    return (
        _declare(f"Put{kind}PermissionsBoundary", shapes.boundary, Empty, f"Limit a {low} by a managed policy.", _FIND),
        _declare(f"Delete{kind}PermissionsBoundary", shapes.named, Empty, f"Limit a {low} no more.", _FIND),
    )


def _tagged(kind: str, what: str) -> tuple[Operation, ...]:
    give, take, listing = iam.TAGGED[kind]
    return (
        _declare(f"Tag{kind}", give, Empty, f"Give {what} tags.", (*_FIND, errors.IamLimitExceeded)),
        _declare(f"Untag{kind}", take, Empty, f"Take tags from {what}.", _FIND),
        _declare(f"List{kind}Tags", listing, iam.ListIamTagsResponse, f"List the tags of {what}.", _FIND, mutates=False),
    )


IAM_OPERATIONS = (
    *_of_kind(iam.USERS, "Users"),
    *_of_kind(iam.GROUPS, "Groups"),
    *_of_kind(iam.ROLES, "Roles"),
    *_bounded(iam.USERS),
    *_bounded(iam.ROLES),
    *_tagged("User", "a user"),
    *_tagged("Role", "a role"),
    *_tagged("Policy", "a managed policy"),
    *_tagged("MFADevice", "a virtual MFA device"),
    _declare("GetUser", iam.GetUserRequest, iam.USERS.one, "Tell of a user.", _FIND, mutates=False),
    _declare("GetRole", iam.ROLES.named, iam.ROLES.one, "Tell of a role.", _FIND, mutates=False),
    _declare("GetGroup", iam.GetGroupRequest, iam.GetGroupResponse, "Tell of a group and its members.", _FIND,
             mutates=False),
    _declare("AddUserToGroup", iam.GroupUserRequest, Empty, "Let a user have a group's policies.", _MAKE),
    _declare("RemoveUserFromGroup", iam.GroupUserRequest, Empty, "Take a user out of a group.", _FIND),
    _declare("ListGroupsForUser", iam.USERS.names, iam.GROUPS.listed, "List a user's groups.", _FIND, mutates=False),
    _declare("UpdateAssumeRolePolicy", iam.UpdateAssumeRolePolicyRequest, Empty, "Say who may assume a role.", _MAKE),
    _declare("CreatePolicy", iam.CreatePolicyRequest, iam.PolicyResponse, "Make a managed policy.", _MAKE),
    _declare("GetPolicy", iam.PolicyArnRequest, iam.PolicyResponse, "Tell of a managed policy.", _FIND, mutates=False),
    _declare("ListPolicies", iam.ListPoliciesRequest, iam.ListPoliciesResponse, "List managed policies.", _COMMON,
             mutates=False),
    _declare("DeletePolicy", iam.PolicyArnRequest, Empty, "Remove a managed policy that nothing uses.", _REMOVE),
    _declare("CreatePolicyVersion", iam.CreatePolicyVersionRequest, iam.PolicyVersionResponse,
             "Give a managed policy a new version.", _MAKE),
    _declare("GetPolicyVersion", iam.GetPolicyVersionRequest, iam.PolicyVersionResponse,
             "Read a version of a managed policy.", _FIND, mutates=False),
    _declare("ListPolicyVersions", iam.PolicyArnRequest, iam.ListPolicyVersionsResponse,
             "List the versions of a managed policy.", _FIND, mutates=False),
    _declare("SetDefaultPolicyVersion", iam.GetPolicyVersionRequest, Empty, "Choose the version that counts.", _FIND),
    _declare("DeletePolicyVersion", iam.GetPolicyVersionRequest, Empty, "Remove a version that does not count.", _REMOVE),
    _declare("CreateAccessKey", iam.AccessKeyRequest, iam.AccessKeyResponse, "Make an access key; its secret is shown once.",
             _MAKE),
    _declare("ListAccessKeys", iam.ListAccessKeysRequest, iam.ListAccessKeysResponse, "List a user's access keys.", _FIND,
             mutates=False),
    _declare("UpdateAccessKey", iam.UpdateAccessKeyRequest, Empty, "Switch an access key on or off.", _FIND),
    _declare("DeleteAccessKey", iam.NamedAccessKeyRequest, Empty, "Remove an access key.", _FIND),
    _declare("CreateVirtualMFADevice", iam.CreateVirtualMfaDeviceRequest, iam.VirtualMfaDeviceResponse,
             "Make a virtual MFA device; its seed is shown once.", _MAKE),
    _declare("EnableMFADevice", iam.MfaCodesRequest, Empty, "Give a user an MFA device.", _CODES),
    _declare("ResyncMFADevice", iam.MfaCodesRequest, Empty, "Learn by how much an MFA device's clock is off.", _CODES),
    _declare("DeactivateMFADevice", iam.UserMfaDeviceRequest, Empty, "Take an MFA device from a user.", _FIND),
    _declare("DeleteVirtualMFADevice", iam.MfaDeviceRequest, Empty, "Remove a virtual MFA device that nobody has.", _REMOVE),
    _declare("ListMFADevices", iam.ListMfaDevicesRequest, iam.ListMfaDevicesResponse, "List a user's MFA devices.", _FIND,
             mutates=False),
    _declare("ListVirtualMFADevices", iam.ListVirtualMfaDevicesRequest, iam.ListVirtualMfaDevicesResponse,
             "List virtual MFA devices.", _COMMON, mutates=False),
    _declare("SimulatePrincipalPolicy", iam.SimulatePrincipalPolicyRequest, iam.SimulationResponse,
             "Tell what an entity's identity policies say.", (*_FIND, errors.MalformedIdentityPolicy), mutates=False),
    _declare("SimulateCustomPolicy", identities.SimulateCustomPolicyRequest, iam.SimulationResponse,
             "Tell what given policies say.", (*_COMMON, errors.MalformedIdentityPolicy, errors.IamLimitExceeded), mutates=False),
    _declare("UpdateUser", identities.UpdateUserRequest, Empty, "Give a user another name or path.",
             (*_FIND, errors.EntityAlreadyExists, errors.LimitExceeded)),
    _declare("UpdateGroup", identities.UpdateGroupRequest, Empty, "Give a group another name or path.",
             (*_FIND, errors.EntityAlreadyExists)),
    _declare("UpdateRole", identities.UpdateRoleRequest, Empty, "Change a role's description or how long its sessions last.", _FIND),
    _declare("UpdateRoleDescription", identities.UpdateRoleDescriptionRequest, iam.ROLES.one,
             "Change a role's description.", _FIND),
    _declare("ListEntitiesForPolicy", identities.ListEntitiesForPolicyRequest, identities.ListEntitiesForPolicyResponse,
             "List who has a managed policy.", _FIND, mutates=False),
    _declare("GetAccessKeyLastUsed", identities.GetAccessKeyLastUsedRequest, identities.GetAccessKeyLastUsedResponse,
             "Tell when an access key was last used.", _FIND, mutates=False),
    _declare("GetMFADevice", identities.GetMfaDeviceRequest, identities.GetMfaDeviceResponse, "Tell of an MFA device.", _FIND,
             mutates=False),
    _declare("GetAccountSummary", Empty, identities.GetAccountSummaryResponse,
             "Count the account's identities.", _COMMON, mutates=False),
    _declare("GetAccountAuthorizationDetails", identities.GetAccountAuthorizationDetailsRequest,
             identities.GetAccountAuthorizationDetailsResponse, "Tell of everybody with what he may do.", _COMMON, mutates=False),
    _declare("ListInstanceProfilesForRole", iam.ROLES.names, identities.InstanceProfilesResponse,
             "List a role's instance profiles: there are none here.", _FIND, mutates=False),
    _declare("ListInstanceProfiles", identities.InPathRequest, identities.InstanceProfilesResponse,
             "List instance profiles: there are none here.", _COMMON, mutates=False),
    _declare("ListSSHPublicKeys", iam.ListAccessKeysRequest, identities.SshPublicKeysResponse,
             "List a user's SSH keys: there are none here.", _FIND, mutates=False),
    _declare("ListSigningCertificates", iam.ListAccessKeysRequest, identities.SigningCertificatesResponse,
             "List a user's certificates: there are none here.", _FIND, mutates=False),
    _declare("ListServiceSpecificCredentials", identities.ServiceCredentialsRequest, identities.ServiceCredentialsResponse,
             "List a user's credentials of single services: there are none here.", _FIND, mutates=False),
    _declare("ListAccountAliases", identities.PageRequest, identities.AccountAliasesResponse,
             "List the account's aliases: there are none here.", _COMMON, mutates=False),
    _declare("GetLoginProfile", iam.GetUserRequest, identities.LoginProfileResponse,
             "Tell of a user's password for AWS's console: nobody has one here.", _FIND, mutates=False),
    _declare("PutAccessKey", iam.PutAccessKeyRequest, Empty,
             "Let an access key whose secret is known elsewhere stand for a user or the account root.", _MAKE,
             service="kmsfs", secret=("SecretAccessKey",)),
)  # fmt: skip
