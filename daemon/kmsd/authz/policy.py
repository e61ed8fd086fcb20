"""Key policies: parse, validate, compile (IAM user guide, "IAM JSON policy elements reference")."""

import json
import re
from dataclasses import dataclass
from typing import Any

from kmsd.authz.conditions import Condition, RequestValues, parse_conditions
from kmsd.authz.principal import Caller
from kmsd.authz.wildcard import matches
from kmsfs.errors import InvalidArn, LimitExceeded, MalformedPolicy
from kmsfs.ids import check_principal
from kmsfs.quantity import POLICY_MAX_BYTES

_ACTION = re.compile(r"[a-z0-9-]+:[A-Za-z*?]+\Z")
_ELEMENTS = frozenset(
    {
        "Sid",
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    }
)
_VERSIONS = (None, "2012-10-17", "2008-10-17")
_MAX_STATEMENTS = 1000


@dataclass(frozen=True, slots=True)
class Statement:
    """One compiled statement."""

    sid: str
    allow: bool
    principals: frozenset[str]
    everyone: bool
    not_principals: bool
    exact_actions: frozenset[str]
    action_patterns: tuple[str, ...]
    not_actions: bool
    resources: tuple[str, ...]
    not_resources: bool
    conditions: tuple[Condition, ...]

    def applies(self, caller: Caller, action: str, key_arn: str, request: RequestValues) -> bool:
        """Tell whether the statement speaks of this call."""
        named = self.everyone or not self.principals.isdisjoint(caller.principals)
        if named == self.not_principals:
            return False
        acted = action in self.exact_actions or _any_matches(self.action_patterns, action)
        if acted == self.not_actions:
            return False
        if _any_matches(self.resources, key_arn) == self.not_resources:
            return False
        return not self.conditions or all(condition.holds(request) for condition in self.conditions)


def _any_matches(patterns: tuple[str, ...], text: str) -> bool:
    # A plain loop: this runs on every call, and a generator costs more than most patterns.
    for pattern in patterns:  # noqa: SIM110
        if pattern == "*" or matches(pattern, text):
            return True
    return False


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """A compiled policy and its text."""

    text: str
    statements: tuple[Statement, ...]


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


def compile_policy(text: str, service: str = "kms") -> KeyPolicy:
    """Return the compiled policy of a resource of `service`.

    Raises:
        MalformedPolicy: if the text is no key policy.
        LimitExceeded: if it is longer than 32 KiB.
    """
    if len(text.encode(errors="surrogatepass")) > POLICY_MAX_BYTES:
        raise LimitExceeded(f"a key policy has at most {POLICY_MAX_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=_unique)
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
    compiled = tuple(_compile(statement, service) for statement in statements)
    named = [statement.sid for statement in compiled if statement.sid]
    if len(named) != len(set(named)):
        raise MalformedPolicy("Statement ids (Sid) must be unique.")
    return KeyPolicy(text, compiled)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise MalformedPolicy("The policy repeats a field.")
    return dict(pairs)


def _compile(raw: object, service: str) -> Statement:
    if not isinstance(raw, dict) or not raw.keys() <= _ELEMENTS:
        raise MalformedPolicy(
            "A statement is an object with Effect, Principal, Action, Resource and Condition."
        )
    effect, sid = raw.get("Effect"), raw.get("Sid", "")
    if effect not in ("Allow", "Deny"):
        raise MalformedPolicy("Effect must be Allow or Deny.")
    if not isinstance(sid, str):
        raise MalformedPolicy("Sid must be a string.")
    names, everyone, not_principals = _principals(raw)
    actions, not_actions = _one_of(raw, "Action", "NotAction")
    resources, not_resources = _one_of(raw, "Resource", "NotResource")
    for action in actions:
        if action != "*" and not (action.startswith(f"{service}:") and _ACTION.match(action)):
            raise MalformedPolicy(f"{action[:64]!r} is not an action of {service}.")
    if not_principals and effect == "Allow":
        raise MalformedPolicy("NotPrincipal is for Deny statements.")
    return Statement(
        sid,
        effect == "Allow",
        names,
        everyone,
        not_principals,
        frozenset(action for action in actions if not {"*", "?"} & set(action)),
        tuple(action for action in actions if {"*", "?"} & set(action)),
        not_actions,
        resources,
        not_resources,
        parse_conditions(raw["Condition"]) if "Condition" in raw else (),
    )


def _principals(raw: dict[str, Any]) -> tuple[frozenset[str], bool, bool]:
    if ("Principal" in raw) == ("NotPrincipal" in raw):
        raise MalformedPolicy("A statement needs Principal or NotPrincipal.")
    negated = "NotPrincipal" in raw
    value = raw["NotPrincipal" if negated else "Principal"]
    if isinstance(value, dict) and value.keys() == {"AWS"}:
        value = value["AWS"]
    elif value != "*":
        raise MalformedPolicy('Principal must be "*" or {"AWS": …}.')
    texts = _texts(value, "Principal")
    try:
        names = frozenset(check_principal(text) for text in texts if text != "*")
    except InvalidArn as error:
        raise MalformedPolicy(
            f"Policy contains a statement with an invalid principal: {error.detail}"
        ) from error
    return names, "*" in texts, negated


def _one_of(raw: dict[str, Any], name: str, negated_name: str) -> tuple[tuple[str, ...], bool]:
    if (name in raw) == (negated_name in raw):
        raise MalformedPolicy(f"A statement needs {name} or {negated_name}.")
    negated = negated_name in raw
    return _texts(raw[negated_name if negated else name], name), negated


def _texts(value: object, name: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) for item in items):
        raise MalformedPolicy(f"{name} must be a string or a list of strings.")
    return tuple(str(item) for item in items)
