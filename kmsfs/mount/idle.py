"""Unmounting what nobody has used for a while."""

import logging
import threading
from collections.abc import Callable

from kmsfs.clock import passed
from kmsfs.errors import UsageError

_LOG = logging.getLogger("kmsfs.mount")
_LOOKS = 8
"""How often requests are counted in the time after which a mount is idle."""


class IdleWatch:
    """Unmounts after `seconds` in which the kernel had no request; time in which the machine slept counts.

    A mount in which a file is open, or somebody's working directory is, cannot be unmounted: it is tried again after as long.
    """

    def __init__(self, seconds: float, requests: Callable[[], int], unmount: Callable[[], None]) -> None:
        """Watch the number of `requests` that were served so far; `unmount` raises UsageError where the mount is busy."""
        self._seconds = seconds
        self._requests = requests
        self._unmount = unmount
        self._ends = threading.Event()

    def start(self) -> None:
        """Watch from now on, in a thread of its own."""
        threading.Thread(target=self._watch, name="kmsfs-idle", daemon=True).start()

    def close(self) -> None:
        """Watch no more."""
        self._ends.set()

    def _watch(self) -> None:
        seen, since = self._requests(), passed()
        while not self._ends.wait(self._seconds / _LOOKS):
            count = self._requests()
            if count != seen:
                seen, since = count, passed()
            elif passed() - since >= self._seconds:
                try:
                    self._unmount()
                except UsageError:
                    since = passed()
                else:
                    _LOG.info("unmounted: nobody used it for %g seconds", self._seconds)
                    return
