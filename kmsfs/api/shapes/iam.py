"""Shapes of IAM's operations (AWS IAM API reference, 2010-05-08; bounds: botocore iam).

Users, groups and roles have the same operations under three names, so their shapes are made from one pattern: each
`KindShapes` holds those of one kind, with its own field for the name.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Seconds

EntityName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\w+=,.@-]+$")]
EntityPath = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^(\u002F)|(\u002F[\u0021-\u007E]+\u002F)$")]
PolicyDocument = Annotated[str, Meta(min_length=1, max_length=131072)]
ArnText = Annotated[str, Meta(min_length=20, max_length=2048)]
AccessKeyIdText = Annotated[str, Meta(min_length=16, max_length=128, pattern=r"^[\w]+$")]
MaxItems = Annotated[int, Meta(ge=1, le=1000)]
IamMarker = Annotated[str, Meta(min_length=1, max_length=1024)]
TagKey = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\w\s.:/=+@-]+$")]


class Tag(Shape, kw_only=True):
    """A tag of an entity."""

    key: TagKey
    value: Annotated[str, Meta(max_length=256, pattern=r"^[\w\s.:/=+@-]*$")]


Tags = Annotated[list[Tag], Meta(max_length=50)]


class AttachedBoundary(Shape, kw_only=True):
    """The policy that limits a user or role."""

    permissions_boundary_type: str = "PermissionsBoundaryPolicy"
    permissions_boundary_arn: str


class User(Shape, kw_only=True):
    """A user."""

    path: str
    user_name: str
    user_id: str
    arn: str
    create_date: Seconds
    permissions_boundary: AttachedBoundary | None = None
    tags: list[Tag] | None = None


class Group(Shape, kw_only=True):
    """A group."""

    path: str
    group_name: str
    group_id: str
    arn: str
    create_date: Seconds


class Role(Shape, kw_only=True):
    """A role; its trust policy says who may assume it."""

    path: str
    role_name: str
    role_id: str
    arn: str
    create_date: Seconds
    assume_role_policy_document: str
    description: str | None = None
    max_session_duration: int = 3600
    permissions_boundary: AttachedBoundary | None = None
    tags: list[Tag] | None = None


class Policy(Shape, kw_only=True):
    """A managed policy."""

    policy_name: str
    policy_id: str
    arn: str
    path: str
    default_version_id: str
    attachment_count: int
    is_attachable: bool
    description: str | None = None
    create_date: Seconds
    update_date: Seconds
    tags: list[Tag] | None = None


class AttachedPolicy(Shape, kw_only=True):
    """A managed policy that is attached to something."""

    policy_name: str
    policy_arn: str


class AttachedPoliciesResponse(Shape, kw_only=True):
    """A page of attached policies."""

    attached_policies: list[AttachedPolicy]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class PolicyNamesResponse(Shape, kw_only=True):
    """A page of names of inline policies."""

    policy_names: list[str]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


@dataclass(frozen=True, slots=True)
class KindShapes:
    """The shapes of one kind of entity: `kind` is User, Group or Role."""

    kind: str
    named: type[Shape]
    create: type[Shape]
    one: type[Shape]
    listing: type[Shape]
    listed: type[Shape]
    put_policy: type[Shape]
    named_policy: type[Shape]
    inline_policy: type[Shape]
    names: type[Shape]
    attach: type[Shape]
    attached: type[Shape]
    boundary: type[Shape]


def _shape(name: str, doc: str, **fields: Any) -> type[Shape]:
    """Return a shape class; a field is a type, or (type, default)."""
    listed = [(key, *value) if isinstance(value, tuple) else (key, value) for key, value in fields.items()]
    made = msgspec.defstruct(
        name, listed, bases=(Shape,), module=__name__, kw_only=True, rename="pascal", forbid_unknown_fields=True,
        omit_defaults=True, namespace={"__doc__": doc},
    )  # fmt: skip
    return cast("type[Shape]", made)


def _of_kind(kind: str, entity: type[Shape], plural: str, **creation: Any) -> KindShapes:
    name = f"{kind.lower()}_name"
    page = {"path_prefix": (str, "/"), "marker": (IamMarker | None, None), "max_items": (MaxItems, 100)}
    doc = f"A {kind.lower()}."
    return KindShapes(
        kind,
        _shape(f"{kind}NameRequest", doc, **{name: EntityName}),
        _shape(f"Create{kind}Request", doc, **{name: EntityName}, path=(EntityPath, "/"), **creation),
        _shape(f"{kind}Response", doc, **{kind.lower(): entity}),
        _shape(f"List{plural}Request", doc, **page),
        _shape(
            f"List{plural}Response", doc, **{plural.lower(): list[entity]}, is_truncated=bool,  # type: ignore[valid-type]
            marker=(str | None, None),
        ),
        _shape(f"Put{kind}PolicyRequest", doc, **{name: EntityName}, policy_name=EntityName, policy_document=PolicyDocument),
        _shape(f"{kind}PolicyRequest", doc, **{name: EntityName}, policy_name=EntityName),
        _shape(f"{kind}PolicyResponse", doc, **{name: str}, policy_name=str, policy_document=str),
        _shape(
            f"List{kind}PoliciesRequest", doc, **{name: EntityName}, marker=(IamMarker | None, None), max_items=(MaxItems, 100)
        ),
        _shape(f"Attach{kind}PolicyRequest", doc, **{name: EntityName}, policy_arn=ArnText),
        _shape(
            f"ListAttached{kind}PoliciesRequest", doc, **{name: EntityName}, path_prefix=(str, "/"),
            marker=(IamMarker | None, None), max_items=(MaxItems, 100),
        ),
        _shape(f"Put{kind}PermissionsBoundaryRequest", doc, **{name: EntityName}, permissions_boundary=ArnText),
    )  # fmt: skip


_BOUNDED: dict[str, Any] = {"permissions_boundary": (ArnText | None, None), "tags": (Tags, [])}
USERS = _of_kind("User", User, "Users", **_BOUNDED)
GROUPS = _of_kind("Group", Group, "Groups")
ROLES = _of_kind(
    "Role", Role, "Roles", assume_role_policy_document=PolicyDocument,
    description=(Annotated[str, Meta(max_length=1000)] | None, None),
    max_session_duration=(Annotated[int, Meta(ge=3600, le=43_200)], 3600), **_BOUNDED,
)  # fmt: skip


class GetUserRequest(Shape, kw_only=True):
    """A user, or the one who asks."""

    user_name: EntityName | None = None


class GroupUserRequest(Shape, kw_only=True):
    """A group and a user."""

    group_name: EntityName
    user_name: EntityName


class GetGroupRequest(Shape, kw_only=True):
    """A group, with its members."""

    group_name: EntityName
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class GetGroupResponse(Shape, kw_only=True):
    """A group and its members."""

    group: Group
    users: list[User]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class UpdateAssumeRolePolicyRequest(Shape, kw_only=True):
    """A role's new trust policy."""

    role_name: EntityName
    policy_document: PolicyDocument


