"""What policies of keys and grants say of a principal that gets another name."""

from collections.abc import Callable
from dataclasses import replace

from kmsd.authz.grants import Grant
from kmsd.authz.policy import KeyPolicy, compile_policy, names_principal, with_principal
from kmsd.keys.registry import KeyRegistry, KmsKey
from kmsd.store.database import Transaction
from kmsd.store.schema import Table


def follow_principal(registry: KeyRegistry, old: str, new: str, work: Transaction) -> Callable[[], None]:
    """Put what names a principal by its new name into a transaction; return what lets it be seen once that is stored.

    Raises:
        LimitExceeded: if a policy would be too long.
    """
    policies: list[tuple[KmsKey, KeyPolicy]] = []
    grants: list[tuple[KmsKey, Grant]] = []
    for key in registry.keys.values():
        if names_principal(key.policy, old):
            policy = compile_policy(with_principal(key.policy.text, old, new))
            work.put(Table.KEY, key.key_id, replace(key, policy=policy, generation=key.generation + 1).row())
            policies.append((key, policy))
        for grant in key.grants.values():
            if old in (grant.grantee, grant.retiring):
                changed = replace(
                    grant, grantee=new if grant.grantee == old else grant.grantee, retiring=new if grant.retiring == old else grant.retiring
                )
                work.put(Table.GRANT, f"{key.key_id}/{grant.grant_id}", changed.row())
                grants.append((key, changed))

    def seen() -> None:
        """Let it count, and tell whoever holds such a key."""
        for key, grant in grants:
            registry.replace_grant(key, grant)
        for key, policy in policies:
            registry.take_policy(key, policy)

    return seen
