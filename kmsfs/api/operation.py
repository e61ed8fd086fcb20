"""What an operation is: names, shapes, resource, states, audit fields and errors in one value."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from kmsfs.errors import KmsfsError


class Shape(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, omit_defaults=True):
    """Base of every request and response: wire names in Pascal case, unknown fields refused."""


class KeyState(Enum):
    """States of a KMS key (KMS developer guide, "Key states of AWS KMS keys")."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"
    PENDING_DELETION = "PendingDeletion"
    PENDING_IMPORT = "PendingImport"

    __hash__ = object.__hash__  # Enum's own is Python code, and every call looks states and resources up.


class Resource(Enum):
    """What an operation acts on, which decides how it is authorised."""

    NONE = "none"
    """Nothing yet: any local principal that may connect. Lists answer only what the caller may see."""
    KEY = "key"
    """The KMS key named by `resource_field`."""
    CIPHERTEXT = "ciphertext"
    """The KMS key that the ciphertext blob names; KeyId, if given, must agree."""
    REENCRYPT = "reencrypt"
    """Two keys: that of the blob, for kms:ReEncryptFrom, and the destination, for kms:ReEncryptTo."""
    ALIAS = "alias"
    """The alias and the keys it points to, before and after."""
    GRANT = "grant"
    """A grant that its retiring principal, grantee or key owner may end."""
    VOLUME = "volume"
    """A volume of files under the KMS key named by `resource_field`."""
    PARAMETER = "parameter"
    """Parameters; each name is authorised on its own."""
    IAM = "iam"
    """The account's users, groups, roles and policies."""
    KEY_STORE = "key-store"
    """The account's custom key stores."""
    ORGANIZATION = "organization"
    """The realm's accounts, which the managing one manages."""
    SECRET = "secret"  # noqa: S105  (a kind of resource)
    """A secret, by its owner or its policy."""

    __hash__ = object.__hash__


ANY_STATE = frozenset(KeyState)
ENABLED = frozenset({KeyState.ENABLED})
NOT_PENDING = frozenset({KeyState.ENABLED, KeyState.DISABLED})
NOT_DELETED = NOT_PENDING | {KeyState.PENDING_IMPORT}
PENDING = frozenset({KeyState.PENDING_DELETION})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, completely declared."""

    name: str
    service: str
    action: str
    request: type[Shape]
    response: type[Shape]
    summary: str
    resource: Resource = Resource.NONE
    resource_field: str = ""
    key_states: frozenset[KeyState] = ANY_STATE
    cryptographic: bool = False
    grantable: bool = False
    usages: frozenset[str] = frozenset()
    """Key usages that the operation needs one of; empty: any."""
    mutates: bool = False
    cross_account: bool = False
    """Whether it may name a KMS key of another account, by ARN (KMS API reference, "Cross-account use"); cryptographic ones may."""
    streams: bool = False
    rules: tuple[Callable[[Any], None], ...] = ()
    audit: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    errors: tuple[type[KmsfsError], ...] = ()
    wire: str = ""
    """The name on the socket, where another service has an operation of the same name."""

    @property
    def wire_name(self) -> str:
        """The name on the socket: unique among all services."""
        return self.wire or self.name

    @property
    def method_name(self) -> str:
        """The client's method: boto3's snake case of the operation's name."""
        out = []
        for index, letter in enumerate(self.name):
            if letter.isupper() and index:
                out.append("_")
            out.append(letter.lower())
        return "".join(out)
