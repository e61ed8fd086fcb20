"""Parse and print identifiers: keys, aliases, grants, principals and their ARN-like names.

An ARN here is `arn:kmsfs:SERVICE:REGION:ACCOUNT:RESOURCE`; ACCOUNT is twelve digits made from the realm id, so
that tools which know AWS's account ids can carry it. What comes over the socket is of the region `local`. Region and
account together are a *scope*, `REGION:ACCOUNT`: keys, aliases, parameters and secrets of one scope know nothing of
another's, as at AWS.
"""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from kmsfs.errors import InvalidAliasCharacters, InvalidArn, KeyNotFound, ReservedAlias

PARTITION = "kmsfs"
REGION = "local"
MULTI_REGION = "mrk-"
_REMEMBERED = 4096
"""Identifiers are few and come again and again: this many of each kind are not read twice."""

_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]{1,250}\Z")
_NAMED = r"(?:[\w+=,.@-]{1,64}/){0,8}[\w+=,.@-]{1,128}"
_PRINCIPAL = re.compile(
    r"arn:kmsfs:iam::(?P<account>\d{12}):"
    rf"(?P<resource>root|(uid|gid)/\d{{1,10}}|service/[a-z]{{1,32}}|unit/[\w:.\\@-]{{1,255}}|(user|role)/{_NAMED})\Z"
    rf"|arn:kmsfs:sts::\d{{12}}:assumed-role/{_NAMED}\Z"
)
_UNIQUE_ID = re.compile(r"A(IDA|ROA)[A-Z2-7]{17}\Z")


def account_of_realm(realm_id: bytes) -> str:
    """Return the twelve decimal digits that name the realm (16 bytes) in ARNs."""
    return f"{int.from_bytes(realm_id[:8], 'big') % 10**12:012d}"


def realm_of_account(account: str, rng: Callable[[int], bytes]) -> bytes:
    """Return a random realm id (16 bytes) whose account is the given one.

    Raises:
        InvalidArn: if the account has not twelve digits.
    """
    if not re.fullmatch(r"\d{12}", account):
        raise InvalidArn(f"{account[:40]!r} is no account id", hint="an account id has twelve digits")
    room = ((1 << 64) - 1 - int(account)) // 10**12
    factor = int.from_bytes(rng(8), "big") % room
    return (int(account) + factor * 10**12).to_bytes(8, "big") + rng(8)


def scope_of(account: str, region: str = REGION) -> str:
    """Return the scope of a region of an account."""
    return f"{region}:{account}"


def region_of(scope: str) -> str:
    """Return the region of a scope."""
    return scope.partition(":")[0]


def account_of(scope: str) -> str:
    """Return the account of a scope."""
    return scope.partition(":")[2]


def key_arn(scope: str, key_id: str) -> str:
    """Return the ARN of a KMS key."""
    return f"arn:{PARTITION}:kms:{scope}:key/{key_id}"


def alias_arn(scope: str, alias: str) -> str:
    """Return the ARN of an alias; `alias` carries its `alias/` prefix."""
    return f"arn:{PARTITION}:kms:{scope}:{alias}"


@lru_cache(_REMEMBERED)
def parameter_arn(scope: str, name: str) -> str:
    """Return the ARN of a parameter; the leading slash of a path is merged, as Systems Manager does."""
    return f"arn:{PARTITION}:ssm:{scope}:parameter/{name.lstrip('/')}"


def secret_arn(scope: str, resource: str) -> str:
    """Return the ARN of a secret; `resource` is its name with the six random characters at its end."""
    return f"arn:{PARTITION}:secretsmanager:{scope}:secret:{resource}"


def uid_principal(account: str, uid: int) -> str:
    """Return the principal of a local user."""
    return f"arn:{PARTITION}:iam::{account}:uid/{uid}"


def gid_principal(account: str, gid: int) -> str:
    """Return the principal of a local group."""
    return f"arn:{PARTITION}:iam::{account}:gid/{gid}"


def unit_principal(account: str, unit: str) -> str:
    """Return the principal of a systemd unit, such as `app.service`."""
    return f"arn:{PARTITION}:iam::{account}:unit/{unit}"


def root_principal(account: str) -> str:
    """Return the principal of an account itself."""
    return f"arn:{PARTITION}:iam::{account}:root"


