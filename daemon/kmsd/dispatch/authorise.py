"""Find what a call acts on, and ask the one evaluator whether it may."""

from itertools import islice
from typing import Any

from kmsd.access.denials import Denial, Denials
from kmsd.accounts.store import AccountStore
from kmsd.authz.decide import Question, decide, decide_by_identity
from kmsd.authz.guardrails import Guardrails
from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.dispatch.conditionkeys import values_of_call, values_of_management, values_of_resource
from kmsd.grants.service import GrantService
from kmsd.grants.tokens import GrantTokens
from kmsd.iam.resources import renamed, resource_of
from kmsd.iam.store import IamStore
from kmsd.keys.lifecycle import check_state, check_usage
from kmsd.keys.registry import KeyRegistry, KmsKey
from kmsd.store.schema import Table
from kmsfs.api.keyspecs import SYMMETRIC
from kmsfs.api.operation import Resource
from kmsfs.errors import AccessDenied, AliasNotFound, IncorrectKey, InvalidCiphertext, ShapeError
from kmsfs.formats.blob import BlobType, parse_blob
from kmsfs.ids import account_of, alias_arn, check_alias, region_of

_NOT_OURS = (
    "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed "
    "to access."
)
"""What AWS says of another account's key, so that a ciphertext does not tell whether it is there."""
VOLUME_PURPOSE = "volume-root"
_OTHER_GRANTS = 20
"""Grants of others that an explanation shows."""


