"""Operations on the realm's accounts: those of AWS Organizations that have a meaning on machines one owns, and ours."""

from kmsfs import errors
from kmsfs.api.operation import Operation, Resource, Shape
from kmsfs.api.shapes import accounts
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import KmsfsError

_COMMON = (errors.AccessDenied, errors.InvalidAccountInput)
_FIND = (*_COMMON, errors.AccountNotFound)


def _declare(
    name: str, request: type[Shape], response: type[Shape], summary: str, declared: tuple[type[KmsfsError], ...],
    *, mutates: bool = False, service: str = "organizations",
) -> Operation:  # fmt: skip
    return Operation(
        name, service, f"organizations:{name}", request, response, summary, resource=Resource.ORGANIZATION, mutates=mutates,
        audit=tuple(field for field in request.__struct_fields__ if field != "next_token"), errors=declared,
    )  # fmt: skip


ACCOUNT_OPERATIONS = (
    _declare("CreateAccount", accounts.CreateAccountRequest, accounts.CreateAccountStatusResponse,
             "Make an account, with a role in it that the managing account may assume.", (*_COMMON, errors.AccountConstraint), mutates=True),
    _declare("DescribeCreateAccountStatus", accounts.DescribeCreateAccountStatusRequest, accounts.CreateAccountStatusResponse,
             "Tell how the making of an account went.", (*_COMMON, errors.CreateAccountStatusNotFound)),
    _declare("DescribeAccount", accounts.AccountIdRequest, accounts.AccountResponse, "Tell of an account.", _FIND),
    _declare("ListAccounts", accounts.ListAccountsRequest, accounts.ListAccountsResponse, "List the realm's accounts.", _COMMON),
    _declare("DescribeOrganization", Empty, accounts.OrganizationResponse, "Tell which account manages the others.",
             (errors.AccessDenied,)),
    _declare("CloseAccount", accounts.AccountIdRequest, Empty,
             "Close an account: its users are refused, its keys open nothing; what it has stays.",
             (*_FIND, errors.AccountAlreadyClosed, errors.AccountConstraint), mutates=True),
    _declare("ReopenAccount", accounts.AccountIdRequest, Empty, "Let a closed account work again.",
             (*_FIND, errors.AccountConstraint), mutates=True, service="kmsfs"),
    _declare("AssignLocalUser", accounts.AssignLocalUserRequest, Empty,
             "Let a local user belong to an account: his calls over the socket are that account's.",
             (*_FIND, errors.AccountConstraint), mutates=True, service="kmsfs"),
)  # fmt: skip
