"""Keep the inode table small: let the kernel forget what it has not looked up lately, so that a walk of a big volume costs no memory.

The kernel forgets by itself only where the whole machine is short of memory, of its own side of the table.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from kmsfs.mount.kernel.notify import KernelNotifier
from kmsfs.mount.nodes import Node
from kmsfs.mount.vfs import VfsBase

_OTHER_BYTES = 96 << 20
"""What a mount needs beside the table: the interpreter, buffers, headers and keys at hand."""
_NODE_BYTES = 2400
"""Of one entry, with its attributes: seen with 200,000 new files, the allocator's loss included."""
_NODES_MIN = 16_384
_AT_ONCE = 1024
_PAUSE_SECONDS = 0.1
_PAUSE_MAX_SECONDS = 30.0


class _Place(NamedTuple):
    """A node, the directory in which it is known, and its name there."""

    node_id: int
    parent_id: int
    name: bytes
    is_dir: bool


def most_nodes(memory_bytes: int) -> int:
    """Return how many entries the table may have in a process of about this size."""
    return max(_NODES_MIN, (memory_bytes - _OTHER_BYTES) // _NODE_BYTES)


class Pruner:
    """Lets a quarter of the table go when it is full, the oldest entries first."""

    def __init__(
        self, vfs: VfsBase, notifier: KernelNotifier, memory_bytes: int, mounted_below: Callable[[], bool]
    ) -> None:
        """Keep the table as small as fits `memory_bytes`; `mounted_below` tells whether something is mounted within the volume."""
        self._vfs = vfs
        self._mounted_below = mounted_below
        self._notifier = notifier
        self._most = most_nodes(memory_bytes)
        self._full = threading.Event()
        self._ended = threading.Event()
        vfs.nodes.tell_when_over(self._most, self._full.set)

    def start(self) -> None:
        """Begin to watch the table."""
        threading.Thread(target=self._run, name="kmsfs-prune", daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._ended.set()
        self._full.set()

    def _run(self) -> None:
        pause = _PAUSE_SECONDS
        while not self._ended.is_set():
            self._full.wait()
            self._full.clear()
            before = len(self._vfs.nodes)
            if before > self._most:
                self.shrink()
            self._ended.wait(pause)
            # What is in use cannot go: who holds that much open is asked less and less often.
            gone = len(self._vfs.nodes) <= max(self._most, before - self._most // 8)
            pause = _PAUSE_SECONDS if gone else min(_PAUSE_MAX_SECONDS, 2 * pause)

    def shrink(self) -> None:
        """Ask the kernel to forget a quarter of what the table may hold, and what is beyond that."""
        nodes = self._vfs.nodes.all_nodes()
        excess = len(nodes) - self._most * 3 // 4
        for start in range(0, len(nodes), _AT_ONCE):
            if excess <= 0 or self._ended.is_set():
                return
            with self._vfs.lock:
                places = [place for node in nodes[start : start + _AT_ONCE] if (place := _idle_place(node)) is not None]
            if places and not self._notifier.prune([place.node_id for place in places]):
                self._drop_names(places)
            excess -= len(places)

    def _drop_names(self, places: list[_Place]) -> None:
        """Before Linux 6.18: drop the files' names one by one, which lets their directories' attributes be asked for again.

        A dropped name takes along what is mounted on it, so nothing is dropped where there is a mount below, and never a
        directory: other mount namespaces are not seen from here.
        """
        if self._mounted_below():
            return
        for place in places:
            if not place.is_dir:
                self._notifier.drop_entry(place.parent_id, place.name)


def _idle_place(node: Node) -> _Place | None:
    """Return where a node is that the kernel knows and nobody here uses, None for another."""
    place = node.place()
    if place is None or node.lookups <= 0 or node.handles or node.kids or node.file is not None:
        return None
    return _Place(node.node_id, place[0].node_id, place[1], node.is_dir)
