"""Ask the daemon, and its audit log, for what a report shows: as much as the caller may see."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmsfs.client.session import ClientSession
from kmsfs.errors import (
    AccessDenied,
    AuditChainBroken,
    Conflict,
    NotFound,
    StorageError,
    UnsupportedOperation,
)
from kmsfs.formats.audit import LOG_NAME
from kmsfs.report.timeline import make_timeline
from kmsfs.trail.reading import read_records

_USES = {
    "ENCRYPT_DECRYPT": "kms:Decrypt", "SIGN_VERIFY": "kms:Sign", "GENERATE_VERIFY_MAC": "kms:GenerateMac",
    "KEY_AGREEMENT": "kms:DeriveSharedSecret", "ENCAPSULATE_DECAPSULATE": "kms:Decapsulate",
}  # fmt: skip
_PAGE = {"Limit": 1000}
_MARKERS = ("Marker", "NextMarker")


def collect(session: ClientSession, log: Path | None, now: float, days: float, on_key: Callable[[int], None]) -> dict[str, Any]:
    """Return a report's document. `log` is the audit log if it is not the daemon's, `on_key` is told of each key that is done.

    Raises:
        KmsfsError: if the daemon does not answer. What single things are refused is said where they would be.
    """
    status = session.call("GetStatus", {})
    names: dict[str, list[str]] = {}
    for alias in session.pages("ListAliases", "Aliases", _PAGE, _MARKERS):
        names.setdefault(alias["TargetKeyId"], []).append(alias["AliasName"])
    keys = []
    for entry in session.pages("ListKeys", "Keys", _PAGE, _MARKERS):
        keys.append(_key(session, entry["KeyId"], sorted(names.get(entry["KeyId"], []))))
        on_key(1)
    place = log or Path(status["StateDirectory"]) / "audit" / LOG_NAME
    return {
        "generated": now, "account": status["Account"], "version": status["Version"], "principal": status["Principal"],
        "root_key_source": status["RootKeySource"], "uptime_seconds": status["UptimeSeconds"], "keys": keys,
        "volumes": sorted({(volume, key["arn"]) for key in keys for volume in key["volumes"]}),
        "audit": _audit(place, status["Account"], now - days * 86_400, now),
    }  # fmt: skip


def _key(session: ClientSession, key_id: str, aliases: list[str]) -> dict[str, Any]:
    told = session.call("DescribeKey", {"KeyId": key_id})["KeyMetadata"]
    depends = _asked(session, "ListKeyDependents", key_id) or {}
    rotation = _asked(session, "GetKeyRotationStatus", key_id) or {}
    used = depends.get("KeyLastUsage") or {}
    action = _USES.get(told["KeyUsage"], "kms:DescribeKey")
    allowed = _asked(session, "ListAuthorizedPrincipals", key_id, Action=action)
    return {
        "id": key_id, "arn": told["Arn"], "aliases": aliases, "description": told["Description"], "state": told["KeyState"],
        "spec": told["KeySpec"], "usage": told["KeyUsage"], "origin": told["Origin"], "created": told["CreationDate"],
        "deletion": told.get("DeletionDate"), "rotation_days": rotation.get("RotationPeriodInDays"),
        "next_rotation": rotation.get("NextRotationDate"), "last_used": used.get("Timestamp"), "last_use": used.get("Operation"),
        "volumes": depends.get("Volumes", []), "parameters": depends.get("Parameters"), "secrets": depends.get("Secrets"),
        "grants": depends.get("Grants"), "action": action,
        "principals": None if allowed is None else [
            {"principal": each["Principal"], "by": each["DecidedBy"], "conditional": each["Conditional"]} for each in allowed["Principals"]
        ],
    }  # fmt: skip


def _asked(session: ClientSession, operation: str, key_id: str, **more: Any) -> dict[str, Any] | None:
    """Ask of a key what the caller may not be allowed to know, or the key does not have; None then."""
    try:
        answer: dict[str, Any] = session.call(operation, {"KeyId": key_id, **more})
    except (AccessDenied, Conflict, NotFound, UnsupportedOperation):
        return None
    return answer


def _audit(log: Path, account: str, since: float, until: float) -> dict[str, Any]:
    try:
        return {"unreadable": None, **asdict(made := make_timeline(read_records(log, since), account, since, until)), "highest": made.highest}
    except (StorageError, AuditChainBroken) as error:
        return {"unreadable": error.detail, "since": since, "until": until}
