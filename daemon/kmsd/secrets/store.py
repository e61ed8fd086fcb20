"""Secrets in memory, written through to the sealed store; who may do what with one."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from kmsd.authz.decide import Question, decide, decide_by_identity
from kmsd.authz.guardrails import Guardrails
from kmsd.authz.policy import KeyPolicy, compile_policy, names_principal, with_principal
from kmsd.authz.principal import Caller
from kmsd.dispatch.call import Call
from kmsd.dispatch.conditionkeys import values_of_management, values_of_resource
from kmsd.dispatch.paging import Names
from kmsd.events.changes import Change
from kmsd.secrets.records import Secret, Version, secret_of
from kmsd.store.database import Changes, SealedStore, Transaction
from kmsd.store.schema import Table
from kmsfs.errors import AccessDenied, CorruptStore, SecretNotFound
from kmsfs.ids import account_of, region_of

SERVICE = "secretsmanager"
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}\Z")
Values = dict[str, str | list[str]]
_CROSS_ACCOUNT = frozenset(
    f"{SERVICE}:{name}" for name in ("GetSecretValue", "DescribeSecret", "ListSecretVersionIds", "GetResourcePolicy")
)
"""What others may do with a secret: its values are sealed in its own account's name alone."""
MISSING = "Secrets Manager can't find the specified secret."


