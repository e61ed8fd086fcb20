"""Handlers of users, groups and roles: one service a kind, as their operations are the same."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kmsd.authz.policy import compile_new_policy
from kmsd.dispatch.call import Call, Handler
from kmsd.iam.pages import as_group, as_role, as_user, check_document, page
from kmsd.iam.records import GROUP, PREFIXES, ROLE, USER, Entity
from kmsd.iam.resources import moved
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import with_tags
from kmsfs.aead.nonces import Rng
from kmsfs.api.operation import Shape
from kmsfs.api.shapes import iam as shapes
from kmsfs.api.shapes import identities
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    DeleteConflict,
    EntityAlreadyExists,
    IamLimitExceeded,
    LimitExceeded,
    MalformedIdentityPolicy,
    MalformedPolicy,
    NoSuchEntity,
)
from kmsfs.ids import iam_arn

PER_KIND_MAX = 5000
_ATTACHED_MAX = 20
_SHAPES = {USER: shapes.USERS, GROUP: shapes.GROUPS, ROLE: shapes.ROLES}
_AS: dict[str, Callable[..., Shape]] = {USER: as_user, GROUP: as_group, ROLE: as_role}


def new_entity_id(kind: str, rng: Rng) -> str:
    """Return a unique id in AWS's form: a prefix for the kind, and 17 characters."""
    return PREFIXES[kind] + base64.b32encode(rng(11)).decode()[:17]


def compile_trust(text: str) -> str:
    """Return a trust policy's text if it is one.

    Raises:
        MalformedIdentityPolicy: if it is not.
    """
    try:
        return compile_new_policy(text, "sts").text
    except (MalformedPolicy, LimitExceeded) as error:
        raise MalformedIdentityPolicy(error.detail) from error


