"""Parameter policies, purely: what they say, and what is due by them at a point in time.

Source: Systems Manager user guide, "Assigning parameter policies in Parameter Store".
"""

import datetime
import json
from dataclasses import dataclass
from typing import Any

from kmsfs.errors import (
    IncompatibleParameterPolicy,
    InvalidParameterPolicyAttribute,
    InvalidParameterPolicyType,
    ParameterPoliciesLimit,
)

EXPIRATION, EXPIRATION_NOTICE, NO_CHANGE_NOTICE = "Expiration", "ExpirationNotification", "NoChangeNotification"
POLICIES_MAX = 10
_UNITS = {"Days": 86_400, "Hours": 3600}


@dataclass(frozen=True, slots=True)
class ParameterPolicy:
    """One policy: `at` is when it is due, in seconds since the epoch; None where that hangs on another policy."""

    kind: str
    text: str
    at: float | None
    seconds: float = 0.0


def read_policies(text: str, modified: float) -> list[ParameterPolicy]:
    """Read the Policies of a PutParameter: a JSON list; an empty one takes all policies away.

    Raises:
        InvalidParameterPolicyType: for an unknown type, or text that is no list of policies.
        InvalidParameterPolicyAttribute: for an attribute that is missing or wrong.
        IncompatibleParameterPolicy: for two expirations, or a notice of an expiration that is not there.
        ParameterPoliciesLimit: for more than ten.
    """
    if not text.strip():
        return []
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameterPolicyType("The policies are not valid JSON.") from error
    items = [items] if isinstance(items, dict) else items
    if not isinstance(items, list):
        raise InvalidParameterPolicyType("The policies are a list of objects.")
    if len(items) > POLICIES_MAX:
        raise ParameterPoliciesLimit(f"A parameter has at most {POLICIES_MAX} policies.")
    found = [_read(item, modified) for item in items if item != {}]
    expirations = [policy for policy in found if policy.kind == EXPIRATION]
    if len(expirations) > 1:
        raise IncompatibleParameterPolicy("A parameter has one Expiration policy.")
    if not expirations and any(policy.kind == EXPIRATION_NOTICE for policy in found):
        raise IncompatibleParameterPolicy("An ExpirationNotification needs an Expiration policy.")
    return [_dated(policy, expirations[0].at if expirations else None) for policy in found]


def _read(item: Any, modified: float) -> ParameterPolicy:
    if not isinstance(item, dict) or not isinstance(item.get("Attributes"), dict):
        raise InvalidParameterPolicyType("A policy has Type, Version and Attributes.")
    kind, attributes = item.get("Type"), item["Attributes"]
    if kind not in (EXPIRATION, EXPIRATION_NOTICE, NO_CHANGE_NOTICE) or item.get("Version") != "1.0":
        raise InvalidParameterPolicyType(f"{str(kind)[:64]!r} is no type of policy in version 1.0.")
    text = json.dumps(item, separators=(",", ":"))
    if kind == EXPIRATION:
        return ParameterPolicy(kind, text, _moment(attributes.get("Timestamp")))
    span = _span(attributes, "Before" if kind == EXPIRATION_NOTICE else "After")
    return ParameterPolicy(kind, text, modified + span if kind == NO_CHANGE_NOTICE else None, span)


def _dated(policy: ParameterPolicy, expiration: float | None) -> ParameterPolicy:
    if policy.kind != EXPIRATION_NOTICE or expiration is None:
        return policy
    return ParameterPolicy(policy.kind, policy.text, expiration - policy.seconds, policy.seconds)


def _moment(value: object) -> float:
    try:
        moment = datetime.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidParameterPolicyAttribute("Timestamp is a time with its zone, such as 2030-12-02T21:34:33.000Z.")
    return moment.timestamp()


def _span(attributes: dict[str, Any], name: str) -> float:
    unit, number = attributes.get("Unit"), attributes.get(name)
    if unit not in _UNITS or not isinstance(number, (str, int)) or isinstance(number, bool):
        raise InvalidParameterPolicyAttribute(f"{name} is a number, and Unit is Days or Hours.")
    text = str(number)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 100_000:
        raise InvalidParameterPolicyAttribute(f"{name} is a positive number.")
    return float(int(text) * _UNITS[unit])


def expiration_of(policies: list[ParameterPolicy]) -> float | None:
    """Return when a parameter expires, None if never."""
    return next((policy.at for policy in policies if policy.kind == EXPIRATION), None)


def notices_due(policies: list[ParameterPolicy], told: int, now: float) -> list[tuple[int, str]]:
    """Return (bit, kind) of the notices that are due and not in the bit set `told` yet."""
    return [
        (1 << position, policy.kind)
        for position, policy in enumerate(policies)
        if policy.kind != EXPIRATION and policy.at is not None and policy.at <= now and not told >> position & 1
    ]