class Authoriser:
    """Resolves keys and decides, in AWS's order: found, authorised, state."""

    def __init__(
        self,
        registry: KeyRegistry,
        grants: GrantService,
        tokens: GrantTokens,
        denials: Denials,
        guardrails: Guardrails,
        iam: IamStore,
        accounts: AccountStore,
    ) -> None:
        self._iam = iam
        self._accounts = accounts
        self._denials = denials
        self._guardrails = guardrails
        self._registry = registry
        self._grants = grants
        self._tokens = tokens
        self._by_resource = {
            Resource.KEY: self._on_key,
            Resource.VOLUME: self._on_volume,
            Resource.CIPHERTEXT: self._on_ciphertext,
            Resource.REENCRYPT: self._on_re_encrypt,
            Resource.ALIAS: self._on_alias,
            Resource.GRANT: self._on_grant,
            Resource.NONE: self._on_nothing,
            Resource.IAM: self._on_account,
            Resource.ORGANIZATION: self._on_organization,
            Resource.KEY_STORE: self._on_key_store,
            Resource.SECRET: self._on_secrets,
        }

    def authorise(self, call: Call) -> None:
        """Let the call pass, with its key, blob and source key resolved.

        Raises:
            KeyNotFound, AliasNotFound, InvalidArn: if what it names is not there.
            InvalidCiphertext, IncorrectKey: if its blob names no key, or another than KeyId.
            InvalidGrantToken: if a grant token is not ours.
            AccessDenied: if the evaluator says no, or an account is closed.
            KeyDisabled, KeyInvalidState: if the key's state does not allow it.
        """
        if call.caller.account in self._accounts.closed:
            raise AccessDenied(f"The account {call.caller.account} is closed.")
        for token in getattr(call.request, "grant_tokens", ()):
            self._tokens.read(token)
        check = self._by_resource.get(call.operation.resource)
        if check is not None:
            check(call)

    def require(
        self,
        call: Call,
        key: KmsKey,
        action: str,
        context: dict[str, str],
        values: dict[str, Any] | None = None,
    ) -> None:
        """Ask the evaluator about one action on one key.

        Raises:
            AccessDenied: if the answer is no; the reason goes to the audit record only.
        """
        if self._is_closed(key):
            call.decided_by = "account-closed"
            raise AccessDenied(f"The account of {key.arn} is closed.")
        about = values or {}
        if key.policy.asks_of_the_request or call.caller.identity is not None or self._guardrails.policies:
            about = {**key.condition_values(), **values_of_call(call), **about}
        question = Question(action, key.arn, context, call.via, call.now, about)
        decision = self._guardrails.decide(call.caller, question) or decide(
            call.caller, question, key.policy, key.grants_for(call.caller)
        )
        call.decided_by = decision.by
        if not decision.allowed:
            call.key = call.key or key
            shown = (*key.grants_for(call.caller), *islice(key.grants.values(), _OTHER_GRANTS))
            grants = tuple({grant.grant_id: grant for grant in shown}.values())
            denial = Denial(call.caller, question, key.policy, grants, self._guardrails.policies)
            self._denials.note(call.call_id, denial)
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {action} on resource: {key.arn}",
                hint=f"who may read the key's policy sees why: kmsfs why {call.call_id}",
            )

    def may_know(self, caller: Caller, key: KmsKey, now: float) -> bool:
        """Tell whether a caller may describe a key, outside of a call."""
        if self._is_closed(key) or caller.account in self._accounts.closed:
            return False
        question = Question("kms:DescribeKey", key.arn, now=now, values=key.condition_values())
        decision = self._guardrails.decide(caller, question) or decide(caller, question, key.policy, key.grants_for(caller))
        return decision.allowed

    def _is_closed(self, key: KmsKey) -> bool:
        return bool(self._accounts.closed) and account_of(key.scope) in self._accounts.closed

    def _find(self, call: Call, reference: str) -> KmsKey:
        """Find a key of the caller's account; in another one, by ARN, for what AWS offers across accounts.

        Raises:
            KeyNotFound, AliasNotFound, InvalidArn: as the registry.
            AccessDenied: if the operation is for the key's own account alone.
        """
        key = self._registry.find(reference, call.scope)
        operation = call.operation
        if key.scope != call.scope and not (operation.cryptographic or operation.cross_account):
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {operation.action} on resource: {key.arn}",
                hint=f"{operation.name} is for callers of the key's own account",
            )
        return key

    def _on_nothing(self, call: Call) -> None:
        """What acts on nothing yet is for every local user; who comes through IAM needs its consent."""
        caller = call.caller
        self._guardrails.require_silence(caller, self._question_of(call, "*"))
        if caller.identity is None or caller.root or call.operation.service not in ("kms", "kmsfs"):
            return
        self._require_identity(call, "*")

    def _on_account(self, call: Call) -> None:
        """The account's identities are its root's, its administrators' and theirs whom IAM lets."""
        himself = call.operation.service == "iam"
        resource = resource_of(call.request, call.caller, self._iam, himself=himself)
        self._require_identity(call, resource)
        target = renamed(call.request, call.caller, self._iam)
        if target is not None:
            self._require_identity(call, target, now_called=resource)

    def _on_secrets(self, call: Call) -> None:
        """Each secret is decided on where it is found; what names none is for everybody whom no guardrail bars."""
        if not hasattr(call.request, "secret_id") and call.operation.name != "CreateSecret":
            self._guardrails.require_silence(call.caller, self._question_of(call, "*"))

    def _question_of(self, call: Call, resource: str) -> Question:
        values = values_of_management(call) if self._guardrails.policies else {}
        return Question(call.operation.action, resource, via=call.via, now=call.now, values=values)

    def _on_key_store(self, call: Call) -> None:
        """Custom key stores are the account's: its root's, its administrators' and theirs whom IAM lets."""
        self._require_identity(call, "*")

    def _on_organization(self, call: Call) -> None:
        """Accounts are the business of the managing one; the others may know that there are more."""
        if call.caller.account != self._accounts.management and call.operation.name != "DescribeOrganization":
            raise AccessDenied("You don't have permissions to access this resource.")
        self._require_identity(call, "*")

    def _require_identity(self, call: Call, resource: str, *, now_called: str = "") -> None:
        values = values_of_management(call)
        tags = self._iam.tags_of(now_called or resource)
        if tags:
            values = {**values, **values_of_resource("iam", tags)}
        question = Question(call.operation.action, resource, now=call.now, via=call.via, values=values)
        self._guardrails.require_silence(call.caller, question)
        decision = decide_by_identity(call.caller, question)
        call.decided_by = decision.by
        if not decision.allowed:
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {call.operation.action} on resource: "
                f"{resource} because no identity-based policy allows the {call.operation.action} action"
            )

    def _on_key(self, call: Call) -> None:
        request = call.request
        key = self._find(call, getattr(request, call.operation.resource_field))
        call.key = key
        contexts = getattr(request, "encryption_contexts", None)
        if contexts is None:
            context = getattr(request, "encryption_context", None)
            values = None if call.operation.cryptographic else values_of_management(call)
            self.require(call, key, call.operation.action, context or {}, values)
        else:
            for context in contexts:
                self.require(call, key, call.operation.action, context)
                if not self._asks_of_context(call, key):
                    # A policy without conditions says of all contexts what it says of one.
                    break
        self._check_key(call, key)

    def _asks_of_context(self, call: Call, key: KmsKey) -> bool:
        """Whether another encryption context could be decided otherwise than the one before: by conditions, or by a grant's constraints."""
        asks = key.policy.asks_for_values or call.caller.identity is not None or bool(self._guardrails.policies)
        return asks or call.decided_by.startswith("grant:")

    def _check_key(self, call: Call, key: KmsKey) -> None:
        for term in key.overdue(call.now) if key.imports else ():
            self._registry.drop_material(key, term)
        check_state(call.operation, key.state, key.arn)
        check_usage(call.operation, key.usage, key.arn)

    def _on_volume(self, call: Call) -> None:
        key = self._find(call, call.request.key_id)
        call.key = key
        context = {"kmsfs:volume": call.request.volume_id, "kmsfs:purpose": VOLUME_PURPOSE}
        self.require(call, key, call.operation.action, context)
        self._check_key(call, key)
        target = getattr(call.request, "target_key_id", None)
        if target is not None:
            call.target = self._find(call, target)
            self.require(call, call.target, call.operation.action, context)
            self._check_key(call, call.target)

    def _on_ciphertext(self, call: Call) -> None:
        request = call.request
        key = self._key_of_ciphertext(
            call, request.ciphertext_blob, request.key_id, request.encryption_algorithm
        )
        if request.key_id is not None and self._find(call, request.key_id) is not key:
            raise IncorrectKey(
                "The key ID in the request does not identify a CMK that can perform this operation."
            )
        call.key = key
        try:
            self.require(call, key, call.operation.action, request.encryption_context)
        except AccessDenied as error:
            if key.scope == call.scope:
                raise
            raise AccessDenied(_NOT_OURS, hint=error.hint) from error
        self._check_key(call, key)

    def _key_of_ciphertext(self, call: Call, data: bytes, key_id: str | None, algorithm: str) -> KmsKey:
        """An RSA ciphertext names no key, so the request must; a blob of ours names its own."""
        if algorithm == SYMMETRIC:
            return self.key_of_blob(call, data)
        if key_id is None:
            raise ShapeError(f"KeyId is required for algorithm {algorithm}.")
        return self._find(call, key_id)

    def key_of_blob(self, call: Call, data: bytes) -> KmsKey:
        """Parse a blob into `call.blob` and return the key it names.

        Raises:
            InvalidCiphertext: if it is no blob, or names no key of ours.
        """
        blob = parse_blob(data)
        key = self._registry.of_owner(blob.key_id) if blob.kind is BlobType.KMS_CIPHERTEXT else None
        if key is None and blob.kind is BlobType.KMS_CIPHERTEXT:
            self._registry.store.require_whole(Table.KEY, blob.key_id, f"key {blob.key_id}")
        if key is None or (key.scope != call.scope and region_of(key.scope) != region_of(call.scope)):
            raise InvalidCiphertext(evidence="blob of no key here")
        call.blob = blob
        return key

    def _on_re_encrypt(self, call: Call) -> None:
        request = call.request
        source = self._key_of_ciphertext(
            call, request.ciphertext_blob, request.source_key_id, request.source_encryption_algorithm
        )
        if request.source_key_id is not None and self._find(call, request.source_key_id) is not source:
            raise IncorrectKey(
                "The key ID in the request does not identify a CMK that can perform this operation."
            )
        destination = self._find(call, request.destination_key_id)
        call.source, call.key = source, destination
        algorithms = (request.source_encryption_algorithm, request.destination_encryption_algorithm)
        before, after = ({"kms:EncryptionAlgorithm": algorithm} for algorithm in algorithms)
        self.require(call, source, "kms:ReEncryptFrom", request.source_encryption_context, before)
        self.require(call, destination, "kms:ReEncryptTo", request.destination_encryption_context, after)
        self._check_key(call, source)
        self._check_key(call, destination)

    def _on_alias(self, call: Call) -> None:
        name = check_alias(call.request.alias_name)
        arn = alias_arn(call.scope, name)
        alias = self._registry.aliases.get(arn)
        if alias is None and call.operation.name != "CreateAlias":
            raise AliasNotFound(f"Alias {arn} is not found.")
        target = getattr(call.request, "target_key_id", None)
        keys = [self._find(call, target)] if target is not None else []
        if alias is not None and call.operation.name != "CreateAlias":
            keys.append(self._registry.keys[alias.key_id])
        call.key = keys[0]
        for key in keys:
            self.require(call, key, call.operation.action, {})
        check_state(call.operation, call.key.state, call.key.arn)

    def _on_grant(self, call: Call) -> None:
        key_id, grant_id = self._grants.named_grant(call.request, call.scope)
        key = self._registry.keys[key_id]
        call.key = key
        grant = key.grants[grant_id]
        principals = call.caller.principals
        if grant.retiring in principals or (
            "RetireGrant" in grant.operations and grant.grantee in principals
        ):
            call.decided_by = f"grant:{grant_id}"
            return
        self.require(call, key, call.operation.action, {})
