"""Condition blocks of a policy: operators and values, as the IAM reference defines them.

Source: IAM user guide, "IAM JSON policy elements: Condition operators" and "Single-valued vs. multivalued
context keys". A key that the request does not have fails a plain operator, and passes a negated one or one with
IfExists.
"""

import base64
import datetime
import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from kmsd.authz.wildcard import matches
from kmsfs.errors import MalformedPolicy

RequestValues = Mapping[str, str | list[str]]
"""Condition keys of a request; a list is a multivalued key."""

_Test = Callable[[str, str], bool]
PRINCIPAL_TAG, RESOURCE_TAG, REQUEST_TAG = "aws:PrincipalTag/", "aws:ResourceTag/", "aws:RequestTag/"
_CONTEXT = "kms:EncryptionContext:"
CALLERS_OWN = (_CONTEXT, PRINCIPAL_TAG)
"""What keys begin with that every question has and that end in a name of the caller's."""
RESOURCE_TAGS = {"ssm": "ssm:resourceTag/", "secretsmanager": "secretsmanager:ResourceTag/", "iam": "iam:ResourceTag/"}
"""What else than aws:ResourceTag/ the tags of a service's resources are called."""
_TAGS = (PRINCIPAL_TAG, RESOURCE_TAG, REQUEST_TAG, *RESOURCE_TAGS.values())
REQUEST_KEYS = (
    "aws:CurrentTime", "aws:EpochTime", "aws:MultiFactorAuthAge", "aws:MultiFactorAuthPresent", "aws:PrincipalAccount", "aws:PrincipalArn", "aws:SourceIp", "aws:TagKeys", "aws:username",
    "kms:BypassPolicyLockoutSafetyCheck", "kms:CallerAccount", "kms:EncryptionAlgorithm", "kms:EncryptionContextKeys",
    "kms:GrantConstraintType", "kms:GrantIsForAWSResource", "kms:GrantOperations", "kms:GranteePrincipal", "kms:KeyOrigin", "kms:KeySpec", "kms:KeyUsage",
    "kms:MacAlgorithm", "kms:MessageType", "kms:RequestAlias", "kms:ResourceAliases", "kms:RetiringPrincipal",
    "kms:ScheduleKeyDeletionPendingWindowInDays", "kms:SigningAlgorithm", "kms:ViaService", "kms:WrappingAlgorithm",
    "kmsfs:VolumeId", "secretsmanager:BlockPublicPolicy", "secretsmanager:Description",
    "secretsmanager:ForceDeleteWithoutRecovery", "secretsmanager:KmsKeyId", "secretsmanager:Name",
    "secretsmanager:RecoveryWindowInDays", "secretsmanager:RotateImmediately", "secretsmanager:RotationLambdaARN",
    "secretsmanager:SecretId", "secretsmanager:VersionId", "secretsmanager:VersionStage", "ssm:Overwrite", "ssm:Policies",
    "ssm:Recursive", "sts:ExternalId", "sts:RoleSessionName", "sts:TransitiveTagKeys",
)  # fmt: skip
"""All keys that a request may have, but those that end in a name of the caller's own: contexts and tags."""
ALWAYS_THERE = frozenset(
    {
        "aws:CurrentTime", "aws:EpochTime", "aws:MultiFactorAuthAge", "aws:MultiFactorAuthPresent", "aws:PrincipalAccount", "aws:PrincipalArn", "aws:SourceIp", "aws:username", "kms:CallerAccount",
        "kms:EncryptionContextKeys", "kms:ViaService", "kmsfs:VolumeId",
    }
)  # fmt: skip
"""The keys that every question has, as contexts are; the others are looked up where a policy asks for them."""
_SPELLINGS = {key.casefold(): key for key in REQUEST_KEYS}


def tag_key(prefix: str, name: str) -> str:
    """Return the condition key of a tag; the case of its name does not count, of two that differ in it one is seen."""
    return prefix + name.casefold()


def spelling_of(key: str) -> str:
    """Return a condition key as requests spell it: case does not count, but in the names of contexts.

    Source: IAM user guide, "IAM JSON policy elements: Condition", and "Controlling access to AWS resources using tags";
    KMS developer guide, "kms:EncryptionContext:context-key".
    """
    folded = key.casefold()
    for prefix in _TAGS:
        if folded.startswith(prefix.casefold()):
            return tag_key(prefix, key[len(prefix) :])
    if folded.startswith(_CONTEXT.casefold()):
        return _CONTEXT + key[len(_CONTEXT) :]
    return _SPELLINGS.get(key.casefold(), key)


def _number(text: str) -> float:
    number = float(text)
    if math.isnan(number):
        raise ValueError("not a number")
    return number


def _date(text: str) -> float:
    try:
        return _number(text)
    except ValueError:
        date = datetime.datetime.fromisoformat(text)
        # W3C's dates without a zone, and days, are UTC's here, wherever the daemon runs.
        return (date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)).timestamp()


