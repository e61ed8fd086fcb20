"""Handlers of grant operations."""

from kmsd.authz.grants import Grant
from kmsd.dispatch.call import Call
from kmsd.dispatch.paging import Names, Page
from kmsd.grants.rules import GRANTS_PER_KEY_MAX, limited, same_terms, within
from kmsd.grants.tokens import GrantTokens
from kmsd.keys.registry import KeyRegistry, KmsKey
from kmsfs.aead.nonces import Rng
from kmsfs.api.registry import OPERATIONS
from kmsfs.api.shapes import grants as shapes
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import AccessDenied, InvalidGrantId, InvalidRequest, LimitExceeded
from kmsfs.ids import check_principal


class GrantService:
    """CreateGrant to RevokeGrant."""

    def __init__(self, registry: KeyRegistry, tokens: GrantTokens, rng: Rng) -> None:
        self._registry = registry
        self._tokens = tokens
        self._rng = rng

    def create_grant(self, call: Call) -> shapes.CreateGrantResponse:
        """CreateGrant."""
        request: shapes.CreateGrantRequest = call.request
        key = call.the_key
        grant = self._from_request(call, key, request)
        parent_id = call.decided_by.removeprefix("grant:")
        if parent_id != call.decided_by:
            parent = key.grants[parent_id]
            if not within(parent, grant.operations, grant.equals, grant.subset):
                raise AccessDenied("A grant made through a grant cannot allow more than it.")
            grant = limited(grant, parent)
        if grant.name is not None:
            for old in key.grants_to(grant.grantee).values():
                if same_terms(old, grant):
                    return self._answer(old)
        if len(key.grants) >= GRANTS_PER_KEY_MAX:
            raise LimitExceeded(f"a key has at most {GRANTS_PER_KEY_MAX} grants")
        self._registry.add_grant(key, grant)
        return self._answer(grant)

    def list_grants(self, call: Call) -> shapes.ListGrantsResponse:
        """ListGrants."""
        request: shapes.ListGrantsRequest = call.request
        key, grantee = call.the_key, request.grantee_principal
        if request.grant_id is not None and request.grant_id not in key.grants:
            raise InvalidGrantId(f"Grant ID {request.grant_id} not found")
        if grantee is not None:
            ids = Names(key.grants_to(grantee))
        elif request.grant_id is not None:
            ids = Names([request.grant_id])
        else:
            ids = self._registry.listed.grants_of(key.key_id)
        wanted = lambda grant_id: request.grant_id in (None, grant_id)  # noqa: E731
        return self._listed(ids.page(request.limit, request.marker, wanted))

    def list_retirable_grants(self, call: Call) -> shapes.ListGrantsResponse:
        """ListRetirableGrants: of the calling principal only, as there is nobody to ask about others."""
        request: shapes.ListRetirableGrantsRequest = call.request
        if request.retiring_principal not in call.caller.principals:
            raise AccessDenied("You may list the grants that you may retire.")
        ids = self._registry.listed.retirable(call.scope, request.retiring_principal)
        return self._listed(ids.page(request.limit, request.marker, lambda _grant_id: True))

    def retire_grant(self, call: Call) -> Empty:
        """RetireGrant."""
        key_id, grant_id = self.named_grant(call.request, call.scope)
        key = self._registry.keys[key_id]
        self._registry.remove_grant(key, key.grants[grant_id])
        return Empty()

    def revoke_grant(self, call: Call) -> Empty:
        """RevokeGrant."""
        key = call.the_key
        grant = key.grants.get(call.request.grant_id)
        if grant is None:
            raise InvalidGrantId(f"Grant ID {call.request.grant_id} not found")
        self._registry.remove_grant(key, grant)
        return Empty()

    def named_grant(self, request: shapes.RetireGrantRequest, scope: str) -> tuple[str, str]:
        """Return (key id, grant id) of the grant to retire.

        Raises:
            InvalidGrantToken: if the token is not ours.
            InvalidGrantId: if there is no such grant.
            KeyNotFound: if there is no such key.
        """
        if request.grant_token is not None:
            owner, grant_id = self._tokens.read(request.grant_token)
            named = self._registry.of_owner(owner)
            key_id = named.key_id if named is not None else owner
        else:
            key_id, grant_id = self._registry.find(request.key_id or "", scope).key_id, request.grant_id or ""
        key = self._registry.keys.get(key_id)
        if key is None or grant_id not in key.grants:
            raise InvalidGrantId(f"Grant ID {grant_id} not found")
        return key_id, grant_id

    def _from_request(self, call: Call, key: KmsKey, request: shapes.CreateGrantRequest) -> Grant:
        check_principal(request.grantee_principal)
        if request.retiring_principal is not None:
            check_principal(request.retiring_principal)
        for operation in request.operations:
            declared = OPERATIONS.get(operation) or OPERATIONS["ReEncrypt"]
            if declared.usages and key.usage not in declared.usages:
                raise InvalidRequest(
                    f"The operation {operation} is not valid for a KMS key with key usage {key.usage}."
                )
        limits = request.constraints or shapes.GrantConstraints()
        return Grant(
            self._rng(32).hex(), key.key_id, request.grantee_principal, request.retiring_principal,
            frozenset(request.operations), limits.encryption_context_equals, limits.encryption_context_subset,
            request.name, call.now, call.caller.principal,
            call.now + request.expires_in_seconds if request.expires_in_seconds is not None else None, request.reason,
        )  # fmt: skip

    def _answer(self, grant: Grant) -> shapes.CreateGrantResponse:
        return shapes.CreateGrantResponse(
            grant_token=self._tokens.mint(grant.key_id, grant.grant_id), grant_id=grant.grant_id
        )

    def _listed(self, page: Page) -> shapes.ListGrantsResponse:
        ids, following = page
        return shapes.ListGrantsResponse(
            grants=[self._entry(self._registry.listed.grant(grant_id)) for grant_id in ids],
            next_marker=following,
            truncated=following is not None,
        )

    def _entry(self, grant: Grant) -> shapes.GrantEntry:
        constraints = None
        if grant.equals is not None or grant.subset is not None:
            constraints = shapes.GrantConstraints(
                encryption_context_equals=grant.equals, encryption_context_subset=grant.subset
            )
        return shapes.GrantEntry(
            key_id=self._registry.keys[grant.key_id].arn,
            grant_id=grant.grant_id,
            name=grant.name,
            creation_date=grant.created,
            grantee_principal=grant.grantee,
            retiring_principal=grant.retiring,
            issuing_account=grant.issuer,
            operations=sorted(grant.operations),
            constraints=constraints,
            expiration_date=grant.expires,
            reason=grant.reason,
        )