def iam_arn(account: str, kind: str, path: str, name: str) -> str:
    """Return the ARN of an IAM user, group, role or policy; `path` begins and ends with a slash."""
    return f"arn:{PARTITION}:iam::{account}:{kind}{path}{name}"


def organization_arn(management: str, organization: str) -> str:
    """Return the ARN of a realm as an organization of accounts; `management` is the account that manages it."""
    return f"arn:{PARTITION}:organizations::{management}:organization/{organization}"


def account_arn(management: str, organization: str, account: str) -> str:
    """Return the ARN of an account within its organization."""
    return f"arn:{PARTITION}:organizations::{management}:account/{organization}/{account}"


def session_principal(account: str, role: str, session: str) -> str:
    """Return the principal of a session of an assumed role."""
    return f"arn:{PARTITION}:sts::{account}:assumed-role/{role}/{session}"


def check_principal(text: str) -> str:
    """Return `text` if it is a principal's ARN; twelve digits stand for that account.

    Raises:
        InvalidArn: if it is not.
    """
    if re.fullmatch(r"\d{12}", text):
        return root_principal(text)
    if not _PRINCIPAL.match(text):
        raise InvalidArn(
            f"{text[:120]!r} is not a principal", hint="principals look like arn:kmsfs:iam::ACCOUNT:uid/1000"
        )
    return text


def is_unique_id(text: str) -> bool:
    """Tell whether `text` is what stands in a policy or grant for a user or role that is gone: his unique id, which nobody else gets.

    Source: IAM user guide, "IAM identifiers", Unique identifiers.
    """
    return _UNIQUE_ID.match(text) is not None


def check_alias(name: str) -> str:
    """Return `name` if an alias may have it.

    Raises:
        InvalidAliasCharacters: if it lacks the prefix, is too long, or has a foreign character.
        ReservedAlias: if it is one of AWS's own.
    """
    if not name.startswith("alias/"):
        raise InvalidAliasCharacters(
            'Alias must start with the prefix "alias/". Please see '
            "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html"
        )
    if not _ALIAS.match(name):
        raise InvalidAliasCharacters(f"{name[:300]} contains invalid characters for an alias")
    if name.startswith("alias/aws/"):
        raise ReservedAlias(hint="aliases beginning with alias/aws/ are reserved")  # AWS says no more than the code
    return name


def is_key_id(text: str) -> bool:
    """Tell whether `text` is a key's id: a lower-case UUID, or `mrk-` and its 32 digits for a multi-Region key."""
    try:
        if text.startswith(MULTI_REGION):
            return uuid.UUID(text.removeprefix(MULTI_REGION)).hex == text.removeprefix(MULTI_REGION)
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def multi_region_id(made: uuid.UUID) -> str:
    """Return the id of a multi-Region key (KMS developer guide, "Multi-Region keys in AWS KMS")."""
    return MULTI_REGION + made.hex


@lru_cache(_REMEMBERED)
def owner_of(key_id: str) -> bytes:
    """Return the 16 bytes by which ciphertext names a key."""
    return uuid.UUID(key_id.removeprefix(MULTI_REGION)).bytes


@dataclass(frozen=True, slots=True)
class KeyReference:
    """What a KeyId parameter names: a key's id and ARN, or the ARN of an alias."""

    key_id: str
    arn: str
    alias: bool


@lru_cache(_REMEMBERED)
def parse_key_reference(text: str, scope: str) -> KeyReference:
    """Read a KeyId parameter: id, key ARN, `alias/NAME` or alias ARN.

    Raises:
        KeyNotFound: if it is none of them, or an ARN of another region, with AWS's text.
        InvalidArn: if it is an ARN of another kind.
    """
    resource = text
    if text.startswith("arn:"):
        parts = text.split(":", 5)
        if len(parts) != 6 or parts[1] != PARTITION or parts[2] != "kms":
            raise InvalidArn(f"Invalid arn {text[:120]!r}")
        if parts[3] != region_of(scope):
            raise KeyNotFound(f"Invalid arn {parts[3][:64]}")
        scope, resource = f"{parts[3]}:{parts[4]}", parts[5].removeprefix("key/")
    if resource.startswith("alias/"):
        return KeyReference("", alias_arn(scope, resource), alias=True)
    if is_key_id(resource):
        return KeyReference(resource, key_arn(scope, resource), alias=False)
    raise KeyNotFound(f"Invalid keyId '{text[:120]}'")
