"""Match `*` and `?` patterns without going back, and letter by letter in C alone: policies are hostile input."""

import re
from functools import lru_cache


def matches(pattern: str, text: str) -> bool:
    """Tell whether `text` matches `pattern`, case-sensitively.

    The text between two stars is found where it comes first: what is behind it then has the most room. At worst, with a `?` in it, that
    compares every letter with every letter, in some tens of milliseconds for a policy's and a context's longest.
    """
    if pattern.find("*") == len(pattern) - 1 and "?" not in pattern:
        return text.startswith(pattern[:-1]) if pattern else not text
    first, *middle = pattern.split("*")
    if not middle:
        return _is(first, text)
    last = middle.pop()
    at, end = len(first), len(text) - len(last)
    if at > end or not _is(first, text[:at]) or not _is(last, text[end:]):
        return False
    for piece in middle:
        at = _find(piece, text, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _is(piece: str, text: str) -> bool:
    """Tell whether a text is a piece without stars."""
    return len(piece) == len(text) and (piece == text or ("?" in piece and _compiled(piece).match(text) is not None))


def _find(piece: str, text: str, start: int, end: int) -> int:
    """Return where a piece without stars comes first, or -1."""
    if "?" not in piece:
        return text.find(piece, start, end)
    if not piece.strip("?"):
        return start if start + len(piece) <= end else -1
    found = _compiled(piece).search(text, start, end)
    return found.start() if found is not None else -1


@lru_cache(maxsize=256)
def _compiled(piece: str) -> re.Pattern[str]:
    return re.compile(".".join(map(re.escape, piece.split("?"))), re.DOTALL)
