"""Key policies: parse, validate, compile (IAM user guide, "IAM JSON policy elements reference")."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from kmsd.authz.conditions import refuse_unreadable
from kmsd.authz.statement import RESOURCE_ELEMENTS, Statement, compile_statement, unique_fields
from kmsfs.errors import LimitExceeded, MalformedPolicy
from kmsfs.ids import is_unique_id, root_principal
from kmsfs.quantity import POLICY_MAX_BYTES

_VERSIONS = (None, "2012-10-17", "2008-10-17")
_MAX_STATEMENTS = 1000
_COMPILED_KEPT = 1024
_RELEVANT_KEPT = 256


class Relevant(NamedTuple):
    """A statement that may count, what it is called in answers, and whether it names the caller; else it names his account."""

    name: str
    statement: Statement
    named: bool


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """A compiled policy and its text."""

    text: str
    statements: tuple[Statement, ...]
    asks_of_the_request: bool = False
    """Whether a statement needs condition keys that not every question has."""
    asks_for_values: bool = True
    """Whether a statement has conditions or variables: without them the answer does not depend on the encryption context."""
    _relevant: dict[tuple[str, frozenset[str], str], tuple[Relevant, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def relevant(self, action: str, principals: frozenset[str], account_root: str) -> tuple[Relevant, ...]:
        """Return the statements about an action that name one of the principals or the account's root.

        Remembered, so that a call costs what concerns it, however long the policy is. `account_root` is empty where
        the account's policies do not count.
        """
        place = (action, principals, account_root)
        found = self._relevant.get(place)
        if found is None:
            if len(self._relevant) >= _RELEVANT_KEPT:
                self._relevant.clear()
            found = self._relevant[place] = tuple(self._find(action, principals, account_root))
        return found

    def _find(self, action: str, principals: frozenset[str], account_root: str) -> Iterator[Relevant]:
        for index, statement in enumerate(self.statements):
            named = statement.names(principals)
            of_account = bool(account_root) and account_root in statement.principals and not statement.not_principals
            if (named or of_account) and statement.is_about(action):
                yield Relevant(statement.sid or str(index), statement, named)


def default_policy(creator: str) -> str:
    """Return the policy of a key made without one: its creator may do everything, nobody else anything."""
    statement = {
        "Sid": "Creator",
        "Effect": "Allow",
        "Principal": {"AWS": creator},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, indent=1)


def account_policy(account: str) -> str:
    """Return AWS's own default: the account may do everything, so IAM decides who of it (KMS developer guide, "Default key policy")."""
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": root_principal(account)},
        "Action": "kms:*",
        "Resource": "*",
    }
    document = {"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]}
    return json.dumps(document, indent=1)


def service_key_policy(account: str, creator: str, service: str) -> str:
    """Return the policy of a service's default key: anyone of the realm may use it, through the service only.

    The same shape as the policy of AWS's `aws/ssm` key: the service decides who may read what it keeps.
    """
    through_service = {
        "Sid": "ThroughService",
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey"],
        "Resource": "*",
        "Condition": {"StringEquals": {"kms:ViaService": service, "kms:CallerAccount": account}},
    }
    document = json.loads(default_policy(creator))
    document["Statement"].append(through_service)
    return json.dumps(document, indent=1)


@lru_cache(maxsize=_COMPILED_KEPT)
def compile_policy(text: str, service: str = "kms") -> KeyPolicy:
    """Return the compiled policy of a resource of `service`; resources with the same text share it.

    Raises:
        MalformedPolicy: if the text is no key policy.
        LimitExceeded: if it is longer than 32 KiB.
    """
    if len(text.encode(errors="surrogatepass")) > POLICY_MAX_BYTES:
        raise LimitExceeded(f"a key policy has at most {POLICY_MAX_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise MalformedPolicy("The policy is not valid JSON.") from error
    if not isinstance(document, dict) or not document.keys() <= {"Version", "Id", "Statement"}:
        raise MalformedPolicy("A policy is an object with Version, Id and Statement.")
    if document.get("Version") not in _VERSIONS:
        raise MalformedPolicy("The policy has an unknown Version.")
    statements = document.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not statements or len(statements) > _MAX_STATEMENTS:
        raise MalformedPolicy("The policy needs statements.")
    version = document.get("Version")
    compiled = tuple(
        compile_statement(statement, service, RESOURCE_ELEMENTS, version=version) for statement in statements
    )
    named = [statement.sid for statement in compiled if statement.sid]
    if len(named) != len(set(named)):
        raise MalformedPolicy("Statement ids (Sid) must be unique.")
    return KeyPolicy(text, compiled, any(statement.asks_of_the_request for statement in compiled),
                     any(statement.asks_for_values for statement in compiled))  # fmt: skip


def compile_new_policy(text: str, service: str = "kms") -> KeyPolicy:
    """As `compile_policy`, for a policy that is about to be stored: what would never be met is refused.

    What was stored by an earlier version is as good as it was then.

    Raises:
        MalformedPolicy, LimitExceeded: why it cannot be stored.
    """
    policy = compile_policy(text, service)
    for statement in policy.statements:
        refuse_unreadable(statement.conditions, variables=statement.variables)
        if any(is_unique_id(principal) for principal in statement.principals):
            raise MalformedPolicy("Policy contains a statement with one or more invalid principals.")
    return policy


def names_principal(policy: KeyPolicy, principal: str) -> bool:
    """Tell whether a statement names a principal, be it to except it."""
    return any(principal in statement.principals for statement in policy.statements)


def with_principal(text: str, old: str, new: str) -> str:
    """Return a policy's text with another name of a principal; the rest stays as it was written, where that can be told apart."""
    document = json.loads(text)
    statements = document["Statement"]
    found = 0
    for statement in [statements] if isinstance(statements, dict) else statements:
        for element in ("Principal", "NotPrincipal"):
            held = statement.get(element)
            if not isinstance(held, dict) or "AWS" not in held:
                continue
            named = held["AWS"]
            found += named.count(old) if isinstance(named, list) else named == old
            held["AWS"] = [new if name == old else name for name in named] if isinstance(named, list) else new if named == old else named
    written = json.dumps(old)
    if text.count(written) == found:
        return text.replace(written, json.dumps(new))
    # It is written in another way, or stands elsewhere too, as in a condition, where it is a text like any other.
    return json.dumps(document, indent=1, ensure_ascii=False)
