"""Handlers of accounts (AWS Organizations API reference, CreateAccount to CloseAccount)."""

import hashlib
import json
from collections.abc import Iterable

from kmsd.accounts.store import ACTIVE, SUSPENDED, Account, AccountStore
from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import token_page_of
from kmsd.iam.entities import compile_trust, new_entity_id
from kmsd.iam.pages import check_document
from kmsd.iam.records import ROLE, Entity
from kmsd.iam.store import IamStore
from kmsfs.aead.nonces import Rng
from kmsfs.api.shapes import accounts as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    AccountAlreadyClosed,
    AccountConstraint,
    AccountNotFound,
    CreateAccountStatusNotFound,
    InvalidAccountInput,
    InvalidNextToken,
)
from kmsfs.ids import account_arn, iam_arn, organization_arn, root_principal

_ACCOUNTS_MAX = 1_000
_MANAGEMENT_EMAIL = "management@kmsfs.local"
_FULL_ACCESS = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
)


class AccountService:
    """CreateAccount to AssignLocalUser. `administrators` are the uids who stand for the managing account."""

    def __init__(
        self, accounts: AccountStore, iam: IamStore, rng: Rng, administrators: Iterable[int], founded: float
    ) -> None:
        self._accounts = accounts
        self._iam = iam
        self._rng = rng
        self._administrators = frozenset(administrators) | {0}
        self._founded = founded
        digest = hashlib.sha256(accounts.management.encode()).hexdigest()
        self._organization = f"o-{digest[:10]}"

    def create_account(self, call: Call) -> shapes.CreateAccountStatusResponse:
        """CreateAccount: done at once, with the role by which the managing account gets in."""
        request: shapes.CreateAccountRequest = call.request
        present = list(self._accounts)
        if len(present) + 1 >= _ACCOUNTS_MAX:
            raise AccountConstraint(f"An organization here has at most {_ACCOUNTS_MAX} accounts.")
        made = Account(
            request.account_id or self._fresh_id(), request.account_name, request.email, call.now,
            f"car-{self._rng(16).hex()}",
        )  # fmt: skip
        if self._accounts.exists(made.account_id):
            raise AccountConstraint(f"There is an account {made.account_id} already.")
        if any(account.email.casefold() == made.email.casefold() for account in present):
            return _failed(made, "EMAIL_ALREADY_EXISTS")
        # The role comes first: an account without one could not be entered, a role without an account harms nobody.
        self._iam.put(self._access_role(made.account_id, request.role_name, call.now))
        self._accounts.add(made)
        return _succeeded(made)

    def describe_create_account_status(self, call: Call) -> shapes.CreateAccountStatusResponse:
        """DescribeCreateAccountStatus."""
        account = self._accounts.of_request(call.request.create_account_request_id)
        if account is None:
            raise CreateAccountStatusNotFound("You provided a create account request ID that doesn't exist.")
        return _succeeded(account)

    def describe_account(self, call: Call) -> shapes.AccountResponse:
        """DescribeAccount."""
        wanted = call.request.account_id
        if wanted == self._accounts.management:
            return shapes.AccountResponse(account=self._management())
        return shapes.AccountResponse(account=self._as_shape(self._named(wanted)))

    def list_accounts(self, call: Call) -> shapes.ListAccountsResponse:
        """ListAccounts, the managing one among them."""
        request: shapes.ListAccountsRequest = call.request
        shown = {account.account_id: self._as_shape(account) for account in self._accounts}
        shown[self._accounts.management] = self._management()
        try:
            page, token = token_page_of(sorted(shown), request.max_results, request.next_token)
        except InvalidNextToken as error:
            raise InvalidAccountInput("You provided an invalid pagination token.") from error
        return shapes.ListAccountsResponse(accounts=[shown[each] for each in page], next_token=token)

    def describe_organization(self, _call: Call) -> shapes.OrganizationResponse:
        """DescribeOrganization: every account may know."""
        management = self._accounts.management
        return shapes.OrganizationResponse(
            organization=shapes.Organization(
                id=self._organization, arn=organization_arn(management, self._organization), feature_set="ALL",
                master_account_arn=account_arn(management, self._organization, management),
                master_account_id=management, master_account_email=_MANAGEMENT_EMAIL,
            )
        )  # fmt: skip

    def close_account(self, call: Call) -> Empty:
        """CloseAccount: nothing of it is removed."""
        account = self._member(call.request.account_id)
        if account.status == SUSPENDED:
            raise AccountAlreadyClosed("You attempted to close an account that is already closed.")
        self._accounts.set_status(account, SUSPENDED)
        return Empty()

    def reopen_account(self, call: Call) -> Empty:
        """ReopenAccount."""
        account = self._member(call.request.account_id)
        if account.status != ACTIVE:
            self._accounts.set_status(account, ACTIVE)
        return Empty()

    def assign_local_user(self, call: Call) -> Empty:
        """AssignLocalUser."""
        request: shapes.AssignLocalUserRequest = call.request
        if request.account_id != self._accounts.management:
            self._named(request.account_id)
            if request.uid in self._administrators:
                raise AccountConstraint(
                    f"uid {request.uid} administers the daemon and stands for the managing account.",
                    hint="who belongs to another account cannot; end his administration first",
                )
        self._accounts.assign(request.uid, request.account_id)
        return Empty()

    def _named(self, account_id: str) -> Account:
        account = self._accounts.get(account_id)
        if account is None:
            raise AccountNotFound(f"There is no account {account_id} here.", hint="kmsfs account list")
        return account

    def _member(self, account_id: str) -> Account:
        if account_id == self._accounts.management:
            raise AccountConstraint("The managing account cannot be closed.")
        return self._named(account_id)

    def _fresh_id(self) -> str:
        while True:
            made = f"{int.from_bytes(self._rng(8), 'big') % 10**12:012d}"
            if not self._accounts.exists(made):
                return made

    def _access_role(self, account_id: str, name: str, now: float) -> Entity:
        trust = {"Effect": "Allow", "Principal": {"AWS": root_principal(self._accounts.management)}, "Action": "sts:AssumeRole"}
        return Entity(
            ROLE, iam_arn(account_id, ROLE, "/", name), account_id, "/", name, new_entity_id(ROLE, self._rng), now, now,
            inline={"AdministratorAccess": check_document(_FULL_ACCESS)},
            trust=compile_trust(json.dumps({"Version": "2012-10-17", "Statement": [trust]})),
        )  # fmt: skip

    def _as_shape(self, account: Account) -> shapes.Account:
        return shapes.Account(
            id=account.account_id, arn=account_arn(self._accounts.management, self._organization, account.account_id),
            email=account.email, name=account.name, status=account.status, state=account.status, joined_method="CREATED",
            joined_timestamp=account.created, local_users=list(account.uids),
        )  # fmt: skip

    def _management(self) -> shapes.Account:
        own = self._accounts.management
        return shapes.Account(
            id=own, arn=account_arn(own, self._organization, own), email=_MANAGEMENT_EMAIL, name="management", status=ACTIVE,
            state=ACTIVE, joined_method="INVITED", joined_timestamp=self._founded,
        )  # fmt: skip


def _succeeded(account: Account) -> shapes.CreateAccountStatusResponse:
    return _status(account, "SUCCEEDED", account_id=account.account_id)


def _failed(account: Account, reason: str) -> shapes.CreateAccountStatusResponse:
    return _status(account, "FAILED", failure_reason=reason)


def _status(
    account: Account, state: str, account_id: str | None = None, failure_reason: str | None = None
) -> shapes.CreateAccountStatusResponse:
    return shapes.CreateAccountStatusResponse(
        create_account_status=shapes.CreateAccountStatus(
            id=account.request, account_name=account.name, state=state, requested_timestamp=account.created,
            completed_timestamp=account.created, account_id=account_id, failure_reason=failure_reason,
        )
    )  # fmt: skip
