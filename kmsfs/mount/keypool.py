"""Data keys made ahead: a thread fetches the next batch while the last keys of the pool are still being used."""

import logging
import threading

from kmsfs.envelope.caching import KeySource
from kmsfs.errors import KmsfsError
from kmsfs.mount.durability import Vfs

_LOG = logging.getLogger("kmsfs.mount")


class PoolFiller:
    """Fills the pool of a mounted volume's provider when it runs low.

    A failure is left to the next file's creation, which asks the key service itself and reports what it says.
    """

    def __init__(self, vfs: Vfs, source: KeySource) -> None:
        self._vfs = vfs
        self._source = source
        self._low = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kmsfs-keys", daemon=True)

    def start(self) -> None:
        """Begin to watch the pool."""
        self._vfs.provider.on_low = self._low.set
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._vfs.provider.on_low = None
        self._closed = True
        self._low.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            self._low.wait()
            self._low.clear()
            if self._closed:
                return
            try:
                self._fill()
            except KmsfsError as error:
                _LOG.debug("no keys could be made ahead: %s", error)

    def _fill(self) -> None:
        with self._vfs.lock:
            order = self._vfs.provider.order()
        made = self._source.generate(order.contexts)
        with self._vfs.lock:
            self._vfs.provider.deliver(order, made)
