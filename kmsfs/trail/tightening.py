"""The least that a key's policy must allow, told from what the audit log shows to have been used."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kmsfs.api.operation import Resource
from kmsfs.api.registry import OPERATIONS
from kmsfs.trail.reading import principal_of

ADMINISTRATION = (
    "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:CreateGrant", "kms:DeleteAlias", "kms:DeleteImportedKeyMaterial", "kms:Describe*", "kms:DisableKey",
    "kms:DisableKeyRotation", "kms:EnableKey", "kms:EnableKeyRotation", "kms:Get*", "kms:ImportKeyMaterial", "kms:List*",
    "kms:PutKeyPolicy", "kms:RevokeGrant", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion", "kms:TagResource",
    "kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription",
)  # fmt: skip
"""What key administrators do, none of which uses a key (KMS developer guide, "Allows key administrators to administer the KMS key")."""
_SAME_AT_LEAST = 5
"""Calls from which on a value that all of them have in the encryption context becomes a condition."""
_OF_ONE_CALL = frozenset({"kmsfs:file", "PARAMETER_ARN", "SecretARN", "SecretVersionId"})
"""Names of the encryption context that differ with each thing: no condition, however few there were."""
_VOLUME_PURPOSE = "volume-root"


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a key was used: by whom, for what, under which encryption context, through which service."""

    principal: str
    action: str
    context: tuple[tuple[str, str], ...] = ()
    via: str | None = None


@dataclass(slots=True)
class Observed:
    """What the log shows of one key."""

    uses: dict[Use, int]
    """How often each way was used, where the policy allowed it."""
    grants: set[str]
    """Ids of the grants that allowed something."""


def observe(records: Iterable[dict[str, Any]], key_arn: str, account: str, since: float) -> Observed:
    """Gather the successful uses of a key since a time, in seconds since the epoch."""
    found = Observed(defaultdict(int), set())
    for record in records:
        if record.get("err") or record.get("req", "-") == "-" or record["ts"] < since:
            continue
        if key_arn not in (record.get("key"), record.get("source")):
            continue
        by = str(record.get("by", ""))
        if by.startswith("grant:"):
            found.grants.add(by.removeprefix("grant:"))
            continue
        principal = _of_role(principal_of(record, account))
        for action in _actions(record, key_arn):
            found.uses[Use(principal, action, _context(record), record.get("svc"))] += 1
    found.uses = dict(found.uses)
    return found


def propose(policy: dict[str, Any], uses: dict[Use, int], administrators: list[str]) -> dict[str, Any]:
    """Return a policy that denies what this one denies, lets its administrators administer, and allows what was used."""
    denials = [statement for statement in _statements(policy) if statement.get("Effect") == "Deny"]
    statements = [*denials]
    if administrators:
        statements.append(
            {"Sid": "Administrators", "Effect": "Allow", "Principal": {"AWS": sorted(administrators)}, "Action": list(ADMINISTRATION), "Resource": "*"}
        )
    taken = {statement.get("Sid") for statement in statements}
    for principal, condition, actions in _grouped(uses, frozenset(administrators)):
        statement = {
            "Sid": _sid(principal, taken), "Effect": "Allow", "Principal": {"AWS": principal}, "Action": actions, "Resource": "*",
        }  # fmt: skip
        if condition:
            statement["Condition"] = {"StringEquals": dict(condition)}
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def _grouped(
    uses: dict[Use, int], administrators: frozenset[str]
) -> list[tuple[str, tuple[tuple[str, str], ...], list[str]]]:
    """Return (principal, conditions, actions) of every statement that is needed."""
    by_action: dict[tuple[str, str], dict[Use, int]] = defaultdict(dict)
    for use, count in uses.items():
        if not (use.principal in administrators and is_administration(use.action)):
            by_action[use.principal, use.action][use] = count
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
    for (principal, action), ways in by_action.items():
        grouped[principal, _condition(ways)].append(action)
    return [(principal, condition, sorted(actions)) for (principal, condition), actions in sorted(grouped.items())]


def _condition(ways: dict[Use, int]) -> tuple[tuple[str, str], ...]:
    """Return what all calls had in common, if there were enough of them to tell."""
    first, *others = ways
    same = dict(first.context)
    services = {first.via}
    for way in others:
        pairs = dict(way.context)
        same = {name: value for name, value in same.items() if pairs.get(name) == value}
        services.add(way.via)
    condition = {}
    if sum(ways.values()) >= _SAME_AT_LEAST:
        condition = {f"kms:EncryptionContext:{name}": value for name, value in same.items() if name not in _OF_ONE_CALL}
    via = services.pop() if len(services) == 1 else None
    if via is not None:
        condition["kms:ViaService"] = via
    return tuple(sorted(condition.items()))


def is_administration(action: str) -> bool:
    """Whether an action is among those of administrators."""
    return any(
        action == known or (known.endswith("*") and action.startswith(known.removesuffix("*"))) for known in ADMINISTRATION
    )


def _actions(record: dict[str, Any], key_arn: str) -> list[str]:
    if record["op"] == "ReEncrypt":
        ends = (("kms:ReEncryptFrom", record.get("source")), ("kms:ReEncryptTo", record.get("key")))
        return [action for action, arn in ends if arn == key_arn]
    operation = OPERATIONS.get(record["op"])
    # What acts on no key yet, as CreateKey does, is not the key policy's to allow.
    asked = operation is not None and operation.resource is not Resource.NONE and operation.action.startswith("kms:")
    return [operation.action] if operation is not None and asked else []


def _context(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    operation = OPERATIONS.get(record["op"])
    if operation is not None and operation.resource is Resource.VOLUME:
        volume = str(record.get("params", {}).get("volume_id", ""))
        return (("kmsfs:purpose", _VOLUME_PURPOSE), ("kmsfs:volume", volume))
    return tuple(sorted(record.get("ec", {}).items()))


def _of_role(principal: str) -> str:
    """A role's session is allowed what its role is."""
    head, _, resource = principal.rpartition(":")
    kind, _, rest = resource.partition("/")
    return f"{head}:role/{rest.partition('/')[0]}" if kind == "assumed-role" else principal


def _statements(policy: dict[str, Any]) -> list[dict[str, Any]]:
    found = policy.get("Statement", [])
    return [found] if isinstance(found, dict) else list(found)


def _sid(principal: str, taken: set[Any]) -> str:
    base = "UsedBy" + "".join(word.capitalize() for word in re.split(r"[^A-Za-z0-9]+", principal.rpartition(":")[2]))
    name, number = base, 2
    while name in taken:
        name, number = f"{base}n{number}", number + 1
    taken.add(name)
    return name
