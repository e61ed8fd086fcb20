"""Policy variables: `${aws:username}` in Resource and Condition (IAM user guide, "Policy variables"). Pure.

They count in policies of version 2012-10-17; in older ones `${…}` is plain text. A value that is put in never acts as a
wildcard, whatever characters it has. Of a variable that a request does not have, AWS says that it matches nothing; an
Allow with one does not apply here at all, so that NotResource and negated operators give nothing away.
"""

import re
from collections.abc import Mapping

from kmsd.authz.conditions import spelling_of

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_SIGNS = ("*", "?", "$")
_NOTHING = "\ue002"
"""A pattern that no text matches."""
_LITERAL = str.maketrans({"*": "\ue000", "?": "\ue001", "\ue000": "\ufffd", "\ue001": "\ufffd", "\ue002": "\ufffd"})
"""Characters that mean something in patterns, as characters."""

Values = Mapping[str, str | list[str]]


class Unresolved(Exception):
    """The request lacks a variable's key, or has several values of it."""


def has_variables(texts: tuple[str, ...]) -> bool:
    """Tell whether any text has a variable."""
    return any("${" in text for text in texts)


def literal(text: str) -> str:
    """Return a text as what patterns from `resolve` are matched with."""
    return text.translate(_LITERAL)


def resolve(patterns: tuple[str, ...], values: Values, *, strict: bool) -> tuple[str, ...]:
    """Return patterns with the request's values put in.

    Raises:
        Unresolved: if one cannot be, and that is not to pass as a pattern that matches nothing.
    """
    made = []
    for pattern in patterns:
        try:
            made.append(_VARIABLE.sub(lambda found: _value(found[1], values), pattern))
        except Unresolved:
            if strict:
                raise
            made.append(_NOTHING)
    return tuple(made)


def _value(name: str, values: Values) -> str:
    if name in _SIGNS:
        return literal(name)
    key, comma, rest = name.partition(",")
    rest = rest.strip()
    quoted = len(rest) > 1 and rest[0] == rest[-1] == "'" and rest.count("'") == 2
    if comma and not quoted:
        raise Unresolved
    held = values.get(spelling_of(key.strip()))
    if isinstance(held, str):
        return literal(held)
    if comma:
        return literal(rest[1:-1])
    raise Unresolved
