"""Failures of custom key stores, under AWS's names (KMS API reference, CreateCustomKeyStore to UpdateCustomKeyStore)."""

from kmsfs.errors.core import Conflict, InvalidRequest, NotFound


class CustomKeyStoreNotFound(NotFound):
    """There is no such custom key store."""

    code = "CustomKeyStoreNotFoundException"


class CustomKeyStoreNameInUse(Conflict):
    """Another custom key store has this name."""

    code = "CustomKeyStoreNameInUseException"


class CustomKeyStoreInvalidState(Conflict):
    """The custom key store is connected, or is not, where the other is needed."""

    code = "CustomKeyStoreInvalidStateException"


class CustomKeyStoreHasKeys(Conflict):
    """The custom key store still has KMS keys."""

    code = "CustomKeyStoreHasCMKsException"


class TokenNotFound(InvalidRequest):
    """The operator has declared no token of this name."""

    code = "CloudHsmClusterNotFoundException"


class TokenNotRelated(InvalidRequest):
    """A custom key store cannot move to this token: another store has it."""

    code = "CloudHsmClusterNotRelatedException"


class TokenInUse(Conflict):
    """Another custom key store has this token."""

    code = "CloudHsmClusterInUseException"
