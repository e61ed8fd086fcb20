"""Stay awake for a moment after a request: the next one of the same client then finds the daemon running.

Waking a sleeping process costs more than most operations do, most of all on a virtual machine, where an idle
processor is given back to the host. The wait yields the processor to anybody who wants it.
"""

import asyncio
import os
import time

LINGER_NS = 1_000_000
"""1 ms: a client that reads small files one after the other asks again within that time."""


class Linger:
    """Keeps one event loop polling until `LINGER_NS` after the last request. Does nothing on a single processor."""

    def __init__(self, linger_ns: int = LINGER_NS) -> None:
        self._linger_ns = linger_ns if len(os.sched_getaffinity(0)) > 1 else 0
        self._until = 0
        self._polling = False

    def extend(self) -> None:
        """Note that a request was answered just now."""
        if not self._linger_ns:
            return
        self._until = time.perf_counter_ns() + self._linger_ns
        if not self._polling:
            self._polling = True
            asyncio.get_running_loop().call_soon(self._poll)

    def _poll(self) -> None:
        if time.perf_counter_ns() < self._until:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._poll)
        else:
            self._polling = False
