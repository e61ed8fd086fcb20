"""Handlers of key, alias and policy operations."""

import uuid
from collections.abc import Callable

from kmsd.authz.decide import Question, decide
from kmsd.authz.policy import KeyPolicy, account_policy, compile_new_policy, compile_policy, default_policy
from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import Names
from kmsd.keys.lifecycle import SECONDS_PER_DAY
from kmsd.keys.material import TokenMaterial, material_id
from kmsd.keys.registry import EXTERNAL, Alias, KeyRegistry, KmsKey
from kmsd.keystores.store import CONNECTED, KeyStores
from kmsfs.api.keyspecs import (
    AGREE,
    ENCAPSULATE,
    ENCRYPT,
    MAC,
    SIGN,
    SPECS,
    SYMMETRIC,
    is_asymmetric,
    usage_of,
)
from kmsfs.api.operation import KeyState
from kmsfs.api.shapes import keys as shapes
from kmsfs.errors import (
    AccessDenied,
    AlreadyExists,
    CustomKeyStoreInvalidState,
    CustomKeyStoreNotFound,
    KeyInvalidState,
    LimitExceeded,
    MalformedPolicy,
    TokenUnavailable,
)
from kmsfs.ids import (
    MULTI_REGION,
    account_of,
    alias_arn,
    check_alias,
    key_arn,
    multi_region_id,
    region_of,
    root_principal,
)

UNAVAILABLE = "Unavailable"
"""State of a key whose custom key store is not connected."""
KEYS_MAX = 100_000
ALIASES_PER_KEY_MAX = 50


def may(caller: Caller, action: str, key: KmsKey, now: float) -> bool:
    """Tell whether the caller may do something that carries no encryption context with a key."""
    question = Question(action, key.arn, now=now, values=key.condition_values())
    return decide(caller, question, key.policy, key.grants_for(caller)).allowed


def refuse_lockout(policy: KeyPolicy, arn: str, caller: Caller, now: float) -> None:
    """Refuse a policy under which its author could not change it again.

    Raises:
        MalformedPolicy: if the caller would lose kms:PutKeyPolicy (KMS API, PutKeyPolicy, safety check).
    """
    question = Question("kms:PutKeyPolicy", arn, now=now)
    if not decide(caller, question, policy, ()).allowed:
        raise MalformedPolicy(
            "The new key policy will not allow you to update the key policy in the future.",
            hint="add a statement that allows you kms:PutKeyPolicy, or set BypassPolicyLockoutSafetyCheck",
        )


def _only_region(key: KmsKey) -> shapes.MultiRegionConfiguration:
    """A multi-Region key lives in one region here: it is its own primary and has no replicas."""
    primary = shapes.MultiRegionKey(arn=key.arn, region=region_of(key.scope))
    return shapes.MultiRegionConfiguration(
        multi_region_key_type="PRIMARY", primary_key=primary, replica_keys=[]
    )


def _default(caller: Caller) -> KeyPolicy:
    """A local user's key is his; one made through IAM is the account's, as at AWS."""
    by_account = caller.identity is not None or caller.principal == root_principal(caller.account)
    return compile_policy(account_policy(caller.account) if by_account else default_policy(caller.principal))


def _material_id(key: KmsKey) -> str | None:
    told = key.spec == SYMMETRIC and key.term in key.materials and not key.store
    return material_id(key.current_material) if told else None


