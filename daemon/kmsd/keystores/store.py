"""Custom key stores in memory, written through to the sealed store; their tokens, open while they are connected."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kmsd.store.database import Changes, SealedStore
from kmsd.store.schema import Table
from kmsd.tokens.token import Token, TokenPlace
from kmsfs.errors import KeyInvalidState, TokenUnavailable

_LOG = logging.getLogger("kmsd")
CONNECTED, DISCONNECTED, FAILED = "CONNECTED", "DISCONNECTED", "FAILED"
_ERRORS = {
    "PinIncorrect": "INVALID_CREDENTIALS", "PinInvalid": "INVALID_CREDENTIALS", "PinLenRange": "INVALID_CREDENTIALS",
    "PinLocked": "USER_LOCKED_OUT", "UserPinNotInitialized": "USER_NOT_FOUND", "NoSuchToken": "CLUSTER_NOT_FOUND",
    "TokenNotPresent": "CLUSTER_NOT_FOUND",
}  # fmt: skip
"""AWS's words for why a connection failed (KMS API reference, CustomKeyStoresListEntry)."""


@dataclass(frozen=True, slots=True)
class KeyStore:
    """A custom key store. `token` is the name under which the operator declared it; `pin` is secret; `wanted`: it shall be connected."""

    store_id: str
    name: str
    scope: str
    token: str
    pin: str = field(repr=False)
    certificate: str | None
    created: float
    wanted: bool = False

    def row(self) -> dict[str, Any]:
        """The sealed row."""
        return {
            "id": self.store_id, "name": self.name, "scope": self.scope, "token": self.token, "pin": self.pin,
            "certificate": self.certificate, "created": self.created, "wanted": self.wanted,
        }  # fmt: skip


class KeyStores:
    """All custom key stores. `places` are the tokens that the operator declared, by name."""

    def __init__(self, store: SealedStore, places: Mapping[str, TokenPlace]) -> None:
        self._store = store
        self.places = places
        self._stores: dict[str, KeyStore] = {}
        self._open: dict[str, Token] = {}
        self._failed: dict[str, str] = {}
        for row in store.scan(Table.KEY_STORE):
            made = _store_of(row)
            self._stores[made.store_id] = made

    # --- finding ----------------------------------------------------------------------------------------------

    def get(self, store_id: str) -> KeyStore | None:
        """Return a store, or None."""
        return self._stores.get(store_id)

    def __iter__(self) -> Iterator[KeyStore]:
        """Yield all stores of all accounts."""
        return iter(list(self._stores.values()))

    def token_name(self, store_id: str) -> str | None:
        """Return the name of a store's token."""
        store = self._stores.get(store_id)
        return store.token if store is not None else None

    def state(self, store_id: str) -> tuple[str, str | None]:
        """Return a store's connection state, and why it failed."""
        if store_id in self._open:
            return CONNECTED, None
        reason = self._failed.get(store_id)
        return (FAILED, reason) if reason is not None else (DISCONNECTED, None)

    # --- changing ---------------------------------------------------------------------------------------------

    def put(self, made: KeyStore) -> None:
        """Store a new or changed store."""
        with self._store.transaction() as work:
            work.put(Table.KEY_STORE, made.store_id, made.row())
        self._stores[made.store_id] = made

    def remove(self, store: KeyStore) -> None:
        """Forget a store."""
        with self._store.transaction() as work:
            work.delete(Table.KEY_STORE, store.store_id)
        del self._stores[store.store_id]
        self._failed.pop(store.store_id, None)

    def connect(self, store: KeyStore) -> None:
        """Log in to a store's token; what goes wrong is its state from then on."""
        self.put(replace(store, wanted=True))
        self._try(store)

    def connect_wanted(self) -> None:
        """Log in to the tokens of all stores that shall be connected: at a start."""
        for store in self:
            if store.wanted:
                self._try(store)

    def disconnect(self, store: KeyStore) -> None:
        """Log out."""
        self.put(replace(store, wanted=False))
        self._log_out(store.store_id)

    def take(self, changes: Changes) -> set[str]:
        """Let what other daemons wrote be seen here: log in and out where it says so. Return the ids of the stores that it was about."""
        found = changes.get(Table.KEY_STORE, {})
        for store_id, row in found.items():
            if row is None:
                self._stores.pop(store_id, None)
                self._log_out(store_id)
                continue
            made = self._stores[store_id] = _store_of(row)
            if not made.wanted:
                self._log_out(store_id)
            elif store_id not in self._open:
                self._try(made)
        return set(found)

    def _log_out(self, store_id: str) -> None:
        self._failed.pop(store_id, None)
        token = self._open.pop(store_id, None)
        if token is not None:
            token.close()

    def _try(self, store: KeyStore) -> None:
        self._failed.pop(store.store_id, None)
        place = self.places.get(store.token)
        try:
            if place is None:
                raise TokenUnavailable(f"no token {store.token!r} is declared any more", evidence="NoSuchToken")
            self._open[store.store_id] = Token(place, store.pin)
        except TokenUnavailable as error:
            _LOG.warning("custom key store %s: %s", store.name, error.detail)
            self._failed[store.store_id] = _ERRORS.get(error.evidence, "INTERNAL_ERROR")

    # --- the tokens' work -----------------------------------------------------------------------------------------

    def token_of(self, store_id: str, arn: str) -> Token:
        """Return the open token of a store, for a key.

        Raises:
            KeyInvalidState: if the store is not connected.
        """
        token = self._open.get(store_id)
        if token is None:
            raise KeyInvalidState(f"{arn} is unavailable.", hint="its custom key store is not connected: kmsfs keystore connect")
        return token


def _store_of(row: dict[str, Any]) -> KeyStore:
    return KeyStore(row["id"], row["name"], row["scope"], row["token"], row["pin"], row["certificate"], row["created"], row["wanted"])


def new_store_id() -> str:
    """Return an id as AWS makes them: `cks-` and 17 hexadecimal digits."""
    return f"cks-{secrets.token_hex(9)[:17]}"
