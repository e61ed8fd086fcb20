"""Pages of sorted names: markers are names, or parts of some, so a page boundary survives changes between calls."""

import base64
import binascii
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence

from kmsfs.errors import InvalidMarker, InvalidNextToken
from kmsfs.quantity import KIB

LOOKS_MAX = 4_000
"""How many names one call looks at: what a caller may not see costs time too, and nobody else is answered meanwhile."""

ANSWER_VALUES_BYTES = 512 * KIB
"""An answer that has values of so many bytes takes no more: with the last one, in base64 and with what is said of them, they fit into a frame."""

Page = tuple[list[str], str | None]
"""Names, and the marker of the page that follows or None."""


class Names:
    """Names in order, kept so while some come and go."""

    __slots__ = ("_sorted",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sorted = sorted(names)

    def __len__(self) -> int:
        return len(self._sorted)

    def __getitem__(self, place: int) -> str:
        return self._sorted[place]

    def add(self, name: str) -> None:
        """Take a name that is not there."""
        insort(self._sorted, name)

    def discard(self, name: str) -> None:
        """Drop a name; nothing happens if it is not there."""
        place = bisect_left(self._sorted, name)
        if place < len(self._sorted) and self._sorted[place] == name:
            del self._sorted[place]

    def page(
        self, limit: int, marker: str | None, wanted: Callable[[str], bool], low: str = "", high: str | None = None
    ) -> Page:
        """Return up to `limit` wanted names after `marker`, from `low` on and before `high`, and the next marker or None.

        Looks at `LOOKS_MAX` names at most: a page may be short, even empty, and yet not be the last, as at AWS.

        Raises:
            InvalidMarker: if the marker was not made here.
        """
        names = self._sorted
        first = bisect_left(names, low) if low else 0
        if marker is not None:
            first = max(first, bisect_right(names, _decode(marker)))
        last = len(names) if high is None else bisect_left(names, high)
        found: list[str] = []
        place = first
        while place < last:
            if place - first >= max(LOOKS_MAX, limit + 1):
                return found, _encode(_between(names[place - 1], names[place]))
            if wanted(names[place]):
                if len(found) == limit:
                    return found, _encode(found[-1])
                found.append(names[place])
            place += 1
        return found, None

    def token_page(
        self, limit: int, token: str | None, wanted: Callable[[str], bool], low: str = "", high: str | None = None
    ) -> Page:
        """As `page`, with the error of Systems Manager's tokens.

        Raises:
            InvalidNextToken: if the token was not made here.
        """
        try:
            return self.page(limit, token, wanted, low, high)
        except InvalidMarker as error:
            raise InvalidNextToken("The specified token is not valid.") from error


def page_of(names: Sequence[str], limit: int, marker: str | None) -> Page:
    """Return up to `limit` of the sorted `names` after `marker`, and the next marker or None.

    Raises:
        InvalidMarker: if the marker was not made here.
    """
    first = bisect_right(names, _decode(marker)) if marker is not None else 0
    page = list(names[first : first + limit])
    return page, (_encode(page[-1]) if len(names) > first + limit else None)


def token_page_of(names: Sequence[str], limit: int, token: str | None) -> Page:
    """As `page_of`, with the error of Systems Manager's tokens.

    Raises:
        InvalidNextToken: if the token was not made here.
    """
    try:
        return page_of(names, limit, token)
    except InvalidMarker as error:
        raise InvalidNextToken("The specified token is not valid.") from error


def marker_after(name: str) -> str:
    """Return the marker of the page that follows a name, for an answer that cannot take its whole page."""
    return _encode(name)


def _between(low: str, high: str) -> str:
    """Return a text that is not below `low` and is below `high`; of names that nobody may see it tells as little as it can."""
    same = 0
    while same < len(low) and low[same] == high[same]:
        same += 1
    return high[: same + 1] if same + 1 < len(high) else low


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
