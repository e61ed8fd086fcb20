"""A record as CloudTrail would have it (CloudTrail user guide, "CloudTrail record contents"; KMS guide, "Logging")."""

import uuid
from typing import Any

from kmsfs.api.registry import OPERATIONS
from kmsfs.trail.reading import principal_of
from kmsfs.trail.tables import time_of

_SOURCES = {
    "kms": "kms.amazonaws.com", "ssm": "ssm.amazonaws.com", "secretsmanager": "secretsmanager.amazonaws.com",
    "sts": "sts.amazonaws.com", "iam": "iam.amazonaws.com", "organizations": "organizations.amazonaws.com",
}  # fmt: skip
_NAMESPACE = uuid.UUID("b6c1f6de-5f0c-4a75-9e0b-6f3b4c8e2a11")


def cloudtrail_event(record: dict[str, Any], account: str, region: str) -> dict[str, Any]:
    """Return the event of a record. Nothing is made up: what the log does not have is null."""
    operation = OPERATIONS.get(record["op"])
    service = operation.service if operation is not None else "kmsfs"
    caller = principal_of(record, account)
    by_hand = "uid" in record and record.get("req", "-") != "-"
    key = record.get("key")
    event: dict[str, Any] = {
        "eventVersion": "1.11",
        "userIdentity": _identity(record, caller),
        "eventTime": time_of(record),
        "eventSource": _SOURCES.get(service, "kmsfs.local"),
        "eventName": operation.name if operation is not None else record["op"],
        "awsRegion": region,
        "sourceIPAddress": record.get("svc") or f"unix:uid={record.get('uid')},gid={record.get('gid')},pid={record.get('pid')}",
        "userAgent": None,
        "requestParameters": _parameters(record),
        "responseElements": None,
        "additionalEventData": {"sequenceNumber": record["seq"], "decidedBy": record.get("by")},
        "requestID": record.get("req"),
        "eventID": str(uuid.uuid5(_NAMESPACE, f"{record.get('prev')}:{record['seq']}")),
        "readOnly": not operation.mutates if operation is not None else False,
        "resources": [{"ARN": key, "accountId": key.split(":")[4], "type": "AWS::KMS::Key"}] if key else [],
        "eventType": "AwsApiCall" if by_hand else "AwsServiceEvent",
        "managementEvent": True,
        "recipientAccountId": caller.split(":")[4],
        "eventCategory": "Management",
    }
    if record.get("err"):
        event["errorCode"] = str(record["err"]).removesuffix("Exception")
    return event


def _identity(record: dict[str, Any], arn: str) -> dict[str, Any]:
    if record.get("req", "-") == "-":
        return {"type": "AWSService", "invokedBy": "kmsd"}
    resource = arn.rpartition(":")[2]
    kinds = {"user": "IAMUser", "assumed-role": "AssumedRole", "root": "Root"}
    kind = kinds.get(resource.partition("/")[0], "LocalUser")
    identity = {"type": kind, "principalId": resource, "arn": arn, "accountId": arn.split(":")[4], "accessKeyId": record.get("akid", "")}
    if kind == "IAMUser":
        identity["userName"] = resource.rpartition("/")[2]
    return identity


def _parameters(record: dict[str, Any]) -> dict[str, Any] | None:
    found = {_lower(name): value for name, value in record.get("params", {}).items()}
    if "ec" in record:
        found["encryptionContext"] = record["ec"]
    return found or None


def _lower(name: str) -> str:
    """`key_id` and `KeyId` as CloudTrail writes them: keyId."""
    words = name.split("_")
    joined = words[0] + "".join(word.title() for word in words[1:])
    return joined[:1].lower() + joined[1:]