class KeyService:
    """CreateKey to ListAliases."""

    def __init__(
        self,
        registry: KeyRegistry,
        stores: KeyStores,
        principal_exists: Callable[[str], bool] = lambda _principal: True,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._registry = registry
        self._stores = stores
        self._principal_exists = principal_exists
        self._new_id = new_id

    def create_key(self, call: Call) -> shapes.KeyMetadataResponse:
        """CreateKey."""
        request: shapes.CreateKeyRequest = call.request
        if len(self._registry.keys) >= KEYS_MAX:
            raise LimitExceeded(f"a realm has at most {KEYS_MAX} keys")
        made, spec = self._new_id(), request.key_spec or SYMMETRIC
        key_id = multi_region_id(made) if request.multi_region else str(made)
        arn = key_arn(call.scope, key_id)
        policy = self._compiled(request.policy) if request.policy else _default(call.caller)
        if request.policy and not request.bypass_policy_lockout_safety_check:
            refuse_lockout(policy, arn, call.caller, call.now)
        key = KmsKey(
            key_id,
            arn,
            request.description,
            KeyState.PENDING_IMPORT if request.origin == EXTERNAL else KeyState.ENABLED,
            call.now,
            None,
            policy,
            1,
            1,
            call.caller.principal,
            spec,
            usage_of(spec, request.key_usage),
            {tag.tag_key: tag.tag_value for tag in request.tags},
            scope=call.scope,
            origin=request.origin,
            store=self._store_of(call),
        )
        if request.origin == "AWS_KMS":
            key.materials[1] = self._registry.vault.make(spec)
        elif key.store:
            key.materials[1] = self._made_in_token(key)
        self._registry.add_key(key)
        call.key = key
        return shapes.KeyMetadataResponse(key_metadata=self._metadata(key))

    def _store_of(self, call: Call) -> str:
        """Return the id of the custom key store in which a new key shall be; empty for none."""
        request: shapes.CreateKeyRequest = call.request
        if request.custom_key_store_id is None:
            return ""
        store = self._stores.get(request.custom_key_store_id)
        if store is None or store.scope != call.scope:
            raise CustomKeyStoreNotFound(f"There is no custom key store {request.custom_key_store_id}.")
        if not call.caller.root and call.caller.identity is None:
            # A token has room for so many keys; of local users only those make some in it who stand for the account.
            raise AccessDenied(f"User: {call.caller.principal} is not authorized to perform: kms:CreateKey in a custom key store")
        if self._stores.state(store.store_id)[0] != CONNECTED:
            raise CustomKeyStoreInvalidState(f"The custom key store {store.name} is not connected.", hint="kmsfs keystore connect")
        return store.store_id

    def _made_in_token(self, key: KmsKey) -> TokenMaterial:
        material = TokenMaterial(self._stores, key.store, key.key_id, key.arn)
        try:
            material.make()
        except TokenUnavailable as error:
            raise CustomKeyStoreInvalidState(
                "The token of the custom key store cannot make the key.", hint=error.detail, evidence=error.evidence
            ) from error
        return material

    def describe_key(self, call: Call) -> shapes.KeyMetadataResponse:
        """DescribeKey."""
        return shapes.KeyMetadataResponse(key_metadata=self._metadata(call.the_key))

    def list_keys(self, call: Call) -> shapes.ListKeysResponse:
        """ListKeys."""
        request: shapes.ListKeysRequest = call.request
        keys = self._registry.keys
        visible = lambda key_id: may(call.caller, "kms:DescribeKey", keys[key_id], call.now)  # noqa: E731
        page, marker = self._registry.listed.keys_in(call.scope).page(request.limit, request.marker, visible)
        entries = [shapes.KeyListEntry(key_id=k, key_arn=keys[k].arn) for k in page]
        return shapes.ListKeysResponse(keys=entries, next_marker=marker, truncated=marker is not None)

    def update_key_description(self, call: Call) -> shapes.Empty:
        """UpdateKeyDescription."""
        self._registry.update_key(call.the_key, "described", description=call.request.description)
        return shapes.Empty()

    def enable_key(self, call: Call) -> shapes.Empty:
        """EnableKey."""
        self._registry.update_key(call.the_key, "enabled", state=KeyState.ENABLED)
        return shapes.Empty()

    def disable_key(self, call: Call) -> shapes.Empty:
        """DisableKey."""
        self._registry.update_key(call.the_key, "disabled", state=KeyState.DISABLED)
        return shapes.Empty()

    def schedule_key_deletion(self, call: Call) -> shapes.ScheduleKeyDeletionResponse:
        """ScheduleKeyDeletion."""
        days = call.request.pending_window_in_days
        deletion = call.now + days * SECONDS_PER_DAY
        self._registry.update_key(
            call.the_key, "pending-deletion", state=KeyState.PENDING_DELETION, deletion=deletion
        )
        return shapes.ScheduleKeyDeletionResponse(
            key_id=call.the_key.arn,
            deletion_date=deletion,
            key_state=KeyState.PENDING_DELETION.value,
            pending_window_in_days=days,
        )

    def cancel_key_deletion(self, call: Call) -> shapes.KeyIdResponse:
        """CancelKeyDeletion."""
        waiting = call.the_key.waits_for_material
        state = KeyState.PENDING_IMPORT if waiting else KeyState.DISABLED
        self._registry.update_key(call.the_key, "disabled", state=state, deletion=None)
        return shapes.KeyIdResponse(key_id=call.the_key.arn)

    def put_key_policy(self, call: Call) -> shapes.Empty:
        """PutKeyPolicy."""
        request: shapes.PutKeyPolicyRequest = call.request
        policy = self._compiled(request.policy)
        if not request.bypass_policy_lockout_safety_check:
            refuse_lockout(policy, call.the_key.arn, call.caller, call.now)
        self._registry.update_key(call.the_key, "policy", policy=policy)
        return shapes.Empty()

    def _compiled(self, text: str) -> KeyPolicy:
        """Return a compiled policy whose principals exist (KMS API, PutKeyPolicy)."""
        policy = compile_new_policy(text)
        for statement in policy.statements:
            for principal in statement.principals:
                if not self._principal_exists(principal):
                    raise MalformedPolicy(
                        "Policy contains a statement with one or more invalid principals.", evidence=principal
                    )
        return policy

    def get_key_policy(self, call: Call) -> shapes.GetKeyPolicyResponse:
        """GetKeyPolicy."""
        return shapes.GetKeyPolicyResponse(policy=call.the_key.policy.text, policy_name="default")

    def create_alias(self, call: Call) -> shapes.Empty:
        """CreateAlias."""
        name = check_alias(call.request.alias_name)
        made = Alias(name, call.the_key.key_id, call.now, call.now, call.the_key.scope)
        if made.arn in self._registry.aliases:
            raise AlreadyExists(f"An alias with the name {made.arn} already exists")
        if len(self._registry.aliases_of(call.the_key.key_id)) >= ALIASES_PER_KEY_MAX:
            raise LimitExceeded(f"a key has at most {ALIASES_PER_KEY_MAX} aliases")
        self._registry.put_alias(made)
        return shapes.Empty()

    def update_alias(self, call: Call) -> shapes.Empty:
        """UpdateAlias."""
        old = self._registry.aliases[alias_arn(call.scope, call.request.alias_name)]
        before, after = self._registry.keys[old.key_id], call.the_key
        if (before.usage, is_asymmetric(before.spec)) != (after.usage, is_asymmetric(after.spec)):
            raise KeyInvalidState(
                f"Alias {old.arn} cannot be changed to a KMS key of another type or usage."
            )
        self._registry.put_alias(Alias(old.name, after.key_id, old.created, call.now, old.scope))
        return shapes.Empty()

    def delete_alias(self, call: Call) -> shapes.Empty:
        """DeleteAlias."""
        self._registry.delete_alias(self._registry.aliases[alias_arn(call.scope, call.request.alias_name)])
        return shapes.Empty()

    def list_aliases(self, call: Call) -> shapes.ListAliasesResponse:
        """ListAliases."""
        request: shapes.ListAliasesRequest = call.request
        registry = self._registry
        aliases, keys = registry.aliases, registry.keys
        if request.key_id:
            key = registry.find(request.key_id, call.scope)
            names = registry.listed.aliases_of(key.key_id) if key.scope == call.scope else Names()
        else:
            names = registry.listed.aliases_in(call.scope)
        visible = lambda arn: may(call.caller, "kms:DescribeKey", keys[aliases[arn].key_id], call.now)  # noqa: E731
        page, marker = names.page(request.limit, request.marker, visible)
        return shapes.ListAliasesResponse(
            aliases=[self._alias_entry(aliases[arn]) for arn in page],
            next_marker=marker,
            truncated=marker is not None,
        )

    def purge_due(self, now: float) -> list[str]:
        """Destroy keys whose waiting period is over; return their ARNs."""
        due = [k for k in self._registry.keys.values() if k.deletion is not None and k.deletion <= now]
        for key in due:
            self._registry.destroy(key)
        return [key.arn for key in due]

    def _alias_entry(self, alias: Alias) -> shapes.AliasEntry:
        return shapes.AliasEntry(
            alias_name=alias.name,
            alias_arn=alias.arn,
            target_key_id=alias.key_id,
            creation_date=alias.created,
            last_updated_date=alias.updated,
        )

    def _metadata(self, key: KmsKey) -> shapes.KeyMetadata:
        imported, state = key.current_import, key.state.value
        if key.store and key.state is not KeyState.PENDING_DELETION and self._stores.state(key.store)[0] != CONNECTED:
            state = UNAVAILABLE
        algorithms = {key.usage: list(SPECS[key.spec].algorithms[key.usage])}
        return shapes.KeyMetadata(
            aws_account_id=account_of(key.scope),
            key_id=key.key_id,
            arn=key.arn,
            creation_date=key.created,
            enabled=state == KeyState.ENABLED.value,
            description=key.description,
            key_usage=key.usage,
            key_state=state,
            deletion_date=key.deletion,
            valid_to=imported.valid_to if imported is not None else None,
            origin=key.origin,
            expiration_model=imported.expiration_model if imported is not None else None,
            key_manager="CUSTOMER",
            customer_master_key_spec=key.spec,
            key_spec=key.spec,
            encryption_algorithms=algorithms.get(ENCRYPT),
            signing_algorithms=algorithms.get(SIGN),
            key_agreement_algorithms=algorithms.get(AGREE),
            encapsulation_algorithms=algorithms.get(ENCAPSULATE),
            mac_algorithms=algorithms.get(MAC),
            multi_region=key.key_id.startswith(MULTI_REGION),
            multi_region_configuration=_only_region(key) if key.key_id.startswith(MULTI_REGION) else None,
            current_key_material_id=_material_id(key),
            custom_key_store_id=key.store or None,
            cloud_hsm_cluster_id=self._stores.token_name(key.store) if key.store else None,
        )
