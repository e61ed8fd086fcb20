"""Grants as the evaluator sees them: operations, grantee and encryption-context constraints."""

from dataclasses import dataclass

from kmsd.authz.principal import Caller

CONTEXT_OPERATIONS = frozenset(
    {
        "Decrypt",
        "Encrypt",
        "GenerateDataKey",
        "GenerateDataKeyWithoutPlaintext",
        "ReEncryptFrom",
        "ReEncryptTo",
    }
)
"""Operations whose calls carry an encryption context; constraints speak of these only (KMS guide, "Grants")."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A live grant on a key."""

    grant_id: str
    key_id: str
    grantee: str
    retiring: str | None
    operations: frozenset[str]
    equals: dict[str, str] | None
    subset: dict[str, str] | None
    name: str | None
    created: float
    issuer: str

    def permits(self, caller: Caller, operation: str, context: dict[str, str]) -> bool:
        """Tell whether this grant lets `caller` do `operation` with this encryption context."""
        if operation not in self.operations or self.grantee not in caller.principals:
            return False
        if operation not in CONTEXT_OPERATIONS:
            return True
        if self.equals is not None:
            return context == self.equals
        if self.subset is not None:
            return all(context.get(key) == value for key, value in self.subset.items())
        return True
