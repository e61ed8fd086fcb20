"""The ARN that an operation of IAM acts on (Service Authorization Reference, "Actions, resources, and condition keys for IAM")."""

from dataclasses import replace
from typing import Any

from kmsd.authz.principal import Caller
from kmsd.iam.records import GROUP, MFA, POLICY, ROLE, USER, Entity
from kmsd.iam.store import IamStore
from kmsfs.ids import iam_arn

EVERYTHING = "*"
"""What lists act on: a statement about one entity does not allow them."""
_NAMED = (("group_name", GROUP), ("role_name", ROLE), ("user_name", USER))


def resource_of(request: Any, caller: Caller, store: IamStore, *, himself: bool) -> str:
    """Return the ARN that a statement must match for a request, or EVERYTHING.

    An entity that is there has its own path; one to be made has that of the request. Who names no user means `himself`
    in IAM's operations; in PutAccessKey he means the account root.
    """
    own = store.of_arn(caller.principal) if himself and hasattr(request, "user_name") else None
    if own is not None and own.kind == USER and request.user_name is None:
        return own.arn
    for field, kind in _NAMED:
        name = getattr(request, field, None)
        if name:
            return _arn(store, caller.account, kind, name, getattr(request, "path", "/"))
    device = getattr(request, "virtual_mfa_device_name", None)
    if device:
        return iam_arn(caller.account, MFA, request.path, device)
    for field in ("policy_arn", "policy_source_arn", "serial_number"):
        arn: str | None = getattr(request, field, None)
        if arn:
            return arn
    name = getattr(request, "policy_name", None)
    if name:
        return _arn(store, caller.account, POLICY, name, getattr(request, "path", "/"))
    return EVERYTHING


def renamed(request: Any, caller: Caller, store: IamStore) -> str | None:
    """Return the ARN that a user or group is to have from now on, None if none is to have another one.

    Source: IAM API reference, UpdateUser: "you must have permission on both the source and target object".
    """
    for field, kind in _NAMED:
        if not hasattr(request, f"new_{field}"):
            continue
        found = store.get(caller.account, kind, getattr(request, field))
        if found is None:
            return None
        arn = moved(found, request).arn
        return arn if arn != found.arn else None
    return None


def moved(entity: Entity, request: Any) -> Entity:
    """Return a user or group under the name and path that an UpdateUser or UpdateGroup asks for."""
    name: str = getattr(request, f"new_{entity.kind}_name") or entity.name
    path: str = request.new_path or entity.path
    return replace(entity, arn=iam_arn(entity.account, entity.kind, path, name), path=path, name=name)


def _arn(store: IamStore, account: str, kind: str, name: str, path: str) -> str:
    found = store.get(account, kind, name)
    return found.arn if found is not None else iam_arn(account, kind, path, name)
