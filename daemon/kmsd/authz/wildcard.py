"""Match `*` and `?` patterns in linear memory and at most quadratic time: policies are hostile input."""


def matches(pattern: str, text: str) -> bool:
    """Tell whether `text` matches `pattern`, case-sensitively."""
    if pattern.find("*") == len(pattern) - 1 and "?" not in pattern:
        return text.startswith(pattern[:-1]) if pattern else not text
    at = text_at = 0
    star = mark = -1
    while text_at < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, text_at
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[text_at]):
            at += 1
            text_at += 1
        elif star >= 0:
            mark += 1
            at, text_at = star + 1, mark
        else:
            return False
    return pattern[at:].strip("*") == ""
