"""Offset arithmetic of KF1: which chunks a byte range touches, how high the map must be."""

from kmsfs.formats.fileheader import NODE_ENTRIES, ROOT_ENTRIES
from kmsfs.quantity import BLOCK_BYTES


def chunk_count(size: int, chunk_log2: int) -> int:
    """Number of chunks that a file of `size` bytes spans."""
    return (size + (1 << chunk_log2) - 1) >> chunk_log2


def blocks_for(plain_bytes: int) -> int:
    """Blocks that a chunk's ciphertext of this length occupies."""
    return (plain_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES


def map_height(chunks: int) -> int:
    """Levels of nodes between the root entries and the chunks (0 = direct)."""
    height, capacity = 0, ROOT_ENTRIES
    while capacity < chunks:
        height += 1
        capacity *= NODE_ENTRIES
    return height


def max_file_bytes(chunk_log2: int, max_height: int) -> int:
    """Largest plaintext size that a map of `max_height` can address."""
    return int(ROOT_ENTRIES * NODE_ENTRIES**max_height) << chunk_log2


def chunk_runs(offset: int, length: int, chunk_log2: int) -> tuple[int, int]:
    """Return (first chunk, one past the last chunk) of a byte range; empty ranges give equal numbers."""
    first = offset >> chunk_log2
    return first, (first if not length else ((offset + length - 1) >> chunk_log2) + 1)
