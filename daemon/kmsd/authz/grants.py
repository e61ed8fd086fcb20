"""Grants as the evaluator sees them: operations, grantee and encryption-context constraints."""

from dataclasses import dataclass
from typing import Any

from kmsd.authz.principal import Caller
from kmsfs.ids import root_principal

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
    expires: float | None = None
    """From this time on, seconds since the epoch, it allows nothing."""
    reason: str | None = None

    def permits(self, caller: Caller, operation: str, context: dict[str, str], now: float, *, delegated: bool = False) -> bool:
        """Tell whether this grant lets `caller` do `operation` with this encryption context at this time.

        What is granted to an account is for those of it whom its IAM lets: `delegated` says that it lets this one.
        """
        if operation not in self.operations or not self._is_for(caller, delegated=delegated) or self.over(now):
            return False
        if operation not in CONTEXT_OPERATIONS:
            return True
        if self.equals is not None:
            return context == self.equals
        if self.subset is not None:
            return all(context.get(key) == value for key, value in self.subset.items())
        return True

    def _is_for(self, caller: Caller, *, delegated: bool) -> bool:
        return self.grantee in caller.principals or (delegated and self.grantee == root_principal(caller.account))

    def over(self, now: float) -> bool:
        """Tell whether its time is over."""
        return self.expires is not None and now >= self.expires

    def row(self) -> dict[str, Any]:
        """The sealed row of this grant."""
        return {
            "id": self.grant_id, "key": self.key_id, "grantee": self.grantee, "retiring": self.retiring,
            "operations": sorted(self.operations), "equals": self.equals, "subset": self.subset, "name": self.name,
            "created": self.created, "issuer": self.issuer, "expires": self.expires, "reason": self.reason,
        }  # fmt: skip


def grant_of(row: dict[str, Any]) -> Grant:
    """Read a sealed row."""
    return Grant(
        row["id"], row["key"], row["grantee"], row["retiring"], frozenset(row["operations"]),
        row["equals"], row["subset"], row["name"], row["created"], row["issuer"], row.get("expires"), row.get("reason"),
    )  # fmt: skip
