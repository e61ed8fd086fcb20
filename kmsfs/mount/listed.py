"""Which files of a volume can be remembered when it is unmounted, and which of those are still as they were."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from kmsfs.backing.listings import ListingStore
from kmsfs.formats.listing import ListedFile
from kmsfs.mount.freshness import state_folder
from kmsfs.mount.nodes import Node

_RACY_NS = 20_000_000
_RACY_SECONDS_NS = 2_000_000_000
"""A file that changed this shortly ago may change again without a later change time: it is not remembered. Linux counts
them in ticks of up to 10 ms, some file systems in seconds."""
_FEWEST = 4
_MOST = 65_536
"""Directories with fewer or more remembered files than this are not worth it, or too big to be held in memory."""
_MOST_AT_ALL = 200_000
"""Files that one unmount looks at: some microseconds each."""


def listings_path(volume_id: bytes) -> Path:
    """Return where a volume's remembered listings lie."""
    return state_folder() / "listings" / f"{volume_id.hex()}.db"


def facts_of(facts: os.stat_result) -> tuple[int, int, int]:
    """Return what tells whether a file of the backing store is as it was: its number, change time and size."""
    return facts.st_ino, facts.st_ctime_ns, facts.st_size


def still_as(listed: ListedFile, facts: os.stat_result) -> bool:
    """Whether a file is as it was when it was remembered, and has one name."""
    return (
        listed.ctime_ns == facts.st_ctime_ns
        and listed.ino == facts.st_ino
        and listed.disk_bytes == facts.st_size
        and facts.st_nlink == 1
    )


def remember(store: ListingStore, directories: Iterator[tuple[Node, int]], gone: set[bytes]) -> None:
    """Remember what is known of the files of directories, given with their descriptors. All of it is stored already.

    What was remembered of files that are not known now, and are still there, stays.
    """
    now_ns = time.time_ns()
    looked_at = 0
    for node, descriptor in directories:
        looked_at += len(node.kids)
        if looked_at > _MOST_AT_ALL:
            break
        found = {file.disk_name: file for file in _files_of(node, descriptor, now_ns)}
        if not found:
            continue
        before = store.load(node.dir_id)
        if all(before.get(disk_name) == file for disk_name, file in found.items()):
            continue
        if before.keys() - found.keys():
            here = set(os.listdir(descriptor))
            found = {name: file for name, file in (before | found).items() if name in here}
        if _FEWEST <= len(found) <= _MOST:
            store.store(node.dir_id, list(found.values()))
    if gone:
        store.forget(gone)


def _files_of(directory: Node, descriptor: int, now_ns: int) -> Iterator[ListedFile]:
    for name, node in directory.kids.items():
        if not node.is_file:
            continue
        file = node.file
        if file is not None and (node.handles or file.dirty or file.failed):
            continue
        attributes = file.attributes if file is not None else node.attributes
        if attributes is None or attributes.extra_homes:
            continue
        if attributes.primary_dir != directory.dir_id or attributes.name != name:
            continue
        disk_name = node.names[(directory.node_id, name)]
        try:
            facts = os.stat(disk_name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            continue
        if facts.st_ino == node.key[1] and facts.st_nlink == 1 and not _racy(facts.st_ctime_ns, now_ns):
            yield ListedFile.of(disk_name, facts_of(facts), attributes)


def _racy(ctime_ns: int, now_ns: int) -> bool:
    return now_ns - ctime_ns < (_RACY_NS if ctime_ns % 1_000_000_000 else _RACY_SECONDS_NS)
