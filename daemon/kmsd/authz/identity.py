"""Identity policies: what IAM attaches to users, groups, roles and sessions. Pure.

Source: IAM user guide, "Policy evaluation logic" and "Permissions boundaries for IAM entities".
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kmsd.authz.conditions import RequestValues, refuse_unreadable
from kmsd.authz.statement import IDENTITY_ELEMENTS, Statement, compile_statement, unique_fields
from kmsfs.errors import LimitExceeded, MalformedPolicy

POLICY_MAX_CHARACTERS = 10_240
_ARN = re.compile(r"arn:([^:]*:){4}.")
_TOO_OLD = "Policy document must be version 2012-10-17 or greater."
ALLOW, DENY, SILENT = "allow", "deny", "silent"


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """A compiled policy without principals, and the name under which the audit log shows it."""

    name: str
    text: str
    statements: tuple[Statement, ...]

    def says(self, action: str, resource: str, values: RequestValues) -> tuple[str, str]:
        """Return (allow, deny or silent, name of the statement that decided)."""
        found = SILENT, ""
        for index, statement in enumerate(self.statements):
            if statement.speaks_of(action, resource, values):
                name = f"{self.name}:{statement.sid or index}"
                if not statement.allow:
                    return DENY, name
                if found[0] == SILENT:
                    found = ALLOW, name
        return found


@dataclass(frozen=True, slots=True)
class Identity:
    """All that limits and allows one IAM caller. `boundary` and `session` limit; None where there is none."""

    policies: tuple[IdentityPolicy, ...] = ()
    boundary: IdentityPolicy | None = None
    session: tuple[IdentityPolicy, ...] | None = None

    def says(self, action: str, resource: str, values: RequestValues) -> tuple[str, str]:
        """Return (allow, deny or silent, by what), with boundary and session policies applied."""
        verdict, by = combined(self.policies, action, resource, values)
        for limit in self._limits():
            limited, why = combined(limit, action, resource, values)
            if limited == DENY:
                return DENY, why
            if limited == SILENT and verdict == ALLOW:
                verdict, by = SILENT, "limit"
        return verdict, by

    def withholds(self, action: str, resource: str, values: RequestValues) -> bool:
        """Tell whether the boundary or the session policies do not allow this."""
        return any(combined(limit, action, resource, values)[0] != ALLOW for limit in self._limits())

    def _limits(self) -> list[Sequence[IdentityPolicy]]:
        limits: list[Sequence[IdentityPolicy]] = []
        if self.boundary is not None:
            limits.append((self.boundary,))
        if self.session is not None:
            limits.append(self.session)
        return limits


def combined(
    policies: Sequence[IdentityPolicy], action: str, resource: str, values: RequestValues
) -> tuple[str, str]:
    """Return what policies say together: an explicit Deny in any of them wins."""
    found = SILENT, ""
    for policy in policies:
        verdict, by = policy.says(action, resource, values)
        if verdict == DENY:
            return DENY, by
        if verdict == ALLOW and found[0] == SILENT:
            found = ALLOW, by
    return found


def compile_identity_policy(name: str, text: str) -> IdentityPolicy:
    """Return the compiled policy.

    Raises:
        MalformedPolicy: if the text is no identity policy.
        LimitExceeded: if it is longer than 10,240 characters.
    """
    if len(text) > POLICY_MAX_CHARACTERS:
        raise LimitExceeded(f"a policy has at most {POLICY_MAX_CHARACTERS} characters")
    try:
        document: Any = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise MalformedPolicy("Syntax errors in policy.") from error
    if not isinstance(document, dict) or not document.keys() <= {"Version", "Id", "Statement"}:
        raise MalformedPolicy("Syntax errors in policy.")
    if document.get("Version") not in ("2012-10-17", "2008-10-17"):
        raise MalformedPolicy("The policy must contain a valid version string." if "Version" in document else _TOO_OLD)
    statements = document.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not statements:
        raise MalformedPolicy("Syntax errors in policy.")
    version = document["Version"]
    compiled = tuple(
        compile_statement(statement, None, IDENTITY_ELEMENTS, version=version) for statement in statements
    )
    return IdentityPolicy(name, text, compiled)


def compile_new_identity_policy(name: str, text: str) -> IdentityPolicy:
    """As `compile_identity_policy`, for a policy that is about to be stored: what AWS refuses today, and what would never be met.

    Raises:
        MalformedPolicy, LimitExceeded: why it cannot be stored.
    """
    policy = compile_identity_policy(name, text)
    document = json.loads(text)
    if document["Version"] == "2008-10-17":
        raise MalformedPolicy(_TOO_OLD)
    if not isinstance(document.get("Id", ""), str):
        raise MalformedPolicy("Syntax errors in policy.")
    for statement in policy.statements:
        refuse_unreadable(statement.conditions, variables=statement.variables)
        for resource in statement.resources:
            if resource != "*" and not _ARN.match(resource):
                raise MalformedPolicy(f'Resource {resource[:256]} must be in ARN format or "*".')
    return policy
