"""Data keys made ahead: a thread fetches the next batch while the last keys of the pool are still being used."""

import logging
import queue
import threading

from kmsfs.envelope.caching import KeySource
from kmsfs.errors import KmsfsError
from kmsfs.mount.durability import Vfs

_LOG = logging.getLogger("kmsfs.mount")


class PoolFiller:
    """Fills the pools of a mounted volume's provider when they run low.

    A failure is left to the next file's creation, which asks the key service itself and reports what it says.
    """

    def __init__(self, vfs: Vfs, source: KeySource) -> None:
        self._vfs = vfs
        self._source = source
        self._low: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kmsfs-keys", daemon=True)

    def start(self) -> None:
        """Begin to watch the pools."""
        self._vfs.provider.on_low = self._low.put
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._vfs.provider.on_low = None
        self._low.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            key_id = self._low.get()
            if key_id is None:
                return
            try:
                self._fill(key_id)
            except KmsfsError as error:
                _LOG.debug("no keys could be made ahead: %s", error)

    def _fill(self, key_id: str) -> None:
        with self._vfs.lock:
            order = self._vfs.provider.order(key_id)
        made = self._source.generate(order.contexts, key_id)
        with self._vfs.lock:
            self._vfs.provider.deliver(order, made)