@lru_cache(maxsize=1024)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def _binary(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _numeric(compare: Callable[[float, float], bool], read: Callable[[str], float]) -> _Test:
    def test(actual: str, wanted: str) -> bool:
        try:
            return compare(read(actual), read(wanted))
        except (ValueError, OverflowError):
            return False

    return test


def _within(actual: str, wanted: str) -> bool:
    try:
        return ipaddress.ip_address(actual) in _network(wanted)
    except ValueError:
        return False


def _same_bytes(actual: str, wanted: str) -> bool:
    try:
        return _binary(actual) == _binary(wanted)
    except ValueError:
        return False


def _equal(actual: str, wanted: str) -> bool:
    return actual == wanted


def _equal_any_case(actual: str, wanted: str) -> bool:
    return actual.casefold() == wanted.casefold()


def _like(actual: str, wanted: str) -> bool:
    return matches(wanted, actual)


_POSITIVE: dict[str, _Test] = {
    "StringEquals": _equal,
    "StringEqualsIgnoreCase": _equal_any_case,
    "StringLike": _like,
    "ArnEquals": _like,
    "ArnLike": _like,
    "Bool": _equal_any_case,
    "BinaryEquals": _same_bytes,
    "IpAddress": _within,
}
_NEGATIVE: dict[str, _Test] = {
    "StringNotEquals": _equal,
    "StringNotEqualsIgnoreCase": _equal_any_case,
    "StringNotLike": _like,
    "ArnNotEquals": _like,
    "ArnNotLike": _like,
    "NotIpAddress": _within,
}
_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "Bool": (_truth, "true or false"), "Null": (_truth, "true or false"), "BinaryEquals": (_binary, "text in base64"),
    "IpAddress": (_network, "an address or a network, such as 203.0.113.0/24"),
    "NotIpAddress": (_network, "an address or a network, such as 203.0.113.0/24"),
}  # fmt: skip
"""What reads the values of an operator, where not every text is one, and what it reads."""
for _prefix, _read, _what in (("Numeric", _number, "a number"), ("Date", _date, "a date, such as 2026-01-31T00:00:00Z")):
    _POSITIVE[f"{_prefix}Equals"] = _numeric(lambda a, b: a == b, _read)
    _NEGATIVE[f"{_prefix}NotEquals"] = _numeric(lambda a, b: a == b, _read)
    _POSITIVE[f"{_prefix}LessThan"] = _numeric(lambda a, b: a < b, _read)
    _POSITIVE[f"{_prefix}LessThanEquals"] = _numeric(lambda a, b: a <= b, _read)
    _POSITIVE[f"{_prefix}GreaterThan"] = _numeric(lambda a, b: a > b, _read)
    _POSITIVE[f"{_prefix}GreaterThanEquals"] = _numeric(lambda a, b: a >= b, _read)
    _READERS |= {name: (_read, _what) for name in (*_POSITIVE, *_NEGATIVE) if name.startswith(_prefix)}


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one key with its values (any of which may match)."""

    operator: str
    key: str
    values: tuple[str, ...]
    qualifier: str
    if_exists: bool

    def holds(self, request: RequestValues) -> bool:
        """Evaluate against a request."""
        actual = request.get(self.key)
        if self.operator == "Null":
            return any((actual is None) == (value.lower() == "true") for value in self.values)
        if actual is None:
            return self.if_exists or self.qualifier == "ForAllValues" or self.operator in _NEGATIVE
        values = actual if isinstance(actual, list) else [actual]
        if self.qualifier == "ForAllValues":
            return all(self._one(value) for value in values)
        if self.operator in _NEGATIVE and self.qualifier != "ForAnyValue":
            return all(self._one(value) for value in values)
        return any(self._one(value) for value in values)

    def _one(self, actual: str) -> bool:
        negative = _NEGATIVE.get(self.operator)
        if negative:
            return not any(negative(actual, value) for value in self.values)
        test = _POSITIVE[self.operator]
        return any(test(actual, value) for value in self.values)


def parse_conditions(block: object) -> tuple[Condition, ...]:
    """Read a Condition element.

    Raises:
        MalformedPolicy: if it is not one, or an operator is unknown.
    """
    if not isinstance(block, dict):
        raise MalformedPolicy("Condition must be an object")
    found = []
    for operator, keys in block.items():
        qualifier, _, rest = operator.rpartition(":")
        base = rest.removesuffix("IfExists")
        if qualifier not in ("", "ForAllValues", "ForAnyValue") or not _known(base, rest):
            raise MalformedPolicy(f"unknown condition operator {operator[:64]!r}")
        if not isinstance(keys, dict) or not keys:
            raise MalformedPolicy(f"condition operator {operator} needs an object of keys")
        found += [
            Condition(base, spelling_of(key), _values(key, raw), qualifier, base != rest) for key, raw in keys.items()
        ]
    return tuple(found)


def refuse_unreadable(conditions: tuple[Condition, ...], *, variables: bool) -> None:
    """Refuse conditions whose values cannot be read as what their operators compare; such a one is never met, that of a Deny neither.

    `variables` tells whether a value with `${` is read only when a request has been asked for.

    Raises:
        MalformedPolicy: if there is one.
    """
    for condition in conditions:
        reader, what = _READERS.get(condition.operator, (str, ""))
        for value in condition.values:
            if variables and "${" in value:
                continue
            try:
                reader(value)
            except (ValueError, KeyError, OverflowError):
                raise MalformedPolicy(
                    f"The value {value[:64]!r} of {condition.operator} on {condition.key[:64]} cannot be read: it takes {what}."
                ) from None


def _known(base: str, rest: str) -> bool:
    return base in _POSITIVE or base in _NEGATIVE or (base == "Null" and rest == "Null")


def _values(key: str, raw: object) -> tuple[str, ...]:
    items = raw if isinstance(raw, list) else [raw]
    texts = []
    for item in items:
        if isinstance(item, bool):
            texts.append("true" if item else "false")
        elif isinstance(item, (str, int, float)):
            texts.append(str(item))
        else:
            raise MalformedPolicy(f"condition key {key[:64]!r} has a value that is no string")
    return tuple(texts)
