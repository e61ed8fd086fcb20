"""Short wake-ups while requests come, by the kernel's power management (Documentation/power/pm_qos_interface.rst).

An idle processor sleeps, and a virtual one is given back to its host; waking it costs more than serving most requests.
Who holds /dev/cpu_dma_latency open may say how long waking may take. The kernel forgets it when the descriptor is closed,
so a killed mount leaves nothing behind.
"""

import logging
import os
import select
import struct
from pathlib import Path

_LOG = logging.getLogger("kmsfs.mount")
DEVICE = Path("/dev/cpu_dma_latency")
DENSE = 16
"""Requests that come one upon the other before it is worth asking for."""
KEPT_MILLISECONDS = 1
"""How long it is kept after the last request."""
_MICROSECONDS = struct.Struct("=i")
_ANY = -1
_FEW_PROCESSORS = 4


def wanted_microseconds(processors: int) -> int:
    """Return how long a wake-up may take: nothing on a small machine, where idle processors then wait in a loop; 2 µs on others.

    That still lets the many idle processors of a big machine halt, though not sleep deeper.
    """
    return 0 if processors <= _FEW_PROCESSORS else 2


class WakeUps:
    """The wait for the next request. Where the device cannot be opened, as for ordinary users, it is just that."""

    def __init__(self, device: Path | None) -> None:
        """Wait with short wake-ups by `device`, or as the kernel does for None."""
        self._served = 0
        self._wanted = wanted_microseconds(os.cpu_count() or 1)
        self._device = -1
        if device is not None:
            try:
                self._device = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                return
            # Opening it asks for the default already, which is no limit; said here so that it does not depend on that.
            self._ask(_ANY)

    def served(self) -> None:
        """Note a request."""
        self._served += 1
        if self._served == DENSE:
            self._ask(self._wanted)

    def wait(self, descriptor: int, bell: int) -> None:
        """Sleep until `descriptor` or `bell` can be read.

        Raises:
            OSError: if it cannot be waited for.
        """
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        waiter.register(bell, select.POLLIN)
        if self._served >= DENSE:
            if waiter.poll(KEPT_MILLISECONDS):
                return
            self._ask(_ANY)
        self._served = 0
        waiter.poll()

    def close(self) -> None:
        """Let the kernel forget it."""
        device, self._device = self._device, -1
        if device >= 0:
            os.close(device)

    def _ask(self, microseconds: int) -> None:
        if self._device < 0:
            return
        try:
            os.write(self._device, _MICROSECONDS.pack(microseconds))
        except OSError as error:
            _LOG.warning("wake-ups stay as long as they are: %s", error.strerror)
            self.close()
