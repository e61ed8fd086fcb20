"""ARNs at the door: AWS's clients speak of `arn:aws:kms:REGION:…`, the daemon of `arn:kmsfs:kms:REGION:…`.

One region, the home region, is the socket's: there the daemon says `local`. The default keys of services are called
`alias/aws/ssm` by AWS's clients and `alias/kmsfs/ssm` by the daemon.

Only fields that hold ARNs are translated, key policies wherever they name one, and of an encryption context only the
value that Parameter Store binds. Everything else, secrets first of all, passes unchanged.
"""

import re
from typing import Any

from kmsfs.ids import PARTITION, REGION

_FIELDS = frozenset(
    {
        "AliasArn", "AliasName", "Arn", "PermissionsBoundary", "PermissionsBoundaryArn", "PolicyArn", "PolicySourceArn",
        "ResourceArns", "RoleArn", "arn", "ARN", "CreatedBy", "DestinationKeyId", "GranteePrincipal", "InvalidParameters", "IssuingAccount", "KeyArn", "KeyId",
        "DeletedParameters", "KeyIds", "KmsKeyId", "KmsKeyIds", "LastModifiedUser", "MasterAccountArn", "Name", "Names", "ResourceArn", "RetiringPrincipal", "SecretId", "SecretIdList", "SerialNumber", "SourceKeyId", "TargetKeyId",
    }
)  # fmt: skip
_DOCUMENTS = frozenset(
    {"AssumeRolePolicyDocument", "Document", "Policy", "PolicyDocument", "PermissionsBoundaryPolicyInputList", "PolicyInputList", "ResourcePolicy"}
)
_BOUND_BY_SSM = "PARAMETER_ARN"
_SERVICES = "(kms|ssm|secretsmanager)"
_OTHER = r"[a-z0-9-]+:\d{12}:"
_AWS_DEFAULT = r"alias/aws/(ssm|secretsmanager)\Z"
_OUR_DEFAULT = r"alias/kmsfs/(ssm|secretsmanager)\Z"


class ArnTranslation:
    """Translates for one region."""

    def __init__(self, region: str, home_region: str) -> None:
        self.region = REGION if region == home_region else region
        """What the daemon calls the region."""
        shown = re.escape(region)
        self._inward = (
            (re.compile(rf"arn:aws:{_SERVICES}:{shown}:(?=\d{{12}}:)"), rf"arn:{PARTITION}:\1:{self.region}:"),
            (re.compile(rf"arn:aws:{_SERVICES}:(?={_OTHER})"), rf"arn:{PARTITION}:\1:"),
            (re.compile(r"arn:aws:(iam|sts|organizations)::(?=\d{12}:)"), rf"arn:{PARTITION}:\1::"),
            (re.compile(rf"\b{_AWS_DEFAULT}"), r"alias/kmsfs/\1"),
        )
        self._outward = (
            (re.compile(rf"arn:{PARTITION}:{_SERVICES}:{self.region}:(?=\d{{12}}:)"), rf"arn:aws:\1:{region}:"),
            (re.compile(rf"arn:{PARTITION}:{_SERVICES}:(?={_OTHER})"), r"arn:aws:\1:"),
            (re.compile(rf"arn:{PARTITION}:(iam|sts|organizations)::(?=\d{{12}}:)"), r"arn:aws:\1::"),
            (re.compile(rf"\b{_OUR_DEFAULT}"), r"alias/aws/\1"),
        )

    def inward(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return a request in the daemon's words."""
        return _walk(request, self._inward)

    def outward(self, response: dict[str, Any]) -> dict[str, Any]:
        """Return a response in AWS's words."""
        return _walk(response, self._outward)

    def outward_text(self, text: str) -> str:
        """Return an error's text in AWS's words."""
        return _replace(text, self._outward)


_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _replace(text: str, rules: _Rules) -> str:
    for pattern, by in rules:
        text = pattern.sub(by, text)
    return text


def _walk(value: dict[str, Any], rules: _Rules) -> dict[str, Any]:
    # A filter by key (Systems Manager API reference, "ParameterStringFilter") names keys in its values.
    by_key = value.get("Key") == "KeyId"
    return {name: _field("KeyIds" if by_key and name == "Values" else name, item, rules) for name, item in value.items()}


def _field(name: str, value: Any, rules: _Rules) -> Any:
    if isinstance(value, str):
        whole = name in _FIELDS and value.startswith(("arn:", "alias/"))
        return _replace(value, rules) if whole or name in _DOCUMENTS else value
    if isinstance(value, dict):
        if name.startswith("EncryptionContext") or name.endswith("EncryptionContext"):
            return {
                key: _replace(item, rules) if key == _BOUND_BY_SSM and isinstance(item, str) else item
                for key, item in value.items()
            }
        return _walk(value, rules)
    if isinstance(value, list):
        return [_field(name, item, rules) for item in value]
    return value