class CreatePolicyRequest(Shape, kw_only=True):
    """A managed policy."""

    policy_name: EntityName
    path: EntityPath = "/"
    policy_document: PolicyDocument
    description: Annotated[str, Meta(max_length=1000)] | None = None
    tags: Tags = []


class PolicyResponse(Shape, kw_only=True):
    """A managed policy."""

    policy: Policy


class PolicyArnRequest(Shape, kw_only=True):
    """Which managed policy."""

    policy_arn: ArnText


class ListPoliciesRequest(Shape, kw_only=True):
    """Managed policies."""

    scope: Literal["All", "AWS", "Local"] = "All"
    only_attached: bool = False
    path_prefix: str = "/"
    policy_usage_filter: Literal["PermissionsPolicy", "PermissionsBoundary"] | None = None
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class ListPoliciesResponse(Shape, kw_only=True):
    """A page of managed policies."""

    policies: list[Policy]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class GetPolicyVersionRequest(Shape, kw_only=True):
    """A version of a managed policy."""

    policy_arn: ArnText
    version_id: Annotated[str, Meta(pattern=r"^v[1-9][0-9]*(\.[A-Za-z0-9-]*)?$")]


class CreatePolicyVersionRequest(Shape, kw_only=True):
    """A new version of a managed policy."""

    policy_arn: ArnText
    policy_document: PolicyDocument
    set_as_default: bool = False


