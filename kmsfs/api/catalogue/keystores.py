"""Operations on custom key stores: PKCS #11 tokens that keep KMS keys."""

from typing import Any

from kmsfs import errors
from kmsfs.api import rules
from kmsfs.api.operation import Operation, Resource, Shape
from kmsfs.api.shapes import keystores
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import KmsfsError

_COMMON = (errors.AccessDenied,)
_FIND = (*_COMMON, errors.CustomKeyStoreNotFound)
_STATE = (*_FIND, errors.CustomKeyStoreInvalidState)


def _declare(
    name: str, request: type[Shape], response: type[Shape], summary: str, declared: tuple[type[KmsfsError], ...],
    *, mutates: bool = True, **more: Any,
) -> Operation:  # fmt: skip
    kept = {"key_store_password", "trust_anchor_certificate", "marker"}
    return Operation(
        name, "kms", f"kms:{name}", request, response, summary, resource=Resource.KEY_STORE, mutates=mutates,
        audit=tuple(field for field in request.__struct_fields__ if field not in kept), errors=declared, **more,
    )  # fmt: skip


KEY_STORE_OPERATIONS = (
    _declare("CreateCustomKeyStore", keystores.CreateCustomKeyStoreRequest, keystores.CreateCustomKeyStoreResponse,
             "Let a token that the operator declared keep KMS keys.",
             (*_COMMON, errors.CustomKeyStoreNameInUse, errors.TokenNotFound, errors.TokenInUse, errors.LimitExceeded),
             secret=("KeyStorePassword",), rules=(rules.store_in_a_token,)),
    _declare("DescribeCustomKeyStores", keystores.DescribeCustomKeyStoresRequest, keystores.DescribeCustomKeyStoresResponse,
             "List custom key stores, and whether they are connected.", (*_FIND, errors.InvalidMarker), mutates=False),
    _declare("ConnectCustomKeyStore", keystores.CustomKeyStoreIdRequest, Empty, "Log in to a store's token.", _STATE),
    _declare("DisconnectCustomKeyStore", keystores.CustomKeyStoreIdRequest, Empty,
             "Log out of a store's token: its keys cannot be used until it is connected again.", _STATE),
    _declare("UpdateCustomKeyStore", keystores.UpdateCustomKeyStoreRequest, Empty,
             "Give a store that is not connected another name, PIN, or the token to which its keys went.",
             (*_STATE, errors.CustomKeyStoreNameInUse, errors.TokenNotFound, errors.TokenNotRelated), secret=("KeyStorePassword",)),
    _declare("DeleteCustomKeyStore", keystores.CustomKeyStoreIdRequest, Empty, "Forget a store that has no KMS keys; the token stays.",
             (*_STATE, errors.CustomKeyStoreHasKeys)),
)  # fmt: skip