class SecretStore:
    """All secrets, by ARN and by name within a scope."""

    def __init__(self, store: SealedStore, publish: Callable[[Change], None], guardrails: Guardrails) -> None:
        self._guardrails = guardrails
        self._store = store
        self._publish = publish
        self._by_arn: dict[str, Secret] = {}
        self._names: dict[str, Names] = {}
        self._newest: dict[str, Names] = {}
        self._arns: dict[tuple[str, str], str] = {}
        self._policies: dict[str, KeyPolicy] = {}
        secrets = [secret_of(row) for row in store.scan(Table.SECRET)]
        for secret in sorted(secrets, key=attrgetter("name")):
            self._keep(secret)

    # --- finding ----------------------------------------------------------------------------------------------

    def find(self, call: Call, secret_id: str, action: str) -> Secret:
        """Return the secret of a request, if the caller may do `action` with it.

        Raises:
            SecretNotFound: if there is none, or the caller may not even know of it.
            AccessDenied: if the caller may see it, but not do this.
        """
        secret = self._resolve(call.scope, secret_id)
        if secret is None or (secret.scope != call.scope and action not in _CROSS_ACCOUNT):
            raise SecretNotFound(MISSING)
        if self.may(call.caller, secret, action, call.now, values_of_management(call)):
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
            self._store.require_whole(Table.SECRET, secret_id, f"secret {secret_id[:256]}")
            # An ARN without its six random characters (Secrets Manager API, "SecretId").
            _, _, name = secret_id.partition(":secret:")
            found = self.named(scope, name)
            if found is None or _SUFFIX.sub("", found.arn) != secret_id:
                return None
        return found if region_of(found.scope) == region_of(scope) else None

    def named(self, scope: str, name: str) -> Secret | None:
        """Return the secret with a name, whoever owns it."""
        arn = self._arns.get((scope, name))
        return self._by_arn[arn] if arn is not None else None

    def at(self, scope: str, name: str) -> Secret:
        """Return the secret of a name that is in an index."""
        return self._by_arn[self._arns[scope, name]]

    def require_new(self, call: Call, arn: str) -> None:
        """Let whoever comes through IAM make a secret only with its consent.

        Raises:
            AccessDenied: if nothing allows it.
        """
        question = Question("secretsmanager:CreateSecret", arn, now=call.now, values=values_of_management(call))
        self._guardrails.require_silence(call.caller, question)
        if call.caller.identity is not None and not decide_by_identity(call.caller, question).allowed:
            raise AccessDenied(
                f"User: {call.caller.principal} is not authorized to perform: {question.action} on resource: {arn}"
            )

    def names_in(self, scope: str) -> Names:
        """Return the names of a scope's secrets."""
        return self._names.get(scope, Names())

    def newest_in(self, scope: str) -> Names:
        """Return the `newest_place` of each of a scope's secrets."""
        return self._newest.get(scope, Names())

    def all_in(self, scope: str) -> Iterator[Secret]:
        """Yield a scope's secrets, in no order."""
        return (secret for secret in self._by_arn.values() if secret.scope == scope)

    def may_see(self, call: Call, secret: Secret) -> bool:
        """Tell whether the caller may describe a secret."""
        return self.may(call.caller, secret, "secretsmanager:DescribeSecret", call.now)

    def key_arns(self) -> Iterator[str]:
        """Yield for each secret the ARNs of the KMS keys of its versions that have a stage and a value, each once."""
        for secret in self._by_arn.values():
            yield from {version.key_arn for version in secret.versions if version.stages and version.key_arn}

    def everything(self) -> list[Secret]:
        """Return all secrets, for upkeep."""
        return list(self._by_arn.values())

    def may(self, caller: Caller, secret: Secret, action: str, now: float, values: Values | None = None) -> bool:
        """Tell whether a caller may do something: an explicit Deny wins, then owner, administrator, policy.

        `values` are the condition keys of the request.
        """
        return self.may_under(self._policies.get(secret.arn), caller, secret, action, now, values)

    def may_under(
        self, policy: KeyPolicy | None, caller: Caller, secret: Secret, action: str, now: float, values: Values | None = None
    ) -> bool:
        """As `may`, as if this were the secret's policy."""
        about = {**(values or {}), "secretsmanager:SecretId": secret.arn, **values_of_resource(SERVICE, secret.tags)}
        question = Question(action, secret.arn, now=now, values=about)
        if self._guardrails.policies and self._guardrails.decide(caller, question) is not None:
            return False
        decision = decide(caller, question, policy or _NO_POLICY, ())
        if decision.allowed or decision.by.startswith(("deny:", "identity-deny:")):
            return decision.allowed
        if caller.account != account_of(secret.scope):
            # Of another account's secret its policy decides, together with the caller's own (Secrets Manager user guide,
            # "Access AWS Secrets Manager secrets from a different account").
            return False
        if caller.identity is not None or caller.root:
            return decide_by_identity(caller, question).allowed
        return secret.owner == caller.principal

    # --- changing ---------------------------------------------------------------------------------------------

    def put(
        self,
        secret: Secret,
        values: Sequence[tuple[Version, dict[str, Any]]] = (),
        gone: Sequence[str] = (),
    ) -> None:
        """Store a secret, with the sealed values of versions that are new or sealed anew, without the versions that are gone."""
        with self._store.transaction() as work:
            work.put(Table.SECRET, secret.arn, secret.row())
            for version, sealed in values:
                row = {"arn": secret.arn, "id": version.version_id, "key_arn": version.key_arn, **sealed}
                work.put(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}", row, parent=secret.arn)
            for version_id in gone:
                work.delete(Table.SECRET_VERSION, f"{secret.arn}:{version_id}")
        present = self._by_arn.get(secret.arn)
        self._keep(secret)
        self._tell(secret, _operation(present, secret))

    def follow_principal(self, old: str, new: str, work: Transaction) -> Callable[[], None]:
        """Put secrets whose policies name a principal by its new name into a transaction; return what lets that be seen once it is stored.

        Raises:
            LimitExceeded: if a policy would be too long.
        """
        changed = []
        for arn, policy in self._policies.items():
            if names_principal(policy, old):
                changed.append(replace(self._by_arn[arn], policy=compile_policy(with_principal(policy.text, old, new), SERVICE).text))
                work.put(Table.SECRET, arn, changed[-1].row())

        def seen() -> None:
            """Let the new names count, and tell whoever follows the secrets."""
            for secret in changed:
                self._keep(secret)
                self._tell(secret, "Update")

        return seen

    def remove(self, secret: Secret) -> None:
        """Remove a secret and all its versions for ever."""
        with self._store.transaction() as work:
            for version in secret.versions:
                work.delete(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}")
            work.delete(Table.SECRET, secret.arn)
        self._drop(secret)

    def take(self, changes: Changes) -> None:
        """Let what other daemons wrote be seen here."""
        for arn, row in changes.get(Table.SECRET, {}).items():
            present = self._by_arn.get(arn)
            if row is not None:
                secret = secret_of(row)
                self._keep(secret)
                self._tell(secret, _operation(present, secret))
            elif present is not None:
                self._drop(present)

    def _drop(self, secret: Secret) -> None:
        del self._by_arn[secret.arn]
        del self._arns[secret.scope, secret.name]
        self._names[secret.scope].discard(secret.name)
        self._newest[secret.scope].discard(newest_place(secret))
        if secret.deleted is None:
            self._tell(secret, "Delete")
        self._policies.pop(secret.arn, None)

    def _tell(self, secret: Secret, operation: str) -> None:
        policy = self._policies.get(secret.arn)
        shown = lambda caller, now: self.may_under(policy, caller, secret, "secretsmanager:DescribeSecret", now)  # noqa: E731
        self._publish(Change(SERVICE, operation, secret.scope, secret.arn, secret.name, shown))

    def stored_values(self) -> Iterator[tuple[str, bytes]]:
        """Yield (ARN, sealed value) of every version of every secret, under each of its keys."""
        for row in self._store.scan(Table.SECRET_VERSION):
            yield row["arn"], row["value"]
            if row.get("former"):
                yield row["arn"], row["former"]

    def read_today(self, secret: Secret, now: float) -> None:
        """Note that a value was read: the day counts, not the time (Secrets Manager API, LastAccessedDate)."""
        day = now - now % 86_400
        if secret.accessed != day:
            self._by_arn[secret.arn] = replace(secret, accessed=day)

    def sealed_value(self, secret: Secret, version: Version) -> dict[str, Any]:
        """Return {value, binary} of a version, sealed; with {former} if it is sealed under another key too.

        Raises:
            CorruptStore: if it is missing.
        """
        row = self._store.get(Table.SECRET_VERSION, f"{secret.arn}:{version.version_id}")
        if row is None:
            raise CorruptStore("a version of a secret is missing from the state")
        return row

    def _keep(self, secret: Secret) -> None:
        if secret.arn not in self._by_arn:
            self._names.setdefault(secret.scope, Names()).add(secret.name)
            self._newest.setdefault(secret.scope, Names()).add(newest_place(secret))
        self._by_arn[secret.arn] = secret
        self._arns[secret.scope, secret.name] = secret.arn
        if secret.policy is None:
            self._policies.pop(secret.arn, None)
        else:
            self._policies[secret.arn] = compile_policy(secret.policy, SERVICE)


_NO_POLICY = KeyPolicy("", ())
_LATEST = 1 << 62


def newest_place(secret: Secret) -> str:
    """Return a text that sorts secrets by their creation, the newest first; a space and the name are its end."""
    return f"{_LATEST - round(secret.created * 1e6):020d} {secret.name}"


def _operation(before: Secret | None, after: Secret) -> str:
    if before is None:
        return "Create"
    if (before.deleted is None) == (after.deleted is None):
        return "Update"
    return "Restore" if after.deleted is None else "Delete"
