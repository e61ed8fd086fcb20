"""Filters of ListSecrets and BatchGetSecretValue, purely (Secrets Manager API, "Filter").

Values are prefixes, of which one must match, or not match where a `!` leads. Names and tags compare case-sensitively,
descriptions and `all` do not, and look at words.
"""

import re
from collections.abc import Callable, Sequence

from kmsd.secrets.records import Secret
from kmsfs.api.shapes.secrets import Filter
from kmsfs.errors import InvalidParameter

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+")
"""AWS parts words at capitals too: SecretTwo has two, COMPANYthings is COMPAN and Ythings."""


def make_test(filters: Sequence[Filter] | None) -> Callable[[Secret], bool]:
    """Return a test that every filter holds.

    Raises:
        InvalidParameter: if a filter lacks its key or its values.
    """
    for one in filters or ():
        if one.key is None:
            raise InvalidParameter("Invalid filter key")
        if not one.values:
            raise InvalidParameter(f"Invalid filter values for key: {one.key}")
    return lambda secret: all(_holds(one, secret) for one in filters or ())


def _holds(one: Filter, secret: Secret) -> bool:
    match = _MATCHES[one.key or ""]
    return any(
        not match(secret, value[1:]) if value.startswith("!") else match(secret, value)
        for value in one.values or ()
    )


def _name(secret: Secret, value: str) -> bool:
    return secret.name.startswith(value)


def _description(secret: Secret, value: str) -> bool:
    return _words_match(secret.description or "", value)


def _tag_key(secret: Secret, value: str) -> bool:
    return any(key.startswith(value) for key in secret.tags)


def _tag_value(secret: Secret, value: str) -> bool:
    return any(held.startswith(value) for held in secret.tags.values())


def _nothing(_secret: Secret, _value: str) -> bool:
    return False


def _all(secret: Secret, value: str) -> bool:
    texts = (secret.name, secret.description or "", *secret.tags, *secret.tags.values())
    return any(_words_match(text, value) for text in texts)


def _words_match(text: str, value: str) -> bool:
    """Whether every word of `value` begins a word of the text."""
    words = [word.lower() for word in _WORD.findall(text)]
    wanted = [word.lower() for word in _WORD.findall(value)]
    return bool(wanted) and all(any(word.startswith(part) for word in words) for part in wanted)


_MATCHES: dict[str, Callable[[Secret, str], bool]] = {
    "name": _name, "description": _description, "tag-key": _tag_key, "tag-value": _tag_value,
    "primary-region": _nothing, "owning-service": _nothing, "all": _all,
}  # fmt: skip
