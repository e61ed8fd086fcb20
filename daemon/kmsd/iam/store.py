"""IAM's entities in memory, written through to the sealed store; compiled identities of callers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from kmsd.authz.identity import Identity, IdentityPolicy, compile_identity_policy
from kmsd.authz.policy import KeyPolicy, compile_policy, names_principal, with_principal
from kmsd.iam.records import GROUP, POLICY, ROLE, USER, AccessKey, Entity, KeyUse, MfaDevice, entity_of
from kmsd.store.database import Changes, SealedStore, Transaction
from kmsd.store.schema import Table
from kmsfs.errors import CorruptStore, NoSuchEntity

Follower = Callable[[str, str, Transaction], Callable[[], None]]
"""Given a principal's old and new name, puts into a transaction what says the new one; returns what lets that be seen once it is stored."""
_USE_SECONDS = 3600.0
_ROWS_AT_ONCE = 1000
_RESTORE = "restore a backup of the state"
_WORDS = {USER: "user", GROUP: "group", ROLE: "role", POLICY: "policy"}


class IamStore:
    """Everything IAM keeps, of all accounts. Names are unique within an account and kind, whatever the case."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store
        self._by_arn: dict[str, Entity] = {}
        self._by_name: dict[tuple[str, str, str], str] = {}
        self._by_id: dict[str, str] = {}
        """ARNs by unique id."""
        self.access_keys: dict[str, AccessKey] = {}
        self._used: dict[str, KeyUse] = {}
        """The last uses of access keys that this daemon has seen."""
        self.mfa_devices: dict[str, MfaDevice] = {}
        """By serial number, which is the ARN."""
        self._compiled: dict[tuple[str, str], IdentityPolicy] = {}
        """By the ARN of whose it is, and its name: names alone are those of one account."""
        self._identities: dict[str, Identity] = {}
        self._trust: dict[str, KeyPolicy] = {}
        self.followers: list[Follower] = []
        """Whoever keeps policies or grants that name users and roles."""
        for row in store.scan(Table.IDENTITY):
            self._keep(entity_of(row))
        for row in store.scan(Table.ACCESS_KEY):
            self.access_keys[row["key_id"]] = AccessKey(**row)
        for row in store.scan(Table.MFA_DEVICE):
            self.mfa_devices[row["arn"]] = MfaDevice(**row)

    # --- finding ----------------------------------------------------------------------------------------------

    def find(self, account: str, kind: str, name: str) -> Entity:
        """Return an entity by name.

        Raises:
            NoSuchEntity: if there is none.
        """
        found = self.get(account, kind, name)
        if found is None:
            raise NoSuchEntity(f"The {_WORDS[kind]} with name {name} cannot be found.")
        return found

    def get(self, account: str, kind: str, name: str) -> Entity | None:
        """Return an entity by name, or None."""
        arn = self._by_name.get((account, kind, name.casefold()))
        return self._by_arn[arn] if arn is not None else None

    def of_arn(self, arn: str) -> Entity | None:
        """Return an entity by ARN, or None."""
        return self._by_arn.get(arn)

    def of_id(self, entity_id: str) -> Entity | None:
        """Return an entity by its unique id, or None."""
        arn = self._by_id.get(entity_id)
        return self._by_arn[arn] if arn is not None else None

    def tags_of(self, arn: str) -> dict[str, str]:
        """Return the tags of an entity or MFA device; none of what is not there."""
        owner = self._by_arn.get(arn) or self.mfa_devices.get(arn)
        return owner.tags if owner is not None else {}

    def policy(self, account: str, arn: str) -> Entity:
        """Return a managed policy of an account.

        Raises:
            NoSuchEntity: if there is none.
        """
        found = self._by_arn.get(arn)
        if found is None or found.kind != POLICY or found.account != account:
            raise NoSuchEntity(f"Policy {arn} does not exist or is not attachable.")
        return found

    def all_of(self, account: str, kind: str) -> list[Entity]:
        """Return the entities of a kind, by name."""
        found = [e for e in self._by_arn.values() if e.kind == kind and e.account == account]
        return sorted(found, key=lambda entity: entity.name)

    def users_of(self, policy_arn: str) -> Iterator[Entity]:
        """Yield what a managed policy is attached to, or limits."""
        for entity in self._by_arn.values():
            if policy_arn in entity.attached or entity.boundary == policy_arn:
                yield entity

    def members(self, group: Entity) -> list[Entity]:
        """Return a group's users."""
        return [user for user in self.all_of(group.account, USER) if group.name in user.groups]

    def keys_of(self, account: str, user: str | None) -> list[AccessKey]:
        """Return the access keys of a user, or of the account root."""
        found = [key for key in self.access_keys.values() if (key.account, key.user) == (account, user)]
        return sorted(found, key=lambda key: (key.created, key.key_id))

    def devices_of(self, account: str, user: str) -> list[MfaDevice]:
        """Return a user's MFA devices, by serial number."""
        found = [each for each in self.mfa_devices.values() if (each.account, each.user) == (account, user)]
        return sorted(found, key=lambda device: device.arn)

    # --- changing ---------------------------------------------------------------------------------------------

    def put(self, entity: Entity) -> None:
        """Store a new or changed entity; it counts at once."""
        with self._store.transaction() as work:
            work.put(Table.IDENTITY, entity.arn, entity.row())
        self._keep(entity)

    def remove(self, entity: Entity) -> None:
        """Remove an entity. What names a user or role names his unique id from now on, so that nobody else is meant who gets his name.

        Source: IAM user guide, "AWS JSON policy elements: Principal", IAM user principals.
        """
        with self._store.transaction() as work:
            work.delete(Table.IDENTITY, entity.arn)
            seen = self._rename(entity.arn, entity.entity_id, work) if entity.kind in (USER, ROLE) else []
        self._drop(entity)
        for see in seen:
            see()

    def _rename(self, old: str, new: str, work: Transaction) -> list[Callable[[], None]]:
        return [follow(old, new, work) for follow in (self._follow_in_trust, *self.followers)]

    def _follow_in_trust(self, old: str, new: str, work: Transaction) -> Callable[[], None]:
        changed = []
        for role in self._by_arn.values():
            # A role that trusts itself, and is the one that goes, goes.
            if role.kind == ROLE and role.arn != old and names_principal(self.trust(role), old):
                changed.append(replace(role, trust=with_principal(role.trust, old, new)))
                work.put(Table.IDENTITY, role.arn, changed[-1].row())

        def seen() -> None:
            """Let the new names count."""
            for role in changed:
                self._keep(role)

        return seen

    def rename(self, entity: Entity, changed: Entity) -> None:
        """Give a user or group another name or path, with all that belongs to him, and in all that names him.

        Raises:
            LimitExceeded: if a policy that names him would be too long; nothing has changed then.
        """
        users = self.members(entity) if entity.kind == GROUP else []
        moved = [replace(user, groups=tuple(changed.name if name == entity.name else name for name in user.groups)) for user in users]
        keys = [replace(key, user=changed.name) for key in self.keys_of(entity.account, entity.name)] if entity.kind == USER else []
        devices = [replace(each, user=changed.name) for each in self.devices_of(entity.account, entity.name)] if entity.kind == USER else []
        with self._store.transaction() as work:
            if changed.arn != entity.arn:
                work.delete(Table.IDENTITY, entity.arn)
            for each in (changed, *moved):
                work.put(Table.IDENTITY, each.arn, each.row())
            for key in keys:
                work.put(Table.ACCESS_KEY, key.key_id, key.row())
            for device in devices:
                work.put(Table.MFA_DEVICE, device.arn, device.row())
            follows = entity.kind == USER and changed.arn != entity.arn
            seen = self._rename(entity.arn, changed.arn, work) if follows else []
        self._drop(entity)
        for each in (changed, *moved):
            self._keep(each)
        self.access_keys.update((key.key_id, key) for key in keys)
        self.mfa_devices.update((device.arn, device) for device in devices)
        for see in seen:
            see()

    def note_use(self, key_id: str, use: KeyUse) -> None:
        """Remember a use of an access key; it is stored by `write_uses`."""
        self._used[key_id] = use

    def last_use(self, key: AccessKey) -> KeyUse:
        """Return the last use of an access key that is known here."""
        stored = KeyUse(key.used_at, key.used_service, key.used_region)
        return max(stored, self._used.get(key.key_id, stored), key=lambda use: use.at)

    def write_uses(self) -> None:
        """Store last uses that are an hour newer than what is stored of the same access key; others stay in memory.

        Raises:
            StorageError: if they cannot be written; they stay noted.
        """
        due = {}
        for key_id, use in self._used.items():
            key = self.access_keys.get(key_id)
            if key is not None and use.at >= key.used_at + _USE_SECONDS:
                due[key_id] = replace(key, used_at=use.at, used_service=use.service, used_region=use.region)
        written = dict(list(due.items())[:_ROWS_AT_ONCE])
        if written:
            with self._store.transaction() as work:
                for key_id, key in written.items():
                    work.put(Table.ACCESS_KEY, key_id, key.row())
            self.access_keys.update(written)
        self._used = {key_id: use for key_id, use in self._used.items() if key_id in self.access_keys}

    def put_key(self, key: AccessKey) -> None:
        """Store a new or changed access key."""
        with self._store.transaction() as work:
            work.put(Table.ACCESS_KEY, key.key_id, key.row())
        self.access_keys[key.key_id] = key

    def remove_key(self, key: AccessKey) -> None:
        """Remove an access key; it signs nothing more."""
        with self._store.transaction() as work:
            work.delete(Table.ACCESS_KEY, key.key_id)
        del self.access_keys[key.key_id]

    def put_device(self, device: MfaDevice) -> None:
        """Store a new or changed MFA device."""
        with self._store.transaction() as work:
            work.put(Table.MFA_DEVICE, device.arn, device.row())
        self.mfa_devices[device.arn] = device

    def remove_device(self, device: MfaDevice) -> None:
        """Remove an MFA device."""
        with self._store.transaction() as work:
            work.delete(Table.MFA_DEVICE, device.arn)
        del self.mfa_devices[device.arn]

    def take(self, changes: Changes) -> None:
        """Let what other daemons wrote be seen here."""
        for arn, row in changes.get(Table.IDENTITY, {}).items():
            if row is not None:
                self._keep(entity_of(row))
            elif arn in self._by_arn:
                self._drop(self._by_arn[arn])
        for key_id, row in changes.get(Table.ACCESS_KEY, {}).items():
            if row is not None:
                self.access_keys[key_id] = AccessKey(**row)
            else:
                self.access_keys.pop(key_id, None)
        for arn, row in changes.get(Table.MFA_DEVICE, {}).items():
            if row is not None:
                self.mfa_devices[arn] = MfaDevice(**row)
            else:
                self.mfa_devices.pop(arn, None)

    def _drop(self, entity: Entity) -> None:
        del self._by_arn[entity.arn]
        place = entity.account, entity.kind, entity.name.casefold()
        if self._by_name.get(place) == entity.arn:
            # Else somebody has the name already: he himself, below another path.
            del self._by_name[place]
        if self._by_id.get(entity.entity_id) == entity.arn:
            del self._by_id[entity.entity_id]
        self._forget()

    def _keep(self, entity: Entity) -> None:
        self._by_arn[entity.arn] = entity
        self._by_name[entity.account, entity.kind, entity.name.casefold()] = entity.arn
        self._by_id[entity.entity_id] = entity.arn
        self._forget()

    def _forget(self) -> None:
        self._identities.clear()
        self._compiled.clear()
        self._trust.clear()

    # --- compiled -----------------------------------------------------------------------------------------------

    def identity(self, entity: Entity) -> Identity:
        """Return what an entity's policies, those of its groups, and its boundary say."""
        held = self._identities.get(entity.arn)
        if held is None:
            groups = [self._group(entity.account, name) for name in entity.groups]
            policies = [policy for holder in (entity, *groups) for policy in self._policies(holder)]
            boundary = self._managed(entity.boundary) if entity.boundary else None
            held = self._identities[entity.arn] = Identity(tuple(policies), boundary)
        return held

    def _policies(self, entity: Entity) -> list[IdentityPolicy]:
        inline = [
            self._compile(entity.arn, f"{entity.kind}/{entity.name}/{name}", text) for name, text in entity.inline.items()
        ]
        return [*inline, *(self._managed(arn) for arn in entity.attached)]

    def _group(self, account: str, name: str) -> Entity:
        try:
            return self.find(account, GROUP, name)
        except NoSuchEntity as error:
            raise CorruptStore(f"the group {name}, of which a user is, is damaged in the key daemon's state", hint=_RESTORE) from error

    def _managed(self, arn: str) -> IdentityPolicy:
        if arn not in self._by_arn:
            raise CorruptStore(f"the policy {arn} is damaged in the key daemon's state", hint=_RESTORE)
        return self._compile(arn, arn, self._by_arn[arn].document)

    def _compile(self, owner: str, name: str, text: str) -> IdentityPolicy:
        held = self._compiled.get((owner, name))
        if held is None:
            held = self._compiled[owner, name] = compile_identity_policy(name, text)
        return held

    def trust(self, role: Entity) -> KeyPolicy:
        """Return a role's compiled trust policy."""
        held = self._trust.get(role.arn)
        if held is None:
            held = self._trust[role.arn] = compile_policy(role.trust, "sts")
        return held

    def principal_exists(self, principal: str) -> bool:
        """Tell whether a user or role that a policy names exists; of everything else that is true."""
        parts: Any = principal.split(":", 5)
        if len(parts) != 6 or not parts[5].startswith(("user/", "role/")):
            return True
        return principal in self._by_arn