class PolicyVersion(Shape, kw_only=True):
    """A version of a managed policy."""

    document: str | None = None
    version_id: str
    is_default_version: bool = field(name="IsDefaultVersion")
    create_date: Seconds


class PolicyVersionResponse(Shape, kw_only=True):
    """A version of a managed policy."""

    policy_version: PolicyVersion


class ListPolicyVersionsResponse(Shape, kw_only=True):
    """All versions of a managed policy."""

    versions: list[PolicyVersion]
    is_truncated: bool = field(name="IsTruncated")


class AccessKeyRequest(Shape, kw_only=True):
    """An access key of a user, or of the one who asks."""

    user_name: EntityName | None = None


class AccessKey(Shape, kw_only=True):
    """A new access key: its secret is shown this once."""

    user_name: str
    access_key_id: str
    status: str
    secret_access_key: str
    create_date: Seconds


class AccessKeyResponse(Shape, kw_only=True):
    """A new access key."""

    access_key: AccessKey


class AccessKeyMetadata(Shape, kw_only=True):
    """An access key without its secret."""

    user_name: str
    access_key_id: str
    status: str
    create_date: Seconds


class ListAccessKeysRequest(Shape, kw_only=True):
    """Whose access keys."""

    user_name: EntityName | None = None
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class ListAccessKeysResponse(Shape, kw_only=True):
    """A user's access keys."""

    access_key_metadata: list[AccessKeyMetadata]
    is_truncated: bool = field(name="IsTruncated")


class NamedAccessKeyRequest(Shape, kw_only=True):
    """One access key."""

    user_name: EntityName | None = None
    access_key_id: AccessKeyIdText


class UpdateAccessKeyRequest(Shape, kw_only=True):
    """Switch an access key on or off."""

    user_name: EntityName | None = None
    access_key_id: AccessKeyIdText
    status: Literal["Active", "Inactive"]


class PutAccessKeyRequest(Shape, kw_only=True):
    """An access key with a secret that is given: of a user, or of the account root."""

    user_name: EntityName | None = None
    access_key_id: Annotated[str, Meta(min_length=4, max_length=128, pattern=r"^[A-Za-z0-9]+$")]
    secret_access_key: Annotated[str, Meta(min_length=4, max_length=256)]


SerialNumber = Annotated[str, Meta(min_length=9, max_length=256, pattern=r"^[\w+=/:,.@-]+$")]
MfaCode = Annotated[str, Meta(min_length=6, max_length=6, pattern=r"^[0-9]+$")]


class CreateVirtualMfaDeviceRequest(Shape, kw_only=True):
    """A new virtual MFA device."""

    path: EntityPath = "/"
    virtual_mfa_device_name: Annotated[str, Meta(min_length=1, max_length=226, pattern=r"^[\w+=,.@-]+$")] = field(
        name="VirtualMFADeviceName"
    )
    tags: Tags = []


class VirtualMfaDevice(Shape, kw_only=True):
    """A virtual MFA device; its seed is shown once, as base32 text in bytes, and as a picture for authenticators to look at."""

    serial_number: str
    base32_string_seed: bytes | None = field(name="Base32StringSeed", default=None)
    qr_code_png: bytes | None = field(name="QRCodePNG", default=None)
    user: User | None = None
    enable_date: Seconds | None = None
    tags: list[Tag] | None = None


class VirtualMfaDeviceResponse(Shape, kw_only=True):
    """A new virtual MFA device."""

    virtual_mfa_device: VirtualMfaDevice = field(name="VirtualMFADevice")


