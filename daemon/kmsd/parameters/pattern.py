"""AllowedPattern: hostile input, so RE2 matches it, in time that is linear in the value's length whatever the pattern.

Source: github.com/google/re2/wiki/Syntax. It has neither look-around nor back-references.
"""

import re2

from kmsfs.errors import InvalidAllowedPattern, ParameterPatternMismatch

_PROGRAM_MAX_BYTES = 1 << 20


def check_value(pattern: str, value: str) -> None:
    """Check that a value matches a parameter's pattern.

    Raises:
        InvalidAllowedPattern: if the pattern is none, asks for what RE2 has not, or repeats so much that it gets too large.
        ParameterPatternMismatch: if the value does not match.
    """
    options = re2.Options()
    options.log_errors = False
    # Who needs no groups is answered by RE2's automaton, and not by its slower simulation.
    options.never_capture = True
    options.max_mem = _PROGRAM_MAX_BYTES
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "it is not Unicode text"
        raise InvalidAllowedPattern(
            f"The pattern is not a regular expression that can be matched in bounded time: {reason}",
            hint="back-references and look-around are not offered; long counted repetitions are too large",
        ) from error
    found = compiled.search(value)
    re2.purge()
    if not found:
        raise ParameterPatternMismatch(
            f"Parameter value, cannot be validated against allowedPattern: {pattern}"
        )
