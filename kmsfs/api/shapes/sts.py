"""Shapes of the Security Token Service (AWS STS API reference, 2011-06-15)."""

from typing import Annotated

from msgspec import Meta, field

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.iam import Tags

SESSION_SECONDS = 43_200


class CallerIdentity(Shape, kw_only=True):
    """Who calls: `user_id` is the local user's number."""

    user_id: str
    account: str
    arn: str


SerialNumber = Annotated[str, Meta(min_length=9, max_length=256, pattern=r"^[\w+=/:,.@-]*$")]
TokenCode = Annotated[str, Meta(min_length=6, max_length=6, pattern=r"^[\d]*$")]


class GetSessionTokenRequest(Shape, kw_only=True):
    """How long the credentials shall work, in seconds: 900 to 129,600; and what an MFA device shows."""

    duration_seconds: Annotated[int, Meta(ge=900, le=129_600)] = SESSION_SECONDS
    serial_number: SerialNumber | None = None
    token_code: TokenCode | None = None


class Credentials(Shape, kw_only=True):
    """Temporary credentials for AWS's signature; `expiration` in seconds since the epoch."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    expiration: float


class PolicyDescriptor(Shape, kw_only=True):
    """A managed policy as a session policy."""

    arn: Annotated[str, Meta(min_length=20, max_length=2048)] = field(name="arn")


class AssumeRoleRequest(Shape, kw_only=True):
    """A role, a name for the session, and policies that limit it."""

    role_arn: Annotated[str, Meta(min_length=20, max_length=2048)]
    role_session_name: Annotated[str, Meta(min_length=2, max_length=64, pattern=r"^[\w+=,.@-]*$")]
    policy: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    policy_arns: Annotated[list[PolicyDescriptor], Meta(max_length=10)] = []
    duration_seconds: Annotated[int, Meta(ge=900, le=43_200)] = 3600
    external_id: Annotated[str, Meta(min_length=2, max_length=1224)] | None = None
    tags: Tags = []
    transitive_tag_keys: Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=50)] = []
    """Those of the tags that roles which this session assumes get as well."""
    serial_number: SerialNumber | None = None
    token_code: TokenCode | None = None


class AssumedRoleUser(Shape, kw_only=True):
    """The session of a role."""

    assumed_role_id: str
    arn: str


class AssumeRoleResponse(Shape, kw_only=True):
    """Credentials of the session."""

    credentials: Credentials
    assumed_role_user: AssumedRoleUser


class AccessKeyInfoRequest(Shape, kw_only=True):
    """An access key id."""

    access_key_id: Annotated[str, Meta(min_length=16, max_length=128, pattern=r"^[\w]*$")]


class AccessKeyInfoResponse(Shape, kw_only=True):
    """Whose account it is."""

    account: str


class GetSessionTokenResponse(Shape, kw_only=True):
    """New credentials."""

    credentials: Credentials
