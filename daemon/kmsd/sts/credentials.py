"""From an access key id and a session token to the caller whom they stand for."""

from collections.abc import Callable
from dataclasses import replace

from kmsd.authz.identity import Identity
from kmsd.authz.principal import Caller, make_caller
from kmsd.iam.records import ACTIVE, ROLE, USER, Entity, KeyUse
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import merged
from kmsd.sts.sessions import SessionIdentity, session_policies
from kmsd.sts.tokens import SessionTokens
from kmsfs.errors import UnknownCredentials
from kmsfs.ids import root_principal, session_principal

INVALID = "The security token included in the request is invalid."


class CredentialBook:
    """Knows whose credentials are whose: long-lived access keys from IAM, temporary ones from their own tokens.

    `account_of` tells the account of a local user.
    `owner_uid` is the local user to whose account the audit log and the throttle count callers who are no local users.
    """

    def __init__(
        self,
        account_of: Callable[[int], str],
        tokens: SessionTokens,
        iam: IamStore,
        administrators: frozenset[str],
        owner_uid: int,
    ) -> None:
        self._account_of = account_of
        self._tokens = tokens
        self._iam = iam
        self._administrators = administrators
        self._owner_uid = owner_uid

    def secret_of(self, access_key_id: str) -> str:
        """Return the secret that signs for an access key id. Secret."""
        key = self._iam.access_keys.get(access_key_id)
        return key.secret if key is not None else self._tokens.secret_of(access_key_id)

    def note_use(self, access_key_id: str, use: KeyUse) -> None:
        """Remember that a long-lived access key has signed a request."""
        if access_key_id in self._iam.access_keys:
            self._iam.note_use(access_key_id, use)

    def caller(self, access_key_id: str, token: str, now: float) -> Caller:
        """Return for whom the credentials stand.

        Raises:
            UnknownCredentials: if they are not known, switched off, or lack their token.
            TokenExpired: if their time is over.
        """
        key = self._iam.access_keys.get(access_key_id)
        if key is not None:
            if key.status != ACTIVE or token:
                raise UnknownCredentials(INVALID)
            if key.user is None:
                return self._root(key.account, access_key_id)
            return self._of_user(self._iam.find(key.account, USER, key.user), access_key_id)
        if not token:
            raise UnknownCredentials(
                INVALID, hint="these credentials come with a session token: kmsfs aws env"
            )
        facts = self._tokens.open(access_key_id, token, now)
        if "iam" in facts:
            return self._of_session(SessionIdentity(**facts["iam"]), access_key_id)
        return make_caller(
            self._account_of(facts["uid"]), facts["uid"], facts["gid"], 0, tuple(facts["groups"]), access_key_id=access_key_id,
            administrators=self._administrators,
        )  # fmt: skip

    def _root(self, account: str, access_key_id: str) -> Caller:
        principal = root_principal(account)
        return Caller(
            account, self._owner_uid, 0, 0, principal, frozenset({principal}), (), access_key_id, root=True
        )  # fmt: skip

    def _of_user(self, user: Entity, access_key_id: str) -> Caller:
        names = frozenset({user.arn})
        return self._made(user.account, user.arn, names, access_key_id, self._iam.identity(user), user.tags)

    def _of_session(self, session: SessionIdentity, access_key_id: str) -> Caller:
        if session.root:
            return self._root(session.arn.split(":", 5)[4], access_key_id)
        entity = self._iam.of_id(session.entity_id)
        if entity is None:
            # The user or role is gone: its sessions end with it. One that was made anew under the name has another id.
            raise UnknownCredentials(INVALID)
        if entity.kind != ROLE:
            return replace(self._of_user(entity, access_key_id), mfa_at=session.mfa_at)
        limits = session_policies(self._iam, entity.account, session)
        whole = self._iam.identity(entity)
        identity = Identity(whole.policies, whole.boundary, limits)
        principal = session_principal(entity.account, entity.name, session.session)
        tags = merged(entity.tags, session.tags)
        names = frozenset({principal, entity.arn})
        made = self._made(entity.account, principal, names, access_key_id, identity, tags)
        return replace(made, transitive={key: session.tags[key] for key in session.transitive})

    def _made(
        self, account: str, principal: str, principals: frozenset[str], access_key_id: str, identity: Identity,
        tags: dict[str, str],
    ) -> Caller:  # fmt: skip
        return Caller(
            account, self._owner_uid, 0, 0, principal, principals, (), access_key_id, identity, tags=tags
        )  # fmt: skip
