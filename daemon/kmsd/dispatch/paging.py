"""Pages of sorted names: markers are the last name given, so a page boundary survives changes between calls."""

import base64
import binascii
from collections.abc import Sequence

from kmsfs.errors import InvalidMarker, InvalidNextToken


def page_of(names: Sequence[str], limit: int, marker: str | None) -> tuple[list[str], str | None]:
    """Return up to `limit` of the sorted `names` after `marker`, and the next marker or None.

    Raises:
        InvalidMarker: if the marker was not made here.
    """
    after = _decode(marker) if marker is not None else ""
    rest = [name for name in names if name > after]
    page = rest[:limit]
    return page, (_encode(page[-1]) if len(rest) > limit else None)


def token_page_of(names: Sequence[str], limit: int, token: str | None) -> tuple[list[str], str | None]:
    """As `page_of`, with the error of Systems Manager's tokens.

    Raises:
        InvalidNextToken: if the token was not made here.
    """
    try:
        return page_of(names, limit, token)
    except InvalidMarker as error:
        raise InvalidNextToken("The specified token is not valid.") from error


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(b"1" + name.encode()).decode()


def _decode(marker: str) -> str:
    try:
        raw = base64.b64decode(marker, altchars=b"-_", validate=True)
        if raw[:1] != b"1":
            raise InvalidMarker("The marker is not valid.")
        return raw[1:].decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise InvalidMarker("The marker is not valid.") from error