class EntityService:
    """The operations of one kind."""

    def __init__(self, kind: str, store: IamStore, rng: Rng) -> None:
        self._kind = kind
        self._store = store
        self._rng = rng
        self._shapes = _SHAPES[kind]
        self._as = _AS[kind]

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of this kind by their operations' names."""
        kind = self._shapes.kind
        found: dict[str, Handler] = {
            f"Create{kind}": self.create,
            f"Delete{kind}": self.delete,
            f"List{kind}s": self.listing,
            f"Put{kind}Policy": self.put_policy,
            f"Get{kind}Policy": self.get_policy,
            f"List{kind}Policies": self.list_policies,
            f"Delete{kind}Policy": self.delete_policy,
            f"Attach{kind}Policy": self.attach,
            f"Detach{kind}Policy": self.detach,
            f"ListAttached{kind}Policies": self.list_attached,
        }
        if self._kind != ROLE:
            found[f"Update{kind}"] = self.update
        if self._kind != GROUP:
            found[f"Put{kind}PermissionsBoundary"] = self.put_boundary
            found[f"Delete{kind}PermissionsBoundary"] = self.delete_boundary
        return found

    def named(self, call: Call) -> Entity:
        """Return the entity that a request names."""
        return self._store.find(call.caller.account, self._kind, getattr(call.request, f"{self._kind}_name"))

    def one(self, entity: Entity) -> Shape:
        """Return the answer that holds one entity."""
        made: Any = self._shapes.one
        answer: Shape = made(**{self._kind: self._as(entity)})
        return answer

    # --- the entity itself -----------------------------------------------------------------------------------

    def create(self, call: Call) -> Shape:
        """Create one."""
        request, account = call.request, call.caller.account
        name: str = getattr(request, f"{self._kind}_name")
        if self._store.get(account, self._kind, name) is not None:
            raise EntityAlreadyExists(f"{self._shapes.kind} with name {name} already exists.")
        if len(self._store.all_of(account, self._kind)) >= PER_KIND_MAX:
            raise IamLimitExceeded(f"Cannot exceed quota of {PER_KIND_MAX} {self._kind}s.")
        boundary = getattr(request, "permissions_boundary", None)
        if boundary is not None:
            self._store.policy(account, boundary)
        trust = compile_trust(request.assume_role_policy_document) if self._kind == ROLE else ""
        entity = Entity(
            self._kind, iam_arn(account, self._kind, request.path, name), account, request.path, name,
            new_entity_id(self._kind, self._rng), call.now, call.now, boundary=boundary, trust=trust,
            description=getattr(request, "description", None),
            session_seconds=getattr(request, "max_session_duration", 3600),
            tags=with_tags({}, getattr(request, "tags", ())),
        )  # fmt: skip
        self._store.put(entity)
        return self.one(entity)

    def update(self, call: Call) -> Empty:
        """Give one another name or path: all that belongs to him, and all that names him, follows."""
        entity = self.named(call)
        changed = moved(entity, call.request)
        present = self._store.get(entity.account, self._kind, changed.name)
        if present is not None and present.entity_id != entity.entity_id:
            raise EntityAlreadyExists(f"{self._shapes.kind} with name {changed.name} already exists.")
        if changed != entity:
            self._store.rename(entity, replace(changed, updated=call.now))
        return Empty()

    def delete(self, call: Call) -> Empty:
        """Delete one."""
        entity = self.named(call)
        if entity.inline or entity.attached:
            raise DeleteConflict("Cannot delete entity, must detach all policies first.")
        if entity.groups:
            raise DeleteConflict("Cannot delete entity, must remove users from group first.")
        if self._kind == USER and self._store.keys_of(entity.account, entity.name):
            raise DeleteConflict("Cannot delete entity, must delete access keys first.")
        if self._kind == USER and self._store.devices_of(entity.account, entity.name):
            raise DeleteConflict("Cannot delete entity, must delete MFA device first.")
        if self._kind == GROUP and self._store.members(entity):
            raise DeleteConflict("Cannot delete entity, must remove users from group first.")
        self._store.remove(entity)
        return Empty()

    def listing(self, call: Call) -> Shape:
        """List them by name."""
        found = [
            entity
            for entity in self._store.all_of(call.caller.account, self._kind)
            if entity.path.startswith(call.request.path_prefix)
        ]
        entities, more = page(found, lambda entity: entity.name, call.request)
        made: Any = self._shapes.listed
        answer: Shape = made(**{f"{self._kind}s": [self._as(entity, whole=False) for entity in entities]}, **more)
        return answer

    # --- policies -----------------------------------------------------------------------------------------------

    def put_policy(self, call: Call) -> Empty:
        """Put an inline policy."""
        entity = self.named(call)
        document = check_document(call.request.policy_document)
        self._change(call, entity, inline={**entity.inline, call.request.policy_name: document})
        return Empty()

    def get_policy(self, call: Call) -> Shape:
        """Get an inline policy."""
        entity = self.named(call)
        made: Any = self._shapes.inline_policy
        answer: Shape = made(
            **{f"{self._kind}_name": entity.name}, policy_name=call.request.policy_name,
            policy_document=self._inline(entity, call.request.policy_name),
        )  # fmt: skip
        return answer

    def delete_policy(self, call: Call) -> Empty:
        """Delete an inline policy."""
        entity, gone = self.named(call), call.request.policy_name
        self._inline(entity, gone)
        inline = {name: text for name, text in entity.inline.items() if name != gone}
        self._change(call, entity, inline=inline)
        return Empty()

    def list_policies(self, call: Call) -> shapes.PolicyNamesResponse:
        """List inline policies."""
        names, more = page(list(self.named(call).inline), lambda name: name, call.request)
        return shapes.PolicyNamesResponse(policy_names=names, **more)

    def attach(self, call: Call) -> Empty:
        """Attach a managed policy."""
        entity = self.named(call)
        policy = self._store.policy(entity.account, call.request.policy_arn)
        if policy.arn not in entity.attached:
            if len(entity.attached) >= _ATTACHED_MAX:
                raise IamLimitExceeded(f"Cannot exceed quota for PoliciesPerEntity: {_ATTACHED_MAX}")
            self._change(call, entity, attached=(*entity.attached, policy.arn))
        return Empty()

    def detach(self, call: Call) -> Empty:
        """Detach a managed policy."""
        entity, arn = self.named(call), call.request.policy_arn
        if arn not in entity.attached:
            raise NoSuchEntity(f"Policy {arn} was not found.")
        self._change(call, entity, attached=tuple(each for each in entity.attached if each != arn))
        return Empty()

    def list_attached(self, call: Call) -> shapes.AttachedPoliciesResponse:
        """List attached policies."""
        entity = self.named(call)
        policies = [self._store.policy(entity.account, arn) for arn in entity.attached]
        policies = [policy for policy in policies if policy.path.startswith(call.request.path_prefix)]
        found, more = page(policies, lambda policy: policy.name, call.request)
        attached = [shapes.AttachedPolicy(policy_name=p.name, policy_arn=p.arn) for p in found]
        return shapes.AttachedPoliciesResponse(attached_policies=attached, **more)

    def put_boundary(self, call: Call) -> Empty:
        """Put a permissions boundary."""
        entity = self.named(call)
        policy = self._store.policy(entity.account, call.request.permissions_boundary)
        self._change(call, entity, boundary=policy.arn)
        return Empty()

    def delete_boundary(self, call: Call) -> Empty:
        """Delete a permissions boundary."""
        entity = self.named(call)
        if entity.boundary is None:
            raise NoSuchEntity(f"{self._shapes.kind} {entity.name} has no permissions boundary.")
        self._change(call, entity, boundary=None)
        return Empty()

    def _inline(self, entity: Entity, name: str) -> str:
        if name not in entity.inline:
            raise NoSuchEntity(f"The {self._kind} policy with name {name} cannot be found.")
        return entity.inline[name]

    def _change(self, call: Call, entity: Entity, **changes: Any) -> None:
        self._store.put(replace(entity, updated=call.now, **changes))


