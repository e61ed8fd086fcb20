"""Secrets in memory, written through to the sealed store; who may do what with one."""

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from kmsd.authz.decide import Question, decide, decide_by_identity
from kmsd.authz.policy import KeyPolicy, compile_policy
from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.events.changes import Change
from kmsd.secrets.records import Secret, Version, secret_of
from kmsd.store.database import SealedStore
from kmsd.store.schema import Table
from kmsfs.errors import AccessDenied, CorruptStore, SecretNotFound

SERVICE = "secretsmanager"
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}\Z")
MISSING = "Secrets Manager can't find the specified secret."


class SecretStore:
    """All secrets, by ARN and by name within a scope."""

    def __init__(self, store: SealedStore, publish: Callable[[Change], None]) -> None:
        self._store = store
        self._publish = publish
        self._by_arn: dict[str, Secret] = {}
        self._names: dict[str, list[str]] = {}
        self._arns: dict[tuple[str, str], str] = {}
        self._policies: dict[str, KeyPolicy] = {}
        for row in store.scan(Table.SECRET):
            self._keep(secret_of(row))

    # --- finding ----------------------------------------------------------------------------------------------

    def find(self, call: Call, secret_id: str, action: str) -> Secret:
        """Return the secret of a request, if the caller may do `action` with it.

        Raises:
            SecretNotFound: if there is none, or the caller may not even know of it.
            AccessDenied: if the caller may see it, but not do this.
        """
        secret = self._resolve(call.scope, secret_id)
        if secret is None:
            raise SecretNotFound(MISSING)
        if self.may(call.caller, secret, action, call.now):
            return secret
        if self.may(call.caller, secret, "secretsmanager:DescribeSecret", call.now):
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {action} on resource: {secret.arn}"
            )
        raise SecretNotFound(MISSING)

    def _resolve(self, scope: str, secret_id: str) -> Secret | None:
        if not secret_id.startswith("arn:"):
            return self.named(scope, secret_id)
        found = self._by_arn.get(secret_id)
        if found is None:
            # An ARN without its six random characters (Secrets Manager API, "SecretId").
            _, _, name = secret_id.partition(":secret:")
            found = self.named(scope, name)
            if found is None or _SUFFIX.sub("", found.arn) != secret_id:
                return None
        return found if found.scope == scope else None

    def named(self, scope: str, name: str) -> Secret | None:
        """Return the secret with a name, whoever owns it."""
        arn = self._arns.get((scope, name))
        return self._by_arn[arn] if arn is not None else None

    def require_new(self, call: Call, arn: str) -> None:
        """Let whoever comes through IAM make a secret only with its consent.

        Raises:
            AccessDenied: if nothing allows it.
        """
        question = Question("secretsmanager:CreateSecret", arn, now=call.now)
        if call.caller.identity is not None and not decide_by_identity(call.caller, question).allowed:
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {question.action} on resource: {arn}"
            )

    def visible(self, call: Call) -> Iterator[Secret]:
        """Yield the secrets of the call's scope that the caller may describe, by name."""
        for name in list(self._names.get(call.scope, [])):
            secret = self._by_arn[self._arns[call.scope, name]]
            if self.may(call.caller, secret, "secretsmanager:DescribeSecret", call.now):
                yield secret

    def key_arns(self) -> Iterator[str]:
        """Yield the ARN of the KMS key of each secret's newest version that has a value."""
        for secret in self._by_arn.values():
            arns = [version.key_arn for version in secret.versions if version.key_arn]
            if arns:
                yield arns[-1]

    def everything(self) -> list[Secret]:
        """Return all secrets, for upkeep."""
        return list(self._by_arn.values())

    def may(self, caller: Caller, secret: Secret, action: str, now: float) -> bool:
        """Tell whether a caller may do something: an explicit Deny wins, then owner, administrator, policy."""
        return self.may_under(self._policies.get(secret.arn), caller, secret, action, now)

    def may_under(
        self, policy: KeyPolicy | None, caller: Caller, secret: Secret, action: str, now: float
    ) -> bool:
        """As `may`, as if this were the secret's policy."""
        question = Question(action, secret.arn, now=now)
        decision = decide(caller, question, policy or _NO_POLICY, ())
        if decision.allowed or decision.by.startswith(("deny:", "identity-deny:")):
            return decision.allowed
        if caller.identity is not None or caller.root:
            return decide_by_identity(caller, question).allowed
        return secret.owner == caller.principal

    # --- changing ---------------------------------------------------------------------------------------------

    def put(
        self,
        secret: Secret,
        value: tuple[Version, dict[str, Any]] | None = None,
        gone: list[str] | None = None,
    ) -> None:
        """Store a secret, with a new version's sealed value, without the versions that are gone."""
        with self._store.transaction() as work:
            work.put(Table.SECRET, secret.arn, secret.row())
            if value is not None:
                version, sealed = value
                row = {"arn": secret.arn, "id": version.version_id, "key_arn": version.key_arn, **sealed}
                work.put(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}", row, parent=secret.arn)
            for version_id in gone or ():
                work.delete(Table.SECRET_VERSION, f"{secret.arn}:{version_id}")
        present = self._by_arn.get(secret.arn)
        self._keep(secret)
        self._tell(secret, _operation(present, secret))

    def remove(self, secret: Secret) -> None:
        """Remove a secret and all its versions for ever."""
        with self._store.transaction() as work:
            for version in secret.versions:
                work.delete(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}")
            work.delete(Table.SECRET, secret.arn)
        del self._by_arn[secret.arn]
        del self._arns[secret.scope, secret.name]
        names = self._names[secret.scope]
        del names[bisect.bisect_left(names, secret.name)]
        if secret.deleted is None:
            self._tell(secret, "Delete")
        self._policies.pop(secret.arn, None)

    def _tell(self, secret: Secret, operation: str) -> None:
        policy = self._policies.get(secret.arn)
        shown = lambda caller, now: self.may_under(policy, caller, secret, "secretsmanager:DescribeSecret", now)  # noqa: E731
        self._publish(Change(SERVICE, operation, secret.scope, secret.arn, secret.name, shown))

    def stored_values(self) -> Iterator[tuple[str, bytes]]:
        """Yield (ARN, sealed value) of every version of every secret."""
        for row in self._store.scan(Table.SECRET_VERSION):
            yield row["arn"], row["value"]

    def read_today(self, secret: Secret, now: float) -> None:
        """Note that a value was read: the day counts, not the time (Secrets Manager API, LastAccessedDate)."""
        day = now - now % 86_400
        if secret.accessed != day:
            self._by_arn[secret.arn] = replace(secret, accessed=day)

    def sealed_value(self, secret: Secret, version: Version) -> dict[str, Any]:
        """Return {value, binary} of a version, sealed.

        Raises:
            CorruptStore: if it is missing.
        """
        row = self._store.get(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}")
        if row is None:
            raise CorruptStore("a version of a secret is missing from the state")
        return row

    def _keep(self, secret: Secret) -> None:
        if secret.arn not in self._by_arn:
            bisect.insort(self._names.setdefault(secret.scope, []), secret.name)
        self._by_arn[secret.arn] = secret
        self._arns[secret.scope, secret.name] = secret.arn
        if secret.policy is None:
            self._policies.pop(secret.arn, None)
        else:
            self._policies[secret.arn] = compile_policy(secret.policy, SERVICE)


_NO_POLICY = KeyPolicy("", ())


def _operation(before: Secret | None, after: Secret) -> str:
    if before is None:
        return "Create"
    if (before.deleted is None) == (after.deleted is None):
        return "Update"
    return "Restore" if after.deleted is None else "Delete"