class MfaCodesRequest(Shape, kw_only=True):
    """A user, a device, and two codes that it shows one after the other."""

    user_name: EntityName
    serial_number: SerialNumber
    authentication_code1: MfaCode = field(name="AuthenticationCode1")
    authentication_code2: MfaCode = field(name="AuthenticationCode2")


class UserMfaDeviceRequest(Shape, kw_only=True):
    """A user, or the one who asks, and a device."""

    user_name: EntityName | None = None
    serial_number: SerialNumber


class MfaDeviceRequest(Shape, kw_only=True):
    """A device."""

    serial_number: SerialNumber


class MfaDevice(Shape, kw_only=True):
    """A user's device."""

    user_name: str
    serial_number: str
    enable_date: Seconds


class ListMfaDevicesRequest(Shape, kw_only=True):
    """Whose devices."""

    user_name: EntityName | None = None
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class ListMfaDevicesResponse(Shape, kw_only=True):
    """A page of a user's devices."""

    mfa_devices: list[MfaDevice] = field(name="MFADevices")
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class ListVirtualMfaDevicesRequest(Shape, kw_only=True):
    """Which devices."""

    assignment_status: Literal["Assigned", "Unassigned", "Any"] = "Any"
    marker: IamMarker | None = None
    max_items: MaxItems = 100


class ListVirtualMfaDevicesResponse(Shape, kw_only=True):
    """A page of devices."""

    virtual_mfa_devices: list[VirtualMfaDevice] = field(name="VirtualMFADevices")
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


class ContextEntry(Shape, kw_only=True):
    """A condition key of the simulated request."""

    context_key_name: Annotated[str, Meta(min_length=5, max_length=256)] | None = None
    context_key_values: list[str] = []
    context_key_type: (
        Literal["string", "stringList", "numeric", "numericList", "boolean", "booleanList", "ip", "ipList", "binary", "binaryList", "date", "dateList"]
        | None
    ) = None


ActionNames = Annotated[list[Annotated[str, Meta(min_length=3, max_length=128)]], Meta(min_length=1, max_length=100)]


class SimulatePrincipalPolicyRequest(Shape, kw_only=True):
    """What an entity might do."""

    policy_source_arn: ArnText
    action_names: ActionNames
    resource_arns: Annotated[list[str], Meta(max_length=100)] = []
    policy_input_list: list[PolicyDocument] = []
    context_entries: list[ContextEntry] = []
    marker: IamMarker | None = None
    max_items: MaxItems = 1000


class EvaluationResult(Shape, kw_only=True):
    """What the evaluator says of one action on one resource."""

    eval_action_name: str
    eval_resource_name: str
    eval_decision: str


class SimulationResponse(Shape, kw_only=True):
    """What the evaluator says."""

    evaluation_results: list[EvaluationResult]
    is_truncated: bool = field(name="IsTruncated")


TagKeys = Annotated[list[TagKey], Meta(max_length=50)]


class ListIamTagsResponse(Shape, kw_only=True):
    """A page of tags."""

    tags: list[Tag]
    is_truncated: bool = field(name="IsTruncated")
    marker: str | None = None


def _tagging(kind: str, **named: Any) -> tuple[type[Shape], type[Shape], type[Shape]]:
    """Return the requests that give, take and list the tags of a kind."""
    page = {"marker": (IamMarker | None, None), "max_items": (MaxItems, 100)}
    return (
        _shape(f"Tag{kind}Request", "Whose tags, and which.", **named, tags=Tags),
        _shape(f"Untag{kind}Request", "Whose tags, and which.", **named, tag_keys=TagKeys),
        _shape(f"List{kind}TagsRequest", "Whose tags.", **named, **page),
    )


TAGGED = {
    "User": _tagging("User", user_name=EntityName), "Role": _tagging("Role", role_name=EntityName),
    "Policy": _tagging("Policy", policy_arn=ArnText), "MFADevice": _tagging("MFADevice", serial_number=SerialNumber),
}  # fmt: skip
"""Requests by kind: those that give, take and list tags."""
