"""Parse and print identifiers: keys, aliases, grants, principals and their ARN-like names.

An ARN here is `arn:kmsfs:SERVICE:local:ACCOUNT:RESOURCE`; ACCOUNT is twelve digits made from the realm id, so
that tools which know AWS's account ids can carry it.
"""

import re
import uuid
from dataclasses import dataclass

from kmsfs.errors import InvalidAliasName, InvalidArn, KeyNotFound

PARTITION = "kmsfs"
REGION = "local"

_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]{1,250}\Z")
_PRINCIPAL = re.compile(
    r"arn:kmsfs:iam::(?P<account>\d{12}):(?P<resource>root|(uid|gid)/\d{1,10}|service/[a-z]{1,32})\Z"
)


def account_of_realm(realm_id: bytes) -> str:
    """Return the twelve decimal digits that name the realm (16 bytes) in ARNs."""
    return f"{int.from_bytes(realm_id[:8], 'big') % 10**12:012d}"


def key_arn(account: str, key_id: str) -> str:
    """Return the ARN of a KMS key."""
    return f"arn:{PARTITION}:kms:{REGION}:{account}:key/{key_id}"


def alias_arn(account: str, alias: str) -> str:
    """Return the ARN of an alias; `alias` carries its `alias/` prefix."""
    return f"arn:{PARTITION}:kms:{REGION}:{account}:{alias}"


def parameter_arn(account: str, name: str) -> str:
    """Return the ARN of a parameter; the leading slash of a path is merged, as Systems Manager does."""
    return f"arn:{PARTITION}:ssm:{REGION}:{account}:parameter/{name.lstrip('/')}"


def uid_principal(account: str, uid: int) -> str:
    """Return the principal of a local user."""
    return f"arn:{PARTITION}:iam::{account}:uid/{uid}"


def gid_principal(account: str, gid: int) -> str:
    """Return the principal of a local group."""
    return f"arn:{PARTITION}:iam::{account}:gid/{gid}"


def check_principal(text: str) -> str:
    """Return `text` if it is a principal's ARN.

    Raises:
        InvalidArn: if it is not.
    """
    if not _PRINCIPAL.match(text):
        raise InvalidArn(
            f"{text[:120]!r} is not a principal", hint="principals look like arn:kmsfs:iam::ACCOUNT:uid/1000"
        )
    return text


def check_alias(name: str) -> str:
    """Return `name` if an alias may have it.

    Raises:
        InvalidAliasName: if it lacks the prefix, is too long, has a foreign character, or is reserved.
    """
    if not name.startswith("alias/"):
        raise InvalidAliasName('Alias must start with the prefix "alias/".')
    if not _ALIAS.match(name):
        raise InvalidAliasName(
            f"Alias {name[:80]!r} has a character that aliases may not have, or is too long."
        )
    if name.startswith("alias/aws/"):
        raise InvalidAliasName("Aliases beginning with alias/aws/ are reserved.")
    return name


def is_key_id(text: str) -> bool:
    """Tell whether `text` is a canonical lower-case UUID."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class KeyReference:
    """What a KeyId parameter names: a key by id, or an alias."""

    key_id: str | None
    alias: str | None


def parse_key_reference(text: str, account: str) -> KeyReference:
    """Read a KeyId parameter: id, key ARN, `alias/NAME` or alias ARN.

    Raises:
        KeyNotFound: if it is none of them, with AWS's text.
        InvalidArn: if it is an ARN of another kind.
    """
    resource = text
    if text.startswith("arn:"):
        parts = text.split(":", 5)
        if len(parts) != 6 or parts[1] != PARTITION or parts[2] != "kms":
            raise InvalidArn(f"Invalid arn {text[:120]!r}")
        if parts[3] != REGION or parts[4] != account:
            raise KeyNotFound(f"Key '{text}' does not exist")
        resource = parts[5].removeprefix("key/")
    if resource.startswith("alias/"):
        return KeyReference(None, resource)
    if is_key_id(resource):
        return KeyReference(resource, None)
    raise KeyNotFound(f"Invalid keyId {text[:120]!r}")
