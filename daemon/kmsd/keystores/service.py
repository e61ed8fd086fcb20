"""Handlers of custom key stores."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import page_of
from kmsd.keystores.store import CONNECTED, KeyStore, KeyStores, new_store_id
from kmsfs.api.shapes import keystores as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    CustomKeyStoreHasKeys,
    CustomKeyStoreInvalidState,
    CustomKeyStoreNameInUse,
    CustomKeyStoreNotFound,
    LimitExceeded,
    TokenInUse,
    TokenNotFound,
    TokenNotRelated,
)

_STORES_MAX = 10


class KeyStoreService:
    """CreateCustomKeyStore to DeleteCustomKeyStore. `keys_in` yields the ARNs of a store's keys; `changed` is told of a store whose keys come or go."""

    def __init__(self, stores: KeyStores, keys_in: Callable[[str], Iterable[str]], changed: Callable[[str], None]) -> None:
        self._stores = stores
        self._keys_in = keys_in
        self._changed = changed

    def create(self, call: Call) -> shapes.CreateCustomKeyStoreResponse:
        """CreateCustomKeyStore: it is not connected then."""
        request: shapes.CreateCustomKeyStoreRequest = call.request
        if len(self._in(call)) >= _STORES_MAX:
            raise LimitExceeded(f"an account has at most {_STORES_MAX} custom key stores in a region")
        self._check_name(call, request.custom_key_store_name)
        token = request.cloud_hsm_cluster_id or ""
        self._check_token(token)
        made = KeyStore(
            new_store_id(), request.custom_key_store_name, call.scope, token,
            request.key_store_password or "", request.trust_anchor_certificate, call.now,
        )  # fmt: skip
        self._stores.put(made)
        return shapes.CreateCustomKeyStoreResponse(custom_key_store_id=made.store_id)

    def describe(self, call: Call) -> shapes.DescribeCustomKeyStoresResponse:
        """DescribeCustomKeyStores."""
        request: shapes.DescribeCustomKeyStoresRequest = call.request
        found = {store.store_id: store for store in self._in(call)}
        if request.custom_key_store_id is not None:
            found = {store.store_id: store for store in (self._named(call, request.custom_key_store_id),)}
        elif request.custom_key_store_name is not None:
            found = {key: store for key, store in found.items() if store.name == request.custom_key_store_name}
            if not found:
                raise CustomKeyStoreNotFound(f"There is no custom key store named {request.custom_key_store_name}.")
        page, marker = page_of(sorted(found), request.limit, request.marker)
        return shapes.DescribeCustomKeyStoresResponse(
            custom_key_stores=[self._as_shape(found[each]) for each in page], next_marker=marker, truncated=marker is not None
        )

    def connect(self, call: Call) -> Empty:
        """ConnectCustomKeyStore: as at AWS, that it failed is the store's state, and no error."""
        store = self._named(call, call.request.custom_key_store_id)
        if self._stores.state(store.store_id)[0] == CONNECTED:
            raise CustomKeyStoreInvalidState(f"The custom key store {store.name} is connected already.")
        self._stores.connect(store)
        self._changed(store.store_id)
        return Empty()

    def disconnect(self, call: Call) -> Empty:
        """DisconnectCustomKeyStore."""
        store = self._named(call, call.request.custom_key_store_id)
        self._stores.disconnect(store)
        self._changed(store.store_id)
        return Empty()

    def update(self, call: Call) -> Empty:
        """UpdateCustomKeyStore."""
        request: shapes.UpdateCustomKeyStoreRequest = call.request
        store = self._unconnected(call)
        if request.new_custom_key_store_name is not None and request.new_custom_key_store_name != store.name:
            self._check_name(call, request.new_custom_key_store_name)
            store = replace(store, name=request.new_custom_key_store_name)
        if request.cloud_hsm_cluster_id is not None and request.cloud_hsm_cluster_id != store.token:
            try:
                self._check_token(request.cloud_hsm_cluster_id)
            except TokenInUse as error:
                raise TokenNotRelated(error.detail) from error
            store = replace(store, token=request.cloud_hsm_cluster_id)
        if request.key_store_password is not None:
            store = replace(store, pin=request.key_store_password)
        self._stores.put(store)
        return Empty()

    def delete(self, call: Call) -> Empty:
        """DeleteCustomKeyStore."""
        store = self._unconnected(call)
        held = list(self._keys_in(store.store_id))
        if held:
            raise CustomKeyStoreHasKeys(
                f"The custom key store {store.name} has {len(held)} KMS key(s), such as {held[0]}.", hint="schedule their deletion first"
            )
        self._stores.remove(store)
        return Empty()

    def _in(self, call: Call) -> list[KeyStore]:
        return [store for store in self._stores if store.scope == call.scope]

    def _named(self, call: Call, store_id: str) -> KeyStore:
        store = self._stores.get(store_id)
        if store is None or store.scope != call.scope:
            raise CustomKeyStoreNotFound(f"There is no custom key store {store_id}.")
        return store

    def _unconnected(self, call: Call) -> KeyStore:
        store = self._named(call, call.request.custom_key_store_id)
        if self._stores.state(store.store_id)[0] == CONNECTED:
            raise CustomKeyStoreInvalidState(f"The custom key store {store.name} is connected.", hint="disconnect it first")
        return store

    def _check_name(self, call: Call, name: str) -> None:
        if any(store.name == name for store in self._in(call)):
            raise CustomKeyStoreNameInUse(f"There is a custom key store named {name} already.")

    def _check_token(self, name: str) -> None:
        if name not in self._stores.places:
            raise TokenNotFound(f"No token is called {name} here.", hint="its operator declares it: kmsd serve --key-store-token NAME=MODULE:LABEL")
        if any(store.token == name for store in self._stores):
            raise TokenInUse(f"Another custom key store has the token {name}.")

    def _as_shape(self, store: KeyStore) -> shapes.CustomKeyStore:
        state, reason = self._stores.state(store.store_id)
        return shapes.CustomKeyStore(
            custom_key_store_id=store.store_id, custom_key_store_name=store.name, cloud_hsm_cluster_id=store.token,
            trust_anchor_certificate=store.certificate, connection_state=state, connection_error_code=reason,
            creation_date=store.created, custom_key_store_type="AWS_CLOUDHSM",
        )  # fmt: skip
