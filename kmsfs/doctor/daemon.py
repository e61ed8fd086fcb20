"""The key daemon that answers: its state folder, root key, backups, keys and grants."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kmsfs.client.session import ClientSession
from kmsfs.doctor.finding import Finding, Level, fine
from kmsfs.errors import AuditChainBroken, KmsfsError, StorageError
from kmsfs.formats.audit import LOG_NAME
from kmsfs.trail.reading import last_records, read_records

BACKUP_STAMP = "last-backup.json"
_DAY = 86_400.0
_BACKUP_DAYS = 7
_KEY_DAYS = 365
_GRANT_DAYS = 90
_FREE_BYTES = 256 << 20
_CLOCK_SECONDS = 60.0


def examine_daemon(session: ClientSession, now: float) -> Iterator[Finding]:
    """Yield what the daemon that answers is like; its files only as far as this user may read them."""
    try:
        status = session.call("GetStatus", {})
    except KmsfsError as error:
        yield Finding("daemon", Level.PROBLEM, error.detail, "nothing can be opened without it", error.hint)
        return
    yield fine("daemon", f"kmsd {status['Version']}, you are {status['Principal']}")
    state = Path(status["StateDirectory"])
    yield _root_key(status)
    if status.get("DamagedRecords"):
        yield Finding(
            "state", Level.PROBLEM, f"{status['DamagedRecords']} records of the state are damaged",
            "what they were is refused, and the disk may be failing", "restore a backup of the state; look at the daemon's log",
        )  # fmt: skip
    if os.access(state, os.R_OK | os.X_OK):
        yield from _state(state, now)
    else:
        yield Finding("state", Level.ADVICE, f"{state} is not yours to look into", "", "run this as root for backups and modes")
    yield from _keys(session, state, now)


def _root_key(status: dict[str, Any]) -> Finding:
    source = status["RootKeySource"]
    if source != "keyfile":
        return fine("root key", source)
    return Finding(
        "root key", Level.ADVICE, "a keyfile in the state folder",
        "whoever has that folder, or a copy of it, has every key",
        "keep the folder on an encrypted disk, or move the root key to a passphrase, a systemd credential or a token: kmsd change-root",
    )  # fmt: skip


def _state(state: Path, now: float) -> Iterator[Finding]:
    loose = [folder for folder in state.parents if _others_write(folder)]
    if loose:
        yield Finding(
            "folders", Level.PROBLEM, f"everybody can write {loose[0]}",
            f"whoever can write there can put something else in the place of {state}", f"chmod go-w {loose[0]}",
        )  # fmt: skip
    if stat.S_IMODE(state.stat().st_mode) & 0o077:
        yield Finding(
            "state", Level.PROBLEM, f"others can look into {state}",
            "sealed as it is, a copy is all that an attack on a passphrase needs; with a keyfile it is everything",
            f"chmod -R go= {state}",
        )  # fmt: skip
    else:
        yield fine("state", f"{state} is for its owner only")
    free = shutil.disk_usage(state).free
    if free < _FREE_BYTES:
        yield Finding(
            "space", Level.WARNING, f"{free >> 20} MiB free where the state lies",
            "an audit log that cannot be written stops every answer", "make room; old parts of the log go by themselves with kmsd serve --audit-keep DAYS",
        )  # fmt: skip
    else:
        yield fine("space", f"{free >> 30} GiB free where the state lies")
    yield _clock(state, now)
    yield _backup(state, now)


def _others_write(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _clock(state: Path, now: float) -> Finding:
    last = _last_record(state / "audit" / LOG_NAME)
    stamp = float(last.get("ts", 0.0))
    if stamp > now + _CLOCK_SECONDS:
        return Finding(
            "clock", Level.WARNING, f"the audit log is {stamp - now:.0f} s ahead of this machine's clock",
            "conditions on time, expiry and rotation go by the clock", "timedatectl set-ntp true",
        )  # fmt: skip
    return fine("clock", "not behind the audit log")


def _last_record(log: Path) -> dict[str, Any]:
    try:
        return last_records(log, 1)[-1]
    except (AuditChainBroken, StorageError, IndexError):
        return {}


def _backup(state: Path, now: float) -> Finding:
    mend = f"kmsd backup FOLDER --state {state}; as a service: systemctl enable --now kmsd-backup.timer"
    why = "without its state, what the daemon's keys protect is lost; the recovery code alone brings nothing back"
    try:
        stamp = json.loads((state / BACKUP_STAMP).read_text(encoding="utf-8"))
        age, archive = now - float(stamp["created"]), str(stamp["archive"])
    except (OSError, ValueError, KeyError):
        return Finding("backup", Level.WARNING, "none was ever made", why, mend)
    if age > _BACKUP_DAYS * _DAY:
        return Finding("backup", Level.WARNING, f"the last is {age / _DAY:.0f} days old: {archive}", why, mend)
    if not os.path.exists(archive):
        return Finding("backup", Level.ADVICE, f"{archive} is gone", "moved elsewhere, if all is well", "")
    if os.stat(archive).st_dev == state.stat().st_dev:
        return Finding(
            "backup", Level.ADVICE, f"{archive} lies on the disk of the state", "one disk that fails takes both",
            "copy it to another machine",
        )  # fmt: skip
    return fine("backup", f"{archive}, {age / _DAY:.1f} days old")


def _keys(session: ClientSession, state: Path, now: float) -> Iterator[Finding]:
    described, grants = [], []
    for item in _all(session, "ListKeys", "Keys", {}):
        try:
            described.append(session.call("DescribeKey", {"KeyId": item["KeyId"]})["KeyMetadata"])
            grants += _all(session, "ListGrants", "Grants", {"KeyId": item["KeyId"]})
        except KmsfsError:
            continue
    leaving = [key for key in described if key["KeyState"] == "PendingDeletion"]
    for key in leaving:
        days = (key["DeletionDate"] - now) / _DAY
        yield Finding(
            "keys", Level.WARNING, f"{key['KeyId']} is deleted in {days:.0f} days",
            "all that it protects is lost then", f"kmsfs key cancel-deletion {key['KeyId']}",
        )  # fmt: skip
    old = [key for key in described if _unrotated(session, key, now)]
    if old:
        yield Finding(
            "rotation", Level.ADVICE,
            f"{len(old)} keys are older than a year and do not rotate: {', '.join(key['KeyId'] for key in old[:3])}",
            "a key's material that leaks opens everything that it ever wrapped", f"kmsfs key auto-rotate {old[0]['KeyId']}",
        )  # fmt: skip
    if not leaving and not old:
        yield fine("keys", f"{len(described)} that you may see, none on its way out")
    yield _grants(grants, state, now)


def _unrotated(session: ClientSession, key: dict[str, Any], now: float) -> bool:
    if key["KeyState"] != "Enabled" or key.get("KeySpec") != "SYMMETRIC_DEFAULT" or now - key["CreationDate"] < _KEY_DAYS * _DAY:
        return False
    try:
        rotates = session.call("GetKeyRotationStatus", {"KeyId": key["KeyId"]})["KeyRotationEnabled"]
    except KmsfsError:
        return False
    return not rotates


def _grants(grants: list[dict[str, Any]], state: Path, now: float) -> Finding:
    old = [grant for grant in grants if now - grant["CreationDate"] > _GRANT_DAYS * _DAY]
    used = _deciding(state / "audit" / LOG_NAME) if old else set()
    if used is None:
        return fine("grants", f"{len(grants)} that you may see; the audit log is not yours to read")
    idle = [grant["GrantId"] for grant in old if f"grant:{grant['GrantId']}" not in used]
    if idle:
        return Finding(
            "grants", Level.ADVICE, f"{len(idle)} are older than {_GRANT_DAYS} days and never used: {idle[0]}",
            "what nobody needs only helps who steals it", "kmsfs grant revoke KEY GRANT",
        )  # fmt: skip
    return fine("grants", f"{len(grants)} that you may see")


def _deciding(log: Path) -> set[str] | None:
    """Every statement and grant that decided a call, by the audit log."""
    try:
        return {record.get("by", "") for record in read_records(log)}
    except (AuditChainBroken, StorageError):
        return None


def _all(session: ClientSession, operation: str, items: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    marker: dict[str, Any] = {}
    while True:
        page = session.call(operation, {**request, **marker})
        found += page[items]
        if not page.get("Truncated"):
            return found
        marker = {"Marker": page["NextMarker"]}

