"""What the handlers of IAM share: pages, checks, and entities as shapes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kmsd.authz.identity import compile_new_identity_policy
from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import page_of
from kmsd.iam.records import USER, Entity
from kmsd.iam.store import IamStore
from kmsfs.api.shapes import iam as shapes
from kmsfs.errors import (
    IamLimitExceeded,
    InvalidIamInput,
    LimitExceeded,
    MalformedIdentityPolicy,
    MalformedPolicy,
)

_T = TypeVar("_T")


def page(items: Sequence[_T], name: Callable[[_T], str], request: Any) -> tuple[list[_T], dict[str, Any]]:
    """Return (a page of sorted items, the fields that say whether there are more).

    Raises:
        InvalidMarker: if the request's marker was not made here.
    """
    by_name = {name(item): item for item in items}
    names, marker = page_of(sorted(by_name), request.max_items, request.marker)
    return [by_name[each] for each in names], {"is_truncated": marker is not None, "marker": marker}


def user_meant(store: IamStore, call: Call) -> Entity:
    """Return the user whom a request names, or the caller himself.

    Raises:
        NoSuchEntity: if there is no such user.
        InvalidIamInput: if it names nobody, and the caller is no user.
    """
    name: str | None = call.request.user_name
    if name is not None:
        return store.find(call.caller.account, USER, name)
    himself = store.of_arn(call.caller.principal)
    if himself is None or himself.kind != USER:
        raise InvalidIamInput("Must specify userName when calling with credentials of no user.")
    return himself


def attached_of(store: IamStore, entity: Entity) -> list[shapes.AttachedPolicy]:
    """Return the managed policies of an entity, as attached ones are shown."""
    found = (store.policy(entity.account, arn) for arn in entity.attached)
    return [shapes.AttachedPolicy(policy_name=policy.name, policy_arn=policy.arn) for policy in found]


def as_version(entity: Entity, version: str, *, whole: bool = False) -> shapes.PolicyVersion:
    """Return a version of a managed policy; `whole` with its text."""
    return shapes.PolicyVersion(
        document=entity.versions[version] if whole else None,
        version_id=version,
        is_default_version=version == entity.default_version,
        create_date=entity.version_dates[version],
    )


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


def boundary_of(entity: Entity) -> shapes.AttachedBoundary | None:
    """Return what limits an entity, as it is shown."""
    return shapes.AttachedBoundary(permissions_boundary_arn=entity.boundary) if entity.boundary else None


def tags_of(entity: Entity) -> list[shapes.Tag] | None:
    """Return an entity's tags, as they are shown."""
    return [shapes.Tag(key=key, value=value) for key, value in entity.tags.items()] or None


def as_user(entity: Entity, *, whole: bool = True) -> shapes.User:
    """Return a user's shape: whole, or as lists have it (IAM API reference, ListUsers)."""
    return shapes.User(
        path=entity.path, user_name=entity.name, user_id=entity.entity_id, arn=entity.arn, create_date=entity.created,
        permissions_boundary=boundary_of(entity) if whole else None, tags=tags_of(entity) if whole else None,
    )  # fmt: skip


def as_group(entity: Entity, *, whole: bool = True) -> shapes.Group:  # noqa: ARG001
    """Return a group's shape: lists have all of it."""
    return shapes.Group(
        path=entity.path, group_name=entity.name, group_id=entity.entity_id, arn=entity.arn, create_date=entity.created
    )  # fmt: skip


def as_role(entity: Entity, *, whole: bool = True) -> shapes.Role:
    """Return a role's shape: whole, or as lists have it (IAM API reference, ListRoles)."""
    return shapes.Role(
        path=entity.path, role_name=entity.name, role_id=entity.entity_id, arn=entity.arn, create_date=entity.created,
        assume_role_policy_document=entity.trust, description=entity.description,
        max_session_duration=entity.session_seconds,
        permissions_boundary=boundary_of(entity) if whole else None, tags=tags_of(entity) if whole else None,
    )  # fmt: skip


def as_policy(entity: Entity, attachments: int, *, whole: bool = True) -> shapes.Policy:
    """Return a managed policy's shape: whole, or as lists have it (IAM API reference, ListPolicies and Policy)."""
    return shapes.Policy(
        policy_name=entity.name, policy_id=entity.entity_id, arn=entity.arn, path=entity.path,
        default_version_id=entity.default_version, attachment_count=attachments, is_attachable=True,
        description=entity.description if whole else None, create_date=entity.created, update_date=entity.updated,
        tags=(tags_of(entity) or []) if whole else None,
    )  # fmt: skip
