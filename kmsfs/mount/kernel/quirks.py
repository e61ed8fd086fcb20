"""What a kernel is known to do wrong, by its version."""

import os
import re
from collections.abc import Sequence

_ZEROED_FROM = (6, 11)
_ZEROED_IN_SERIES = {(6, 10): 7, (6, 6): 48, (6, 1): 107, (5, 15): 166, (5, 10): 225, (5, 4): 283, (4, 19): 321}
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_DEBIAN = re.compile(r"Debian (\d+)\.(\d+)\.(\d+)")


def zeroes_tails(system: os.uname_result | Sequence[str]) -> bool:
    """Whether what is behind the end of a file is zeros in a page that FUSE_NOTIFY_STORE fills.

    Before, it is what the page held last (CVE-2024-44947, "fuse: Initialize beyond-EOF page contents before setting
    uptodate": Linux 6.11, and later numbers of older series). `system` is of uname(2); Debian tells the number in `version`.
    """
    found = _DEBIAN.search(system[3]) or _NUMBERS.match(system[2])
    if found is None:
        return False
    series, number = (int(found[1]), int(found[2])), int(found[3] or 0)
    if series >= _ZEROED_FROM:
        return True
    return series in _ZEROED_IN_SERIES and number >= _ZEROED_IN_SERIES[series]
