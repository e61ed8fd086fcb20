"""One statement of a policy: its parts, and what it speaks of (IAM user guide, "IAM JSON policy elements reference"). Pure."""

import re
from dataclasses import dataclass, replace
from typing import Any

from kmsd.authz.conditions import ALWAYS_THERE, CALLERS_OWN, Condition, RequestValues, parse_conditions
from kmsd.authz.variables import Unresolved, has_variables, literal, resolve
from kmsd.authz.wildcard import matches
from kmsfs.errors import InvalidArn, MalformedPolicy
from kmsfs.ids import check_principal, is_unique_id

_ACTION = re.compile(r"[A-Za-z0-9-]+:[A-Za-z0-9*?-]+\Z")
IDENTITY_ELEMENTS = frozenset(
    {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)
RESOURCE_ELEMENTS = IDENTITY_ELEMENTS | {"Principal", "NotPrincipal"}


@dataclass(frozen=True, slots=True)
class Statement:
    """One compiled statement."""

    sid: str
    allow: bool
    principals: frozenset[str]
    everyone: bool
    not_principals: bool
    exact_actions: frozenset[str]
    """In lower case: the case of actions does not count (IAM user guide, "IAM JSON policy elements: Action")."""
    action_patterns: tuple[str, ...]
    not_actions: bool
    resources: tuple[str, ...]
    not_resources: bool
    conditions: tuple[Condition, ...]
    variables: bool = False
    """Whether resources or conditions have policy variables."""

    @property
    def asks_for_values(self) -> bool:
        """Whether it needs the call's condition keys at all."""
        return self.variables or bool(self.conditions)

    @property
    def asks_of_the_request(self) -> bool:
        """Whether it needs condition keys that not every question has."""
        return self.variables or any(
            condition.key not in ALWAYS_THERE and not condition.key.startswith(CALLERS_OWN)
            for condition in self.conditions
        )

    def names(self, principals: frozenset[str]) -> bool:
        """Tell whether the statement is about a caller who has these names."""
        named = self.everyone or not self.principals.isdisjoint(principals)
        return named != self.not_principals

    def speaks_of(self, action: str, resource: str, request: RequestValues) -> bool:
        """Tell whether the statement is about this action on this resource, under its conditions."""
        return self.is_about(action) and self.holds(resource, request)

    def is_about(self, action: str) -> bool:
        """Tell whether the statement is about this action, on whatever resource."""
        lowered = action.lower()
        acted = lowered in self.exact_actions or _any_matches(self.action_patterns, lowered)
        return acted != self.not_actions

    def holds(self, resource: str, request: RequestValues) -> bool:
        """Tell whether the statement is about this resource, under its conditions, for an action that it is about."""
        if self.variables:
            return self._speaks_with_variables(resource, request)
        if _any_matches(self.resources, resource) == self.not_resources:
            return False
        return not self.conditions or all(condition.holds(request) for condition in self.conditions)


    def _speaks_with_variables(self, resource: str, request: RequestValues) -> bool:
        try:
            resources = resolve(self.resources, request, strict=self.allow)
            conditions = [
                replace(condition, values=resolve(condition.values, request, strict=self.allow))
                for condition in self.conditions
            ]
        except Unresolved:
            return False
        plain = {
            key: literal(value) if isinstance(value, str) else [literal(item) for item in value]
            for key, value in request.items()
        }
        if _any_matches(resources, literal(resource)) == self.not_resources:
            return False
        return all(condition.holds(plain) for condition in conditions)


def _any_matches(patterns: tuple[str, ...], text: str) -> bool:
    # A plain loop: this runs on every call, and a generator costs more than most patterns.
    for pattern in patterns:  # noqa: SIM110
        if pattern == "*" or matches(pattern, text):
            return True
    return False


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's fields (for `object_pairs_hook`).

    Raises:
        MalformedPolicy: if one is there twice.
    """
    if len({key for key, _ in pairs}) != len(pairs):
        raise MalformedPolicy("The policy repeats a field.")
    return dict(pairs)


ANY_SERVICE = "any"
"""Stands for all services, in policies that are no resource's."""
SERVICES = ("kms:", "ssm:", "secretsmanager:", "iam:", "sts:", "organizations:", "kmsfs:")


def compile_statement(
    raw: object, service: str | None, elements: frozenset[str], *, version: str | None
) -> Statement:
    """Return a compiled statement: of a resource of `service`, or of an identity where that is None.

    Policy variables count if the `version` of the policy is 2012-10-17.

    Raises:
        MalformedPolicy: if it is none.
    """
    if not isinstance(raw, dict) or not raw.keys() <= elements:
        raise MalformedPolicy(
            "A statement is an object with Effect, Principal, Action, Resource and Condition."
        )
    effect, sid = raw.get("Effect"), raw.get("Sid", "")
    if effect not in ("Allow", "Deny"):
        raise MalformedPolicy("Effect must be Allow or Deny.")
    if not isinstance(sid, str):
        raise MalformedPolicy("Sid must be a string.")
    names, everyone, not_principals = (
        _principals(raw) if service is not None else (frozenset[str](), True, False)
    )
    actions, not_actions = _one_of(raw, "Action", "NotAction")
    resources: tuple[str, ...]
    if service == "sts":
        # A trust policy speaks of its own role.
        resources, not_resources = ("*",), False
    else:
        resources, not_resources = _one_of(raw, "Resource", "NotResource")
    for action in actions:
        spoken_of = SERVICES if service == ANY_SERVICE else (f"{service}:",)
        foreign = service is not None and not action.lower().startswith(spoken_of)
        if action != "*" and (foreign or not _ACTION.match(action)):
            raise MalformedPolicy(f"{action[:64]!r} is not an action of {service or 'a service'}.")
    if not_principals and effect == "Allow":
        raise MalformedPolicy("NotPrincipal is for Deny statements.")
    conditions = parse_conditions(raw["Condition"]) if "Condition" in raw else ()
    texts = (*resources, *(value for condition in conditions for value in condition.values))
    return Statement(
        sid,
        effect == "Allow",
        names,
        everyone,
        not_principals,
        frozenset(action.lower() for action in actions if not {"*", "?"} & set(action)),
        tuple(action.lower() for action in actions if {"*", "?"} & set(action)),
        not_actions,
        resources,
        not_resources,
        conditions,
        version == "2012-10-17" and has_variables(texts),
    )


def _principals(raw: dict[str, Any]) -> tuple[frozenset[str], bool, bool]:
    if ("Principal" in raw) == ("NotPrincipal" in raw):
        raise MalformedPolicy("A statement needs Principal or NotPrincipal.")
    negated = "NotPrincipal" in raw
    value = raw["NotPrincipal" if negated else "Principal"]
    if isinstance(value, dict) and value and value.keys() <= {"AWS", "Service", "Federated"}:
        # Services and identity providers of AWS's do not call here; they are kept and match nobody.
        value = value.get("AWS", [])
        if value == []:
            return frozenset(), False, negated
    elif value != "*":
        raise MalformedPolicy('Principal must be "*" or {"AWS": …}.')
    texts = _texts(value, "Principal")
    try:
        names = frozenset(text if is_unique_id(text) else check_principal(text) for text in texts if text != "*")
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
