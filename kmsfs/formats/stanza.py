"""Stanzas: how age's header and its plugins' conversations are written (C2SP, age.md and age-plugin.md)."""

import base64
from collections.abc import Callable
from dataclasses import dataclass

from kmsfs.errors import ShapeError

_COLUMNS = 64
_LINE_MAX = 1 << 16
_LINES_MAX = 1 << 12


@dataclass(frozen=True, slots=True)
class Stanza:
    """A type, its arguments, and bytes."""

    kind: str
    arguments: tuple[str, ...] = ()
    body: bytes = b""

    def encode(self) -> bytes:
        """Return it as text; the body is in unpadded base64 and ends by a line that is not full."""
        text = base64.b64encode(self.body).decode().rstrip("=")
        lines = [text[at : at + _COLUMNS] for at in range(0, len(text) + 1, _COLUMNS)]
        return "\n".join([" ".join(("->", self.kind, *self.arguments)), *lines, ""]).encode()


def read_stanza(read_line: Callable[[int], bytes]) -> Stanza | None:
    """Return the next stanza, or None at the end; `read_line` is a stream's readline.

    Raises:
        ShapeError: if what comes is none.
    """
    first = read_line(_LINE_MAX)
    if not first:
        return None
    words = _text(first).split(" ")
    if words[0] != "->" or len(words) < 2 or "" in words:
        raise ShapeError("this is no stanza of age's")
    parts: list[str] = []
    while not parts or len(parts[-1]) == _COLUMNS:
        parts.append(_text(read_line(_LINE_MAX)))
        if len(parts[-1]) > _COLUMNS or len(parts) > _LINES_MAX:
            raise ShapeError("a line of a stanza's body is too long")
    text = "".join(parts)
    try:
        body = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ShapeError("a stanza's body is no base64") from error
    if base64.b64encode(body).decode().rstrip("=") != text:
        raise ShapeError("a stanza's body has bits left over")
    return Stanza(words[1], tuple(words[2:]), body)


def _text(line: bytes) -> str:
    if not line.endswith(b"\n"):
        raise ShapeError("a stanza ends too early")
    try:
        return line[:-1].decode("ascii")
    except UnicodeDecodeError as error:
        raise ShapeError("a stanza is not ASCII") from error
