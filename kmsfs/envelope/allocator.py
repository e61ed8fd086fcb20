"""Blocks of one backing file: which are free, which wait for a durable commit, which are new in this window.

The one rule that matters (security.md 6.6): a block is reused only when no header that recovery could choose
refers to it. Blocks freed in generation g wait until a commit of generation g or later is durable; blocks that
were allocated and freed between two header writes return at once.
"""

import bisect

from kmsfs.quantity import BLOCK_BYTES

FIRST_BLOCK = 2
_SHRINK_BLOCKS = 256


class Allocator:
    """Extents are (start, length) in blocks."""

    def __init__(self, high_water: int, live: int) -> None:
        self.high_water = high_water
        self.live = live
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}
        self._waiting: list[tuple[int, int, int]] = []
        self._fresh: set[int] = set()

    def allocate(self, blocks: int) -> int:
        """Return the first of `blocks` contiguous blocks that nothing refers to."""
        start = self._from_free(blocks)
        if start is None:
            start = self.high_water
            self.high_water += blocks
        self.live += blocks
        self._fresh.update(range(start, start + blocks))
        return start

    def release(self, start: int, blocks: int, generation: int) -> None:
        """Free blocks; `generation` is the next commit's, which will not refer to them."""
        self.live -= blocks
        end = start + blocks
        run = start
        while run < end:
            fresh = run in self._fresh
            stop = run + 1
            while stop < end and (stop in self._fresh) == fresh:
                stop += 1
            if fresh:
                self._fresh.difference_update(range(run, stop))
                self._give(run, stop - run)
            else:
                self._waiting.append((generation, run, stop - run))
            run = stop

    def adopt_free(self, start: int, blocks: int) -> None:
        """Add blocks that a walk of the map found unused."""
        self._give(start, blocks)

    def header_written(self) -> None:
        """A header now refers to what was fresh: freeing it must wait from here on."""
        self._fresh.clear()

    def durable(self, generation: int) -> int:
        """Reuse what waited for commits up to `generation`; return the bytes that the file may shrink to, or 0."""
        still = []
        freed = 0
        for entry in self._waiting:
            if entry[0] <= generation:
                self._give(entry[1], entry[2])
                freed += entry[2]
            else:
                still.append(entry)
        self._waiting = still
        return self._shrink() if freed >= _SHRINK_BLOCKS else 0

    def free_extents(self) -> list[tuple[int, int]]:
        """Return free extents in order, for punching holes."""
        return [(start, self._lengths[start]) for start in self._starts]

    def _shrink(self) -> int:
        if not self._starts:
            return 0
        last = self._starts[-1]
        if last + self._lengths[last] != self.high_water or last in self._fresh:
            return 0
        self._starts.pop()
        del self._lengths[last]
        self.high_water = last
        return last * BLOCK_BYTES

    def _from_free(self, blocks: int) -> int | None:
        for position, start in enumerate(self._starts):
            length = self._lengths[start]
            if length >= blocks:
                del self._lengths[start]
                if length == blocks:
                    del self._starts[position]
                else:
                    self._starts[position] = start + blocks
                    self._lengths[start + blocks] = length - blocks
                return start
            if position > 64:
                break
        return None

    def _give(self, start: int, blocks: int) -> None:
        position = bisect.bisect_left(self._starts, start)
        if position < len(self._starts) and self._starts[position] == start + blocks:
            blocks += self._lengths.pop(self._starts.pop(position))
        if position:
            before = self._starts[position - 1]
            if before + self._lengths[before] == start:
                self._lengths[before] += blocks
                return
        self._starts.insert(position, start)
        self._lengths[start] = blocks
