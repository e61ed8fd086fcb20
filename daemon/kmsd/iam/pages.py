"""What the handlers of IAM share: pages, checks, and entities as shapes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kmsd.authz.identity import compile_new_identity_policy
from kmsd.dispatch.paging import page_of
from kmsd.iam.records import Entity
from kmsfs.api.shapes import iam as shapes
from kmsfs.errors import IamLimitExceeded, LimitExceeded, MalformedIdentityPolicy, MalformedPolicy

_T = TypeVar("_T")


def page(items: Sequence[_T], name: Callable[[_T], str], request: Any) -> tuple[list[_T], dict[str, Any]]:
    """Return (a page of sorted items, the fields that say whether there are more).

    Raises:
        InvalidMarker: if the request's marker was not made here.
    """
    by_name = {name(item): item for item in items}
    names, marker = page_of(sorted(by_name), request.max_items, request.marker)
    return [by_name[each] for each in names], {"is_truncated": marker is not None, "marker": marker}


def check_document(text: str) -> str:
    """Return a policy's text if it is an identity policy.

    Raises:
        MalformedIdentityPolicy: if it is not.
        IamLimitExceeded: if it is too long.
    """
    try:
        return compile_new_identity_policy("", text).text
    except MalformedPolicy as error:
        raise MalformedIdentityPolicy(error.detail) from error
    except LimitExceeded as error:
        raise IamLimitExceeded(error.detail) from error


def _boundary(entity: Entity) -> shapes.AttachedBoundary | None:
    return shapes.AttachedBoundary(permissions_boundary_arn=entity.boundary) if entity.boundary else None


def _tags(entity: Entity) -> list[shapes.Tag] | None:
    return [shapes.Tag(key=key, value=value) for key, value in entity.tags.items()] or None


def as_user(entity: Entity) -> shapes.User:
    """Return a user's shape."""
    return shapes.User(
        path=entity.path, user_name=entity.name, user_id=entity.entity_id, arn=entity.arn, create_date=entity.created,
        permissions_boundary=_boundary(entity), tags=_tags(entity),
    )  # fmt: skip


def as_group(entity: Entity) -> shapes.Group:
    """Return a group's shape."""
    return shapes.Group(
        path=entity.path, group_name=entity.name, group_id=entity.entity_id, arn=entity.arn, create_date=entity.created
    )  # fmt: skip


def as_role(entity: Entity) -> shapes.Role:
    """Return a role's shape."""
    return shapes.Role(
        path=entity.path, role_name=entity.name, role_id=entity.entity_id, arn=entity.arn, create_date=entity.created,
        assume_role_policy_document=entity.trust, description=entity.description,
        max_session_duration=entity.session_seconds, permissions_boundary=_boundary(entity), tags=_tags(entity),
    )  # fmt: skip


def as_policy(entity: Entity, attachments: int) -> shapes.Policy:
    """Return a managed policy's shape."""
    return shapes.Policy(
        policy_name=entity.name, policy_id=entity.entity_id, arn=entity.arn, path=entity.path,
        default_version_id=entity.default_version, attachment_count=attachments, is_attachable=True,
        description=entity.description, create_date=entity.created, update_date=entity.updated,
        tags=_tags(entity),
    )  # fmt: skip
