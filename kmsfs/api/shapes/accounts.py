"""Shapes of accounts (AWS Organizations API reference, 2016-11-28; bounds: botocore organizations)."""

from typing import Annotated, Literal

from msgspec import Meta

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import Seconds

AccountIdText = Annotated[str, Meta(min_length=12, max_length=12, pattern=r"^\d{12}$")]
Email = Annotated[str, Meta(min_length=6, max_length=64, pattern=r"^[^\s@]+@[^\s@]+\.[^\s@]+$")]
AccountName = Annotated[str, Meta(min_length=1, max_length=50, pattern=r"^[\u0020-\u007E]+$")]
RoleName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w+=,.@-]{1,64}$")]
RequestId = Annotated[str, Meta(max_length=36, pattern=r"^car-[a-z0-9]{8,32}$")]
Uid = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
ACCESS_ROLE = "OrganizationAccountAccessRole"


class CreateAccountRequest(Shape, kw_only=True):
    """A new account. `account_id` is ours alone: AWS makes one up, as happens here where none is given."""

    email: Email
    account_name: AccountName
    role_name: RoleName = ACCESS_ROLE
    iam_user_access_to_billing: Literal["ALLOW", "DENY"] | None = None
    """There is nothing to pay: it changes nothing."""
    account_id: AccountIdText | None = None


class CreateAccountStatus(Shape, kw_only=True):
    """How the making of an account went."""

    id: str
    account_name: str
    state: str
    requested_timestamp: Seconds
    completed_timestamp: Seconds
    account_id: str | None = None
    failure_reason: str | None = None


class CreateAccountStatusResponse(Shape, kw_only=True):
    """Answer of CreateAccount and DescribeCreateAccountStatus: here it is done at once."""

    create_account_status: CreateAccountStatus


class DescribeCreateAccountStatusRequest(Shape, kw_only=True):
    """The id that CreateAccount answered."""

    create_account_request_id: RequestId


class AccountIdRequest(Shape, kw_only=True):
    """An account."""

    account_id: AccountIdText


class Account(Shape, kw_only=True):
    """An account of the realm. `local_users` are ours: the uids that belong to it."""

    id: str
    arn: str
    email: str
    name: str
    status: str
    state: str
    joined_method: str
    joined_timestamp: Seconds
    local_users: list[int] = []


class AccountResponse(Shape, kw_only=True):
    """Answer of DescribeAccount."""

    account: Account


class ListAccountsRequest(Shape, kw_only=True):
    """Which page of accounts."""

    next_token: Annotated[str, Meta(max_length=100_000)] | None = None
    max_results: Annotated[int, Meta(ge=1, le=20)] = 20


class ListAccountsResponse(Shape, kw_only=True):
    """A page of accounts."""

    accounts: list[Account]
    next_token: str | None = None


class Organization(Shape, kw_only=True):
    """The realm as an organization of accounts."""

    id: str
    arn: str
    feature_set: str
    master_account_arn: str
    master_account_id: str
    master_account_email: str


class OrganizationResponse(Shape, kw_only=True):
    """Answer of DescribeOrganization."""

    organization: Organization


class AssignLocalUserRequest(Shape, kw_only=True):
    """The account to which a local user belongs from now on: his calls over the socket are that account's."""

    uid: Uid
    account_id: AccountIdText
