"""The realm's accounts in memory, written through to the sealed store."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from kmsd.store.database import Changes, SealedStore
from kmsd.store.schema import Table

ACTIVE, SUSPENDED = "ACTIVE", "SUSPENDED"


@dataclass(frozen=True, slots=True)
class Account:
    """A member account. `uids` are the local users who belong to it; `request` names the call that made it."""

    account_id: str
    name: str
    email: str
    created: float
    request: str
    status: str = ACTIVE
    uids: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return asdict(self)


class AccountStore:
    """All accounts of a realm. The one that `kmsd init` named manages the others and has no row of its own."""

    def __init__(self, management: str, store: SealedStore) -> None:
        self.management = management
        self._store = store
        self._accounts: dict[str, Account] = {}
        self._of_uid: dict[int, str] = {}
        self.closed: set[str] = set()
        """The ids of closed accounts: looked at on every call."""
        self.listeners: list[Callable[[str, frozenset[int]], None]] = []
        """Told of an account whose callers and keys are to be asked about anew, and of local users who changed theirs."""
        for row in store.scan(Table.ACCOUNT):
            self._keep(_account_of(row))

    # --- finding ----------------------------------------------------------------------------------------------

    def of_uid(self, uid: int) -> str:
        """Return the account of a local user: the managing one, where nobody said otherwise."""
        return self._of_uid.get(uid, self.management) if self._of_uid else self.management

    def get(self, account_id: str) -> Account | None:
        """Return a member account, or None."""
        return self._accounts.get(account_id)

    def of_request(self, request: str) -> Account | None:
        """Return the account that a CreateAccount call made, or None."""
        return next((account for account in self._accounts.values() if account.request == request), None)

    def __iter__(self) -> Iterator[Account]:
        """Yield member accounts, oldest first."""
        return iter(sorted(self._accounts.values(), key=lambda account: (account.created, account.account_id)))

    def exists(self, account_id: str) -> bool:
        """Tell whether an account is there, the managing one too."""
        return account_id == self.management or account_id in self._accounts

    # --- changing ---------------------------------------------------------------------------------------------

    def add(self, account: Account) -> None:
        """Store a new account."""
        with self._store.transaction() as work:
            work.put(Table.ACCOUNT, account.account_id, account.row())
        self._keep(account)

    def set_status(self, account: Account, status: str) -> None:
        """Close an account, or open it again; its callers and keys feel it at once."""
        changed = replace(account, status=status)
        with self._store.transaction() as work:
            work.put(Table.ACCOUNT, changed.account_id, changed.row())
        self._keep(changed)
        self._tell(changed.account_id, frozenset())

    def assign(self, uid: int, account_id: str) -> None:
        """Let a local user belong to an account."""
        before, after = self.get(self.of_uid(uid)), self.get(account_id)
        changed = []
        if before is not None and before is not after:
            changed.append(replace(before, uids=tuple(other for other in before.uids if other != uid)))
        if after is not None and uid not in after.uids:
            changed.append(replace(after, uids=tuple(sorted((*after.uids, uid)))))
        if not changed:
            return
        with self._store.transaction() as work:
            for account in changed:
                work.put(Table.ACCOUNT, account.account_id, account.row())
        for account in changed:
            self._keep(account)
        self._tell("", frozenset({uid}))

    def take(self, changes: Changes) -> None:
        """Let what other daemons wrote be seen here. Rows of accounts are never removed."""
        for row in filter(None, changes.get(Table.ACCOUNT, {}).values()):
            account = _account_of(row)
            before = self.get(account.account_id)
            self._keep(account)
            moved = frozenset(account.uids).symmetric_difference(before.uids if before is not None else ())
            closed = before is not None and before.status != account.status
            self._tell(account.account_id if closed else "", moved)

    def _keep(self, account: Account) -> None:
        self._accounts[account.account_id] = account
        self._of_uid = {uid: each.account_id for each in self._accounts.values() for uid in each.uids}
        self.closed = {each.account_id for each in self._accounts.values() if each.status == SUSPENDED}

    def _tell(self, account_id: str, uids: frozenset[int]) -> None:
        for listener in self.listeners:
            listener(account_id, uids)


def _account_of(row: dict[str, Any]) -> Account:
    return Account(**{**row, "uids": tuple(row["uids"])})
