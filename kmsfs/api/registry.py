"""All operations by their name on the socket, and what is derived from them."""

from kmsfs.api.catalogue.access import ACCESS_OPERATIONS
from kmsfs.api.catalogue.accounts import ACCOUNT_OPERATIONS
from kmsfs.api.catalogue.admin import ADMIN_OPERATIONS
from kmsfs.api.catalogue.crypto import CRYPTO_OPERATIONS
from kmsfs.api.catalogue.grants import GRANT_OPERATIONS
from kmsfs.api.catalogue.iam import IAM_OPERATIONS
from kmsfs.api.catalogue.keys import KEY_OPERATIONS
from kmsfs.api.catalogue.keystores import KEY_STORE_OPERATIONS
from kmsfs.api.catalogue.parameters import PARAMETER_OPERATIONS
from kmsfs.api.catalogue.secrets import SECRET_OPERATIONS
from kmsfs.api.catalogue.signing import SIGNING_OPERATIONS
from kmsfs.api.catalogue.sts import STS_OPERATIONS
from kmsfs.api.operation import Operation
from kmsfs.errors import UnknownOperation

OPERATIONS: dict[str, Operation] = {
    operation.wire_name: operation
    for operation in (
        *KEY_OPERATIONS,
        *KEY_STORE_OPERATIONS,
        *CRYPTO_OPERATIONS,
        *SIGNING_OPERATIONS,
        *GRANT_OPERATIONS,
        *PARAMETER_OPERATIONS,
        *SECRET_OPERATIONS,
        *STS_OPERATIONS,
        *IAM_OPERATIONS,
        *ACCOUNT_OPERATIONS,
        *ADMIN_OPERATIONS,
        *ACCESS_OPERATIONS,
    )
}

_BY_SERVICE = {(operation.service, operation.name): operation for operation in OPERATIONS.values()}

KMS_ACTIONS: frozenset[str] = frozenset(
    {operation.action for operation in OPERATIONS.values() if operation.action.startswith("kms:")}
    - {"kms:ReEncrypt"}
    | {"kms:ReEncryptFrom", "kms:ReEncryptTo"}
)
"""Action names that a key policy may speak of."""


def of_service(service: str, name: str) -> Operation | None:
    """Return the operation that a service calls by this name, or None."""
    return _BY_SERVICE.get((service, name))


def find(name: str) -> Operation:
    """Return the operation with this name.

    Raises:
        UnknownOperation: if there is none.
    """
    try:
        return OPERATIONS[name]
    except KeyError:
        raise UnknownOperation(
            f"Unknown operation {name[:64]!r}", hint="see docs/reference/operations.md"
        ) from None
