"""Shapes of grant operations."""

from typing import Annotated

from msgspec import Meta

from kmsfs.api.operation import Shape
from kmsfs.api.shapes.common import (
    Context,
    GrantIdText,
    GrantOperation,
    GrantTokens,
    GrantTokenText,
    KeyIdText,
    Limit,
    Marker,
    PrincipalText,
    Seconds,
)

GrantName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9:/_-]+$")]


class GrantConstraints(Shape, kw_only=True):
    """Encryption context that a cryptographic call must carry: exactly, or at least."""

    encryption_context_subset: Context | None = None
    encryption_context_equals: Context | None = None


class CreateGrantRequest(Shape, kw_only=True):
    """Who may do what with the key, and who may retire the grant. Beyond AWS: for how long, and why."""

    key_id: KeyIdText
    grantee_principal: PrincipalText
    retiring_principal: PrincipalText | None = None
    operations: Annotated[list[GrantOperation], Meta(min_length=1)]
    constraints: GrantConstraints | None = None
    grant_tokens: GrantTokens = []
    name: GrantName | None = None
    dry_run: bool = False
    expires_in_seconds: Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)] | None = None
    reason: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class CreateGrantResponse(Shape, kw_only=True):
    """The grant's id and a token that makes it usable at once."""

    grant_token: str
    grant_id: str


class ListGrantsRequest(Shape, kw_only=True):
    """A page of a key's grants."""

    key_id: KeyIdText
    limit: Limit = 50
    marker: Marker | None = None
    grant_id: GrantIdText | None = None
    grantee_principal: PrincipalText | None = None


class ListRetirableGrantsRequest(Shape, kw_only=True):
    """A page of the grants that a principal may retire."""

    retiring_principal: PrincipalText
    limit: Limit = 50
    marker: Marker | None = None


class GrantEntry(Shape, kw_only=True):
    """A grant in a list."""

    key_id: str
    grant_id: str
    name: str | None = None
    creation_date: Seconds
    grantee_principal: str
    retiring_principal: str | None = None
    issuing_account: str
    operations: list[str]
    constraints: GrantConstraints | None = None
    expiration_date: Seconds | None = None
    reason: str | None = None


class ListGrantsResponse(Shape, kw_only=True):
    """A page of grants."""

    grants: list[GrantEntry]
    next_marker: str | None = None
    truncated: bool


class RetireGrantRequest(Shape, kw_only=True):
    """The grant by token, or by key and id."""

    grant_token: GrantTokenText | None = None
    key_id: KeyIdText | None = None
    grant_id: GrantIdText | None = None
    dry_run: bool = False


class RevokeGrantRequest(Shape, kw_only=True):
    """The grant by key and id."""

    key_id: KeyIdText
    grant_id: GrantIdText
    dry_run: bool = False
