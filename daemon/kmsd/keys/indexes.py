"""Keys, aliases and grants in the order in which they are listed: a page costs what it shows, however many there are. Pure."""

from typing import TypeVar

from kmsd.authz.grants import Grant
from kmsd.dispatch.paging import Names
from kmsfs.ids import region_of

_Place = TypeVar("_Place")
_NONE = Names()


class ListingIndexes:
    """Names by what is asked for; whoever changes keys, aliases or grants tells it."""

    def __init__(self) -> None:
        self._keys: dict[str, Names] = {}
        self._aliases: dict[str, Names] = {}
        self._aliases_of: dict[str, Names] = {}
        self._grants_of: dict[str, Names] = {}
        self._retirable: dict[tuple[str, str], Names] = {}
        self._grants: dict[str, Grant] = {}

    def keys_in(self, scope: str) -> Names:
        """Return the ids of a scope's keys."""
        return self._keys.get(scope, _NONE)

    def aliases_in(self, scope: str) -> Names:
        """Return the ARNs of a scope's aliases."""
        return self._aliases.get(scope, _NONE)

    def aliases_of(self, key_id: str) -> Names:
        """Return the ARNs of a key's aliases."""
        return self._aliases_of.get(key_id, _NONE)

    def grants_of(self, key_id: str) -> Names:
        """Return the ids of a key's grants."""
        return self._grants_of.get(key_id, _NONE)

    def retirable(self, scope: str, principal: str) -> Names:
        """Return the ids of the grants in a scope's region that a principal may retire, whoever owns the keys."""
        return self._retirable.get((region_of(scope), principal), _NONE)

    def grant(self, grant_id: str) -> Grant:
        """Return the grant of an id that is in an index."""
        return self._grants[grant_id]

    def add_key(self, scope: str, key_id: str) -> None:
        """Take a new key."""
        self._keys.setdefault(scope, Names()).add(key_id)

    def drop_key(self, scope: str, key_id: str) -> None:
        """Forget a key; its aliases and grants are dropped before."""
        self._keys[scope].discard(key_id)

    def add_alias(self, scope: str, arn: str, key_id: str) -> None:
        """Take a new alias."""
        self._aliases.setdefault(scope, Names()).add(arn)
        self._aliases_of.setdefault(key_id, Names()).add(arn)

    def drop_alias(self, scope: str, arn: str, key_id: str) -> None:
        """Forget an alias, of the key that it names."""
        self._aliases[scope].discard(arn)
        _drop(self._aliases_of, key_id, arn)

    def add_grant(self, scope: str, grant: Grant) -> None:
        """Take a new grant on a key of a scope."""
        self._grants[grant.grant_id] = grant
        self._grants_of.setdefault(grant.key_id, Names()).add(grant.grant_id)
        if grant.retiring is not None:
            self._retirable.setdefault((region_of(scope), grant.retiring), Names()).add(grant.grant_id)

    def drop_grant(self, scope: str, grant: Grant) -> None:
        """Forget a grant."""
        del self._grants[grant.grant_id]
        _drop(self._grants_of, grant.key_id, grant.grant_id)
        if grant.retiring is not None:
            _drop(self._retirable, (region_of(scope), grant.retiring), grant.grant_id)


def _drop(index: dict[_Place, Names], place: _Place, name: str) -> None:
    names = index[place]
    names.discard(name)
    if not names:
        del index[place]
