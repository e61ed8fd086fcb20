"""AllowedPattern: hostile input, so only patterns without nested repetition are accepted.

Python's matcher backtracks; refusing a repeated group that itself repeats, alternation under repetition and
back-references leaves patterns whose time is a small power of the value's length (at most 8 KiB).
"""

import re
import re._constants as ops  # type: ignore[import-not-found]  # the parse tree has no public spelling
import re._parser as parser  # type: ignore[import-not-found]
from typing import Any

from kmsfs.errors import InvalidAllowedPattern, ParameterPatternMismatch

_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
_MAX_OPEN_REPEATS = 4


def check_value(pattern: str, value: str) -> None:
    """Check that a value matches a parameter's pattern.

    Raises:
        InvalidAllowedPattern: if the pattern is none, or could take long.
        ParameterPatternMismatch: if the value does not match.
    """
    try:
        tree = parser.parse(pattern)
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidAllowedPattern("The pattern is not a regular expression.") from error
    if _cost(tree, inside=False) > _MAX_OPEN_REPEATS:
        raise InvalidAllowedPattern("The pattern repeats too often to be matched in bounded time.")
    if not compiled.search(value):
        raise ParameterPatternMismatch(
            f"Parameter value, cannot be validated against allowedPattern: {pattern}"
        )


def _cost(tree: Any, *, inside: bool) -> int:
    """Number of open repeats; more than the limit where one lies inside another."""
    total = 0
    for code, argument in tree:
        if code in _REPEATS:
            low, high, body = argument
            if high is ops.MAXREPEAT or high - low > 64 or inside:
                total += 1 if not inside else _MAX_OPEN_REPEATS + 1
            total += _cost(body, inside=True)
        elif code is ops.GROUPREF:
            return _MAX_OPEN_REPEATS + 1
        elif code is ops.SUBPATTERN:
            total += _cost(argument[-1], inside=inside)
        elif code is ops.BRANCH:
            total += (_MAX_OPEN_REPEATS + 1 if inside else 0) + sum(
                _cost(b, inside=inside) for b in argument[1]
            )
        elif code in (ops.ASSERT, ops.ASSERT_NOT):
            total += _cost(argument[1], inside=inside)
    return total