class IamService:
    """What is not the same for all kinds: membership, trust, managed policies."""

    def __init__(self, store: IamStore, rng: Rng) -> None:
        self._store = store
        self._rng = rng

    def get_group(self, call: Call) -> shapes.GetGroupResponse:
        """GetGroup."""
        group = self._store.find(call.caller.account, GROUP, call.request.group_name)
        users, more = page(self._store.members(group), lambda user: user.name, call.request)
        return shapes.GetGroupResponse(group=as_group(group), users=[as_user(user) for user in users], **more)

    def add_user_to_group(self, call: Call) -> Empty:
        """AddUserToGroup."""
        account = call.caller.account
        group = self._store.find(account, GROUP, call.request.group_name)
        user = self._store.find(account, USER, call.request.user_name)
        if group.name not in user.groups:
            if len(user.groups) >= 10:
                raise IamLimitExceeded("Cannot exceed quota for GroupsPerUser: 10")
            self._store.put(replace(user, groups=(*user.groups, group.name), updated=call.now))
        return Empty()

    def remove_user_from_group(self, call: Call) -> Empty:
        """RemoveUserFromGroup."""
        account = call.caller.account
        group = self._store.find(account, GROUP, call.request.group_name)
        user = self._store.find(account, USER, call.request.user_name)
        left = tuple(name for name in user.groups if name != group.name)
        self._store.put(replace(user, groups=left, updated=call.now))
        return Empty()

    def list_groups_for_user(self, call: Call) -> Shape:
        """ListGroupsForUser."""
        account = call.caller.account
        user = self._store.find(account, USER, call.request.user_name)
        groups = [self._store.find(account, GROUP, name) for name in user.groups]
        found, more = page(groups, lambda group: group.name, call.request)
        made: Any = shapes.GROUPS.listed
        answer: Shape = made(groups=[as_group(group) for group in found], **more)
        return answer

    def update_assume_role_policy(self, call: Call) -> Empty:
        """UpdateAssumeRolePolicy."""
        role = self._store.find(call.caller.account, ROLE, call.request.role_name)
        trust = compile_trust(call.request.policy_document)
        self._store.put(replace(role, trust=trust, updated=call.now))
        return Empty()

    def update_role(self, call: Call) -> Empty:
        """UpdateRole: what is not given stays."""
        request: identities.UpdateRoleRequest = call.request
        role = self._store.find(call.caller.account, ROLE, request.role_name)
        description = role.description if request.description is None else request.description
        seconds = role.session_seconds if request.max_session_duration is None else request.max_session_duration
        self._store.put(replace(role, description=description, session_seconds=seconds, updated=call.now))
        return Empty()

    def update_role_description(self, call: Call) -> Shape:
        """UpdateRoleDescription."""
        role = self._store.find(call.caller.account, ROLE, call.request.role_name)
        changed = replace(role, description=call.request.description, updated=call.now)
        self._store.put(changed)
        made: Any = shapes.ROLES.one
        answer: Shape = made(role=as_role(changed))
        return answer
