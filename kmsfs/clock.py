"""The clock that leases are counted by."""

import time


def passed() -> float:
    """Return seconds of CLOCK_BOOTTIME (clock_gettime(2)): nobody sets it, and it goes on while the machine sleeps.

    What was revoked meanwhile was told to nobody who slept.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
