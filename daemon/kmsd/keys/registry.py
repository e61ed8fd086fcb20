"""All KMS keys, aliases and grants in memory, written through to the sealed store."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from kmsd.authz.conditions import RESOURCE_TAG, tag_key
from kmsd.authz.grants import Grant, grant_of
from kmsd.authz.policy import KeyPolicy, compile_policy
from kmsd.authz.principal import Caller
from kmsd.keys.indexes import ListingIndexes
from kmsd.keys.material import MaterialVault, TokenMaterial, material_id
from kmsd.store.database import Changes, SealedStore, Transaction
from kmsd.store.schema import Table
from kmsfs.api.keyspecs import ENCRYPT, SYMMETRIC
from kmsfs.api.operation import KeyState
from kmsfs.errors import AliasNotFound, CorruptStore, KeyInvalidState, KeyNotFound, TokenUnavailable
from kmsfs.ids import MULTI_REGION, alias_arn, key_arn, parse_key_reference, root_principal, scope_of
from kmsfs.secret import KeyMaterial


@dataclass(frozen=True, slots=True)
class Import:
    """What is known of imported material: its id, until when it may be used, and what whoever brought it says of it.

    Of material that is gone, the first and the last are left: the same is to be brought again.
    """

    material_id: str
    valid_to: float | None = None
    expiration_model: str | None = None
    description: str | None = None


@dataclass(slots=True)
class KmsKey:
    """A KMS key with its unwrapped material by term. Never leaves this process."""

    key_id: str
    arn: str
    description: str
    state: KeyState
    created: float
    deletion: float | None
    policy: KeyPolicy
    term: int
    generation: int
    creator: str
    spec: str = SYMMETRIC
    usage: str = ENCRYPT
    tags: dict[str, str] = field(default_factory=dict)
    rotation_days: int | None = None
    next_rotation: float | None = None
    rotations: list[tuple[float, str]] = field(default_factory=list)
    """When and how each material after the first came: one entry a term from 2."""
    scope: str = ""
    origin: str = "AWS_KMS"
    imports: dict[int, Import] = field(default_factory=dict)
    """Of a key of EXTERNAL origin, by term: one past the current term waits for a rotation."""
    damaged: frozenset[int] = frozenset()
    """Terms of material that is there and cannot be read: its record in the state is damaged."""
    store: str = ""
    """The custom key store that keeps its material, if one does."""
    materials: dict[int, KeyMaterial] = field(default_factory=dict)
    aliases: set[str] = field(default_factory=set)
    """Names of its aliases; kept by the registry."""
    grants: dict[str, Grant] = field(default_factory=dict)
    """By id; changed by `keep_grant` and `drop_grant` only."""
    _by_grantee: dict[str, dict[str, Grant]] = field(default_factory=dict)

    @property
    def current_material(self) -> KeyMaterial:
        """The material that encrypts.

        Raises:
            CorruptStore: if it is damaged.
        """
        self.require_undamaged(self.term)
        return self.materials[self.term]

    def require_undamaged(self, term: int) -> None:
        """Refuse to take damaged material for material that is not there.

        Raises:
            CorruptStore: if it is damaged.
        """
        if term in self.damaged:
            raise CorruptStore(
                f"the material (version {term}) of {self.arn} is damaged in the key daemon's state", hint="restore a backup of the state"
            )

    @property
    def current_import(self) -> Import | None:
        """What is known of the current material, if it is imported."""
        return self.imports.get(self.term)

    @property
    def waits_for_material(self) -> bool:
        """Whether imported material that the key has had, or its first, is not there."""
        had = [term for term in self.imports if term <= self.term]
        return self.origin == EXTERNAL and (not had or any(term not in self.materials for term in had))

    def overdue(self, now: float) -> list[int]:
        """Return the terms of imported material whose time is over."""
        return [
            term
            for term, known in self.imports.items()
            if known.valid_to is not None and known.valid_to <= now and term in self.materials
        ]

    def condition_values(self) -> dict[str, str | list[str]]:
        """The condition keys that are the key's own (KMS developer guide, "Condition keys for AWS KMS"; tags: ABAC)."""
        values: dict[str, str | list[str]] = {
            "kms:KeyOrigin": self.origin, "kms:KeySpec": self.spec, "kms:KeyUsage": self.usage,
        }  # fmt: skip
        if self.aliases:
            values["kms:ResourceAliases"] = sorted(self.aliases)
        for name, value in self.tags.items():
            values[tag_key(RESOURCE_TAG, name)] = value
        return values

    def row(self) -> dict[str, Any]:
        """The sealed row of this key."""
        return {
            "id": self.key_id, "description": self.description, "state": self.state.value, "created": self.created,
            "deletion": self.deletion, "policy": self.policy.text, "term": self.term,
            "generation": self.generation, "creator": self.creator, "spec": self.spec, "usage": self.usage,
            "tags": self.tags, "rotation_days": self.rotation_days, "next_rotation": self.next_rotation,
            "rotations": [list(entry) for entry in self.rotations], "scope": self.scope, "origin": self.origin, "store": self.store,
            "imports": [
                [term, known.material_id, known.valid_to, known.expiration_model, known.description]
                for term, known in sorted(self.imports.items())
            ],
        }  # fmt: skip

    def grants_for(self, caller: Caller) -> Iterator[Grant]:
        """Yield the grants whose grantee the caller is, or his account, where its IAM speaks for him."""
        if self.grants:
            for principal in caller.principals:
                yield from self.grants_to(principal).values()
            if caller.identity is not None:
                yield from self.grants_to(root_principal(caller.account)).values()

    def grants_to(self, grantee: str) -> dict[str, Grant]:
        """Return the grants to a principal, by id."""
        return self._by_grantee.get(grantee, {})

    def keep_grant(self, grant: Grant) -> None:
        """Let a grant be found, by its id and by its grantee."""
        self.grants[grant.grant_id] = grant
        self._by_grantee.setdefault(grant.grantee, {})[grant.grant_id] = grant

    def drop_grant(self, grant: Grant) -> None:
        """Let a grant be found no more."""
        del self.grants[grant.grant_id]
        of_grantee = self._by_grantee[grant.grantee]
        del of_grantee[grant.grant_id]
        if not of_grantee:
            del self._by_grantee[grant.grantee]


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of a key, in the scope of its key."""

    name: str
    key_id: str
    created: float
    updated: float
    scope: str

    @property
    def arn(self) -> str:
        """Its ARN, by which the registry knows it."""
        return alias_arn(self.scope, self.name)

    def row(self) -> dict[str, Any]:
        """The sealed row of this alias."""
        return {
            "name": self.name, "key": self.key_id, "created": self.created, "updated": self.updated,
            "scope": self.scope,
        }  # fmt: skip


_BEFORE_SPECS: dict[str, Any] = {
    "spec": SYMMETRIC, "usage": ENCRYPT, "tags": {}, "rotation_days": None, "next_rotation": None, "rotations": [],
    "origin": "AWS_KMS",
}  # fmt: skip
"""What rows of keys made before there were key specs lack."""
_LOG = logging.getLogger("kmsd")
EXTERNAL = "EXTERNAL"
"""Origin of keys whose material is imported."""
ChangeListener = Callable[[KmsKey, str], None]


class KeyRegistry:
    """The realm's keys. Every change is in the store before it is seen here."""

    def __init__(self, account: str, store: SealedStore, vault: MaterialVault) -> None:
        self.account = account
        self._home = scope_of(account)
        self.store = store
        self.vault = vault
        self.keys: dict[str, KmsKey] = {}
        self.aliases: dict[str, Alias] = {}
        self.listeners: list[ChangeListener] = []
        self.listed = ListingIndexes()
        self._expiring: dict[str, Grant] = {}
        self._load()

    # --- finding ------------------------------------------------------------------------------------------

    def find(self, reference: str, scope: str) -> KmsKey:
        """Return the key that a KeyId parameter names for a caller of this scope.

        Raises:
            KeyNotFound: if there is none, with AWS's text.
            AliasNotFound: if it is an alias that does not exist.
            InvalidArn: if it is an ARN of another kind.
        """
        parsed = parse_key_reference(reference, scope)
        if parsed.alias:
            alias = self.aliases.get(parsed.arn)
            if alias is None:
                self.store.require_whole(Table.ALIAS, self._place_of_alias(parsed.arn), parsed.arn)
                raise AliasNotFound(f"Alias {parsed.arn} is not found.")
            return self.keys[alias.key_id]
        key = self.keys.get(parsed.key_id)
        if key is None or key.arn != parsed.arn:
            self.store.require_whole(Table.KEY, parsed.key_id, parsed.arn)
            raise KeyNotFound(f"Key '{parsed.arn}' does not exist")
        return key

    def of_owner(self, key_id: str) -> KmsKey | None:
        """Return the key that ciphertext or a token names by its UUID, None if there is none."""
        key = self.keys.get(key_id)
        if key is None:
            key = self.keys.get(f"{MULTI_REGION}{key_id.replace('-', '')}")
        return key

    def aliases_of(self, key_id: str) -> list[Alias]:
        """Return the aliases that name a key, sorted."""
        names = self.listed.aliases_of(key_id)
        return [self.aliases[names[place]] for place in range(len(names))]

    # --- changing -----------------------------------------------------------------------------------------

    def add_key(self, key: KmsKey) -> None:
        """Store a new key with its first material."""
        with self.store.transaction() as work:
            if key.materials and not key.store:
                self._put_material(work, key, key.term)
            work.put(Table.KEY, key.key_id, key.row())
        self._keep_key(key)
        self._changed(key, "created")

    def update_key(self, key: KmsKey, event: str, **changes: Any) -> None:
        """Change fields of a key; its generation grows, so every cache learns of it."""
        changed = replace(key, generation=key.generation + 1, **changes)
        with self.store.transaction() as work:
            work.put(Table.KEY, key.key_id, changed.row())
        for name in (*changes, "generation"):
            setattr(key, name, getattr(changed, name))
        self._changed(key, event)

    def take_policy(self, key: KmsKey, policy: KeyPolicy) -> None:
        """Let a policy count that is stored already, under the key's next generation."""
        key.policy, key.generation = policy, key.generation + 1
        self._changed(key, "policy")

    def rotate(self, key: KmsKey, now: float, kind: str, *, next_rotation: float | None = None) -> None:
        """Add new material under the next term and make it current; `kind` is AUTOMATIC or ON_DEMAND."""
        term = key.term + 1
        key.materials[term] = self.vault.make(key.spec)
        due = next_rotation if next_rotation is not None else key.next_rotation
        changed = replace(key, term=term, rotations=[*key.rotations, (now, kind)], next_rotation=due)
        try:
            with self.store.transaction() as work:
                self._put_material(work, key, term)
                work.put(Table.KEY, key.key_id, changed.row())
        except BaseException:
            del key.materials[term]
            raise
        key.term, key.rotations, key.next_rotation = term, changed.rotations, due
        self._changed(key, "rotated")

    def rotate_imported(self, key: KmsKey, now: float, kind: str) -> None:
        """Make the imported material that waits for it current."""
        term = key.term + 1
        changed = replace(key, term=term, rotations=[*key.rotations, (now, kind)])
        with self.store.transaction() as work:
            work.put(Table.KEY, key.key_id, changed.row())
        key.term, key.rotations = term, changed.rotations
        self._changed(key, "rotated")

    def import_material(self, key: KmsKey, term: int, material: KeyMaterial, known: Import) -> None:
        """Give a key of EXTERNAL origin its material of a term; one past the current waits for a rotation."""
        changed = replace(
            key, imports={**key.imports, term: known}, materials={**key.materials, term: material}, generation=key.generation + 1
        )
        if key.state is KeyState.PENDING_IMPORT and not changed.waits_for_material:
            changed.state = KeyState.ENABLED
        with self.store.transaction() as work:
            self._put_material(work, changed, term)
            work.put(Table.KEY, key.key_id, changed.row())
        self._take(key, changed, "enabled" if term <= key.term else "rotation")

    def drop_material(self, key: KmsKey, term: int) -> None:
        """Take a key imported material: it waits for the same again, but for what was never current, which is forgotten."""
        never_used = term > key.term
        left = {number: material for number, material in key.materials.items() if number != term}
        known = {number: facts for number, facts in key.imports.items() if number != term}
        if not never_used:
            known[term] = Import(key.imports[term].material_id, description=key.imports[term].description)
        waits = not never_used and key.state is not KeyState.PENDING_DELETION
        state = KeyState.PENDING_IMPORT if waits else key.state
        changed = replace(key, state=state, imports=known, materials=left, generation=key.generation + 1)
        with self.store.transaction() as work:
            work.delete(Table.MATERIAL, f"{key.key_id}/{term}")
            work.put(Table.KEY, key.key_id, changed.row())
        key.materials[term].wipe()
        self._take(key, changed, "rotation" if never_used else "disabled")

    def _take(self, key: KmsKey, changed: KmsKey, event: str) -> None:
        for name in ("state", "imports", "materials", "generation"):
            setattr(key, name, getattr(changed, name))
        self._changed(key, event)

    def destroy_material(self, key: KmsKey, term: int) -> None:
        """Destroy old material for ever."""
        changed = replace(key, imports={number: known for number, known in key.imports.items() if number != term})
        with self.store.transaction() as work:
            work.delete(Table.MATERIAL, f"{key.key_id}/{term}")
            if term in key.imports:
                work.put(Table.KEY, key.key_id, changed.row())
        key.imports = changed.imports
        key.materials.pop(term).wipe()
        self._changed(key, "material-destroyed")

    def destroy(self, key: KmsKey) -> None:
        """Remove a key, its material, aliases and grants for ever. A token that cannot be reached keeps its part, which opens nothing then."""
        with self.store.transaction() as work:
            for term in key.materials:
                work.delete(Table.MATERIAL, f"{key.key_id}/{term}")
            for alias in self.aliases_of(key.key_id):
                work.delete(Table.ALIAS, self._alias_place(alias))
            for grant in key.grants.values():
                work.delete(Table.GRANT, f"{key.key_id}/{grant.grant_id}")
            work.delete(Table.KEY_USAGE, key.key_id)
            work.delete(Table.KEY, key.key_id)
        for material in key.materials.values():
            if isinstance(material, TokenMaterial):
                _destroy(material, key.arn)
        self._forget_key(key)

    def put_alias(self, alias: Alias) -> None:
        """Create or move an alias."""
        with self.store.transaction() as work:
            work.put(Table.ALIAS, self._alias_place(alias), alias.row())
        present = self.aliases.get(alias.arn)
        if present is not None:
            self._forget_alias(present)
        self._keep_alias(alias)

    def delete_alias(self, alias: Alias) -> None:
        """Remove an alias."""
        with self.store.transaction() as work:
            work.delete(Table.ALIAS, self._alias_place(alias))
        self._forget_alias(alias)

    def _alias_place(self, alias: Alias) -> str:
        return self._place_of_alias(alias.arn)

    def _place_of_alias(self, arn: str) -> str:
        """Return the natural key of an alias's row: its name alone in the scope that was there before there were others."""
        scope, _, name = arn.split(":", 3)[3].rpartition(":")
        return name if scope == self._home else arn

    def add_grant(self, key: KmsKey, grant: Grant) -> None:
        """Store a grant; it counts at once."""
        with self.store.transaction() as work:
            work.put(Table.GRANT, f"{key.key_id}/{grant.grant_id}", grant.row())
        self._keep_grant(key, grant)
        self._changed(key, "grant-created")

    def remove_grant(self, key: KmsKey, grant: Grant) -> None:
        """End a grant; it counts no more at once."""
        with self.store.transaction() as work:
            work.delete(Table.GRANT, f"{key.key_id}/{grant.grant_id}")
        self._forget_grant(key, grant)

    def replace_grant(self, key: KmsKey, grant: Grant) -> None:
        """Let a grant that is stored already be seen in the place of the one of the same id."""
        self._forget_grant(key, key.grants[grant.grant_id])
        self._keep_grant(key, grant)
        self._changed(key, "grant-created")

    def end_expired_grants(self, now: float) -> list[Grant]:
        """Remove the grants whose time is over; return them."""
        over = [grant for grant in self._expiring.values() if grant.over(now)]
        for grant in over:
            self.remove_grant(self.keys[grant.key_id], grant)
        return over

    def announce(self, event: str, concerns: Callable[[KmsKey], bool] = lambda _key: True) -> None:
        """Tell every listener that something changed for every key, or for those that it concerns."""
        for key in list(self.keys.values()):
            if concerns(key):
                self._changed(key, event)

    def in_store(self, store_id: str) -> Iterator[str]:
        """Yield the ARNs of a custom key store's keys."""
        return (key.arn for key in self.keys.values() if key.store == store_id)

    def _changed(self, key: KmsKey, event: str) -> None:
        for listener in self.listeners:
            listener(key, event)

    def _put_material(self, work: Transaction, key: KmsKey, term: int) -> None:
        place = f"{key.key_id}/{term}"
        material = key.materials[term]
        row = {
            "key": key.key_id, "term": term, "material_id": material_id(material),
            "blob": self.vault.wrap(material, place),
        }  # fmt: skip
        work.put(Table.MATERIAL, place, row, parent=key.key_id)

    def _keep_key(self, key: KmsKey) -> None:
        self.keys[key.key_id] = key
        self.listed.add_key(key.scope, key.key_id)

    def _keep_alias(self, alias: Alias) -> None:
        self.aliases[alias.arn] = alias
        self.listed.add_alias(alias.scope, alias.arn, alias.key_id)
        self.keys[alias.key_id].aliases.add(alias.name)

    def _forget_alias(self, alias: Alias) -> None:
        del self.aliases[alias.arn]
        self.listed.drop_alias(alias.scope, alias.arn, alias.key_id)
        self.keys[alias.key_id].aliases.discard(alias.name)

    def _forget_key(self, key: KmsKey) -> None:
        for alias in self.aliases_of(key.key_id):
            self._forget_alias(alias)
        for grant in key.grants.values():
            self.listed.drop_grant(key.scope, grant)
            self._expiring.pop(grant.grant_id, None)
        for material in key.materials.values():
            material.wipe()
        del self.keys[key.key_id]
        self.listed.drop_key(key.scope, key.key_id)
        self._changed(key, "deleted")

    def _forget_grant(self, key: KmsKey, grant: Grant) -> None:
        key.drop_grant(grant)
        self.listed.drop_grant(key.scope, grant)
        self._expiring.pop(grant.grant_id, None)
        self._changed(key, "grant-ended")

    def _keep_grant(self, key: KmsKey, grant: Grant) -> None:
        key.keep_grant(grant)
        self.listed.add_grant(key.scope, grant)
        if grant.expires is not None:
            self._expiring[grant.grant_id] = grant

    # --- loading ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        # In order, so that each is the last of its index when it comes.
        for row in sorted(self.store.scan(Table.KEY), key=itemgetter("id")):
            self._keep_key(self._key_of(row))
        for row in self.store.scan(Table.MATERIAL):
            # What belongs to a key whose own record is damaged waits for that to be restored.
            if row["key"] in self.keys:
                self._keep_material(row)
        if self.store.quarantined:
            self._note_damage()
        for row in sorted(self.store.scan(Table.ALIAS), key=itemgetter("name")):
            if row["key"] in self.keys:
                self._keep_alias(self._alias_of(row))
        for row in sorted(self.store.scan(Table.GRANT), key=itemgetter("id")):
            if row["key"] in self.keys:
                self._keep_grant(self.keys[row["key"]], grant_of(row))

    def _key_of(self, stored: dict[str, Any]) -> KmsKey:
        row = {**_BEFORE_SPECS, "scope": self._home, **stored}
        key = KmsKey(
            row["id"], key_arn(row["scope"], row["id"]), row["description"], KeyState(row["state"]),
            row["created"], row["deletion"], compile_policy(row["policy"]), row["term"], row["generation"],
            row["creator"], row["spec"], row["usage"], row["tags"], row["rotation_days"], row["next_rotation"],
            [(date, kind) for date, kind in row["rotations"]], row["scope"], row["origin"], _imports(row), store=row.get("store", ""),
        )  # fmt: skip
        if key.store:
            key.materials[1] = TokenMaterial(self.vault.stores, key.store, key.key_id, key.arn)
        return key

    def _keep_material(self, row: dict[str, Any]) -> None:
        self.keys[row["key"]].materials[row["term"]] = self.vault.unwrap(row["blob"], f"{row['key']}/{row['term']}")

    def _alias_of(self, row: dict[str, Any]) -> Alias:
        return Alias(row["name"], row["key"], row["created"], row["updated"], row.get("scope", self._home))

    # --- what other daemons wrote -----------------------------------------------------------------------------

    def take(self, changes: Changes) -> None:
        """Let rows that are in the store already be seen here."""
        ended, written = changes.get(Table.GRANT, {}), changes.get(Table.ALIAS, {})
        for place, row in ended.items():
            key_id, _, grant_id = place.partition("/")
            key = self.keys.get(key_id)
            if row is None and key is not None and grant_id in key.grants:
                self._forget_grant(key, key.grants[grant_id])
        for place in written:
            present = self.aliases.get(place if place.startswith("arn:") else alias_arn(self._home, place))
            if present is not None:
                self._forget_alias(present)
        found = changes.get(Table.KEY, {})
        new = {key_id for key_id, row in found.items() if row is not None and key_id not in self.keys}
        for key_id, row in found.items():
            if row is None and key_id in self.keys:
                self._forget_key(self.keys[key_id])
            elif row is not None and key_id in new:
                self._keep_key(self._key_of(row))
        # Before anybody is told of a key, as those who are told look at it.
        for place, row in changes.get(Table.MATERIAL, {}).items():
            self._take_material(place, row)
        for key_id, row in found.items():
            if key_id in new:
                self._changed(self.keys[key_id], "created")
            elif row is not None:
                self._take_facts(self.keys[key_id], self._key_of(row))
        for row in filter(None, written.values()):
            self._keep_alias(self._alias_of(row))
        for row in filter(None, ended.values()):
            key, grant = self.keys[row["key"]], grant_of(row)
            if grant.grant_id in key.grants:
                self.replace_grant(key, grant)
            else:
                self._keep_grant(key, grant)
                self._changed(key, "grant-created")

    def _take_facts(self, key: KmsKey, stored: KmsKey) -> None:
        event = _event(key, stored)
        for name in _STORED:
            setattr(key, name, getattr(stored, name))
        self._changed(key, event)

    def _take_material(self, place: str, row: dict[str, Any] | None) -> None:
        key_id, _, term = place.partition("/")
        key = self.keys.get(key_id)
        if key is None:
            return
        before = key.materials.pop(int(term), None)
        if before is not None:
            before.wipe()
        if row is not None:
            self._keep_material(row)
        elif before is not None:
            self._changed(key, "material-destroyed")

    def _note_damage(self) -> None:
        for key in self.keys.values():
            terms = range(1, key.term + 2)
            key.damaged = frozenset(term for term in terms if self.store.is_quarantined(Table.MATERIAL, f"{key.key_id}/{term}"))


def _destroy(material: TokenMaterial, arn: str) -> None:
    try:
        material.destroy()
    except (TokenUnavailable, KeyInvalidState) as error:
        _LOG.warning("%s is deleted, but its material is still in its token: %s", arn, error.detail)


_STORED = (
    "description", "state", "deletion", "policy", "term", "generation", "tags", "rotation_days", "next_rotation", "rotations", "imports",
)  # fmt: skip
"""What a key's row says that may change."""


def _event(before: KmsKey, after: KmsKey) -> str:
    """Say what happened to a key, as far as the two rows tell."""
    if before.state is not after.state:
        return "enabled" if after.state is KeyState.ENABLED else "disabled"
    if before.term != after.term:
        return "rotated"
    return "tags" if before.tags != after.tags else "policy"


def _imports(row: dict[str, Any]) -> dict[int, Import]:
    """Read what a row says of imported material; rows of before keys took several have one, of the first term."""
    if "imports" in row:
        return {term: Import(*known) for term, *known in row["imports"]}
    if row.get("imported_id") is None:
        return {}
    return {1: Import(row["imported_id"], row.get("valid_to"), row.get("expiration_model"))}
