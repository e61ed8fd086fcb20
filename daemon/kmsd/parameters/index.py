"""The newest facts of every parameter, in memory: found by name, in order, by tier, and by having policies."""

from collections import Counter
from collections.abc import Iterable, Iterator

from kmsd.dispatch.paging import Names
from kmsd.parameters.records import ParameterFacts


class ParameterIndex:
    """Each scope (region and account) has its own tree."""

    def __init__(self, everything: Iterable[ParameterFacts]) -> None:
        """Index what there is."""
        self._scopes: dict[str, dict[str, ParameterFacts]] = {}
        self._tiers: Counter[tuple[str, str]] = Counter()
        self._policies: set[tuple[str, str]] = set()
        for facts in everything:
            self._note(facts)
        self._names = {scope: Names(tree) for scope, tree in self._scopes.items()}

    def __len__(self) -> int:
        return sum(len(tree) for tree in self._scopes.values())

    def get(self, scope: str, name: str) -> ParameterFacts | None:
        """Return a parameter's facts, or None."""
        tree = self._scopes.get(scope)
        return None if tree is None else tree.get(name)

    def at(self, scope: str, name: str) -> ParameterFacts:
        """Return the facts of a parameter that is there."""
        return self._scopes[scope][name]

    def names_in(self, scope: str) -> Names:
        """Return a scope's names, in order."""
        return self._names.get(scope, Names())

    def count_of(self, scope: str, tier: str) -> int:
        """Return how many parameters of a tier there are."""
        return self._tiers[scope, tier]

    def with_policies(self) -> list[ParameterFacts]:
        """Return the parameters that have policies."""
        return [self._scopes[scope][name] for scope, name in self._policies]

    def everything(self) -> Iterator[ParameterFacts]:
        """Yield all parameters of all scopes."""
        for tree in self._scopes.values():
            yield from tree.values()

    def put(self, facts: ParameterFacts) -> None:
        """Take a new parameter, or the new facts of one."""
        present = self.get(facts.scope, facts.name)
        if present is not None:
            self._forget(present)
        else:
            self._names.setdefault(facts.scope, Names()).add(facts.name)
        self._note(facts)

    def remove(self, facts: ParameterFacts) -> None:
        """Forget a parameter."""
        self._forget(facts)
        del self._scopes[facts.scope][facts.name]
        self._names[facts.scope].discard(facts.name)

    def _note(self, facts: ParameterFacts) -> None:
        self._scopes.setdefault(facts.scope, {})[facts.name] = facts
        self._tiers[facts.scope, facts.tier] += 1
        if facts.policies:
            self._policies.add((facts.scope, facts.name))

    def _forget(self, facts: ParameterFacts) -> None:
        self._tiers[facts.scope, facts.tier] -= 1
        self._policies.discard((facts.scope, facts.name))
