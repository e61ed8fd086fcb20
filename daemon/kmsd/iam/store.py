"""IAM's entities in memory, written through to the sealed store; compiled identities of callers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from kmsd.authz.identity import Identity, IdentityPolicy, compile_identity_policy
from kmsd.authz.policy import KeyPolicy, compile_policy, names_principal, with_principal
from kmsd.iam.records import GROUP, POLICY, ROLE, USER, AccessKey, Entity, MfaDevice, entity_of
from kmsd.store.database import Changes, SealedStore, Transaction
from kmsd.store.schema import Table
from kmsfs.errors import CorruptStore, NoSuchEntity

Follower = Callable[[str, str, Transaction], Callable[[], None]]
"""Given a principal's old and new name, puts into a transaction what says the new one; returns what lets that be seen once it is stored."""
_RESTORE = "restore a backup of the state"
_WORDS = {USER: "user", GROUP: "group", ROLE: "role", POLICY: "policy"}


class IamStore:
    """Everything IAM keeps, of all accounts. Names are unique within an account and kind, whatever the case."""

    def __init__(self, store: SealedStore) -> None:
        self._store = store
        self._by_arn: dict[str, Entity] = {}
        self._by_name: dict[tuple[str, str, str], str] = {}
        self.access_keys: dict[str, AccessKey] = {}
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

        Raises:
            CorruptStore: if what names him is damaged.
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
        del self._by_name[entity.account, entity.kind, entity.name.casefold()]
        self._forget()

    def _keep(self, entity: Entity) -> None:
        self._by_arn[entity.arn] = entity
        self._by_name[entity.account, entity.kind, entity.name.casefold()] = entity.arn
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
