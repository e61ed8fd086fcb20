"""The state that one image of a mount's process hands to the next: in memory alone, for the time of an execve(2).

msgpack, typed: what another version wrote is refused, whether it says so by its number or has other fields.
"""

from typing import Any

import msgspec

from kmsfs.errors import UnsupportedFormat

STATE_VERSION = 1


class NodeFacts(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A node as it is handed to another image of this process."""

    node_id: int
    kind: int
    key: tuple[int, int]
    has_key: bool
    """Whether the backing inode still leads to it."""
    names: list[tuple[int, bytes, str]]
    """Parent, plain name, name on disk."""
    lookups: int
    handles: int
    dir_id: bytes
    dir_tags: list[bytes]
    synced_entry: bool
    keep_cache: bool
    descriptor: int
    """Of an open file, or of a directory that has no name any more; -1 for all others."""


class OpenDirectory(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An open directory as it is handed to another image of this process."""

    handle: int
    node_id: int
    entries: list[tuple[bytes, str, int, int]] | None
    """Name, name on disk, kind and inode of each entry; None before the first read."""


class Inheritance(msgspec.Struct, forbid_unknown_fields=True):
    """The state of a mount that nothing waits to be stored of. Descriptors are numbers, open in both images."""

    state_version: int
    kmsfs_version: str
    request: dict[str, Any]
    """What was asked for when it was mounted, see MountRequest."""
    context: dict[str, Any]
    """What the command that serves it needs for itself."""
    point: bytes
    """The mountpoint, without symbolic links. Paths are bytes, as they may be no text."""
    fuse: int
    cipher_dir: int
    answer: int
    """The connection of who asked for this, -1 if nobody waits."""
    since_ns: int
    """When requests began to wait, in nanoseconds of the monotonic clock."""
    session: int
    unclean: list[int]
    head: bytes
    may_begin: bool
    directory_keys: dict[str, str]
    """By the directory's id in hexadecimal."""
    records: bool
    """Whether there are freshness records, of this session."""
    nodes: list[NodeFacts]
    next_node: int
    directories: list[OpenDirectory]
    next_directory: int
    modified: dict[int, int]
    """Modification times in nanoseconds of the backing directories that the kernel knows, by node id."""
    removed_directories: list[bytes]

    def descriptors(self) -> list[int]:
        """Return every descriptor that the next image needs."""
        shared = [self.fuse, self.cipher_dir] + ([self.answer] if self.answer >= 0 else [])
        return shared + [facts.descriptor for facts in self.nodes if facts.descriptor >= 0]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Inheritance).decode


def encode_state(state: Inheritance) -> bytes:
    """Return a state as bytes."""
    return _encode(state)


def decode_state(data: bytes) -> Inheritance:
    """Return the state of bytes.

    Raises:
        UnsupportedFormat: if another version wrote them.
    """
    try:
        state = _decode(data)
    except msgspec.MsgspecError as error:
        raise UnsupportedFormat(f"the state of the mount cannot be taken over: {error}") from error
    if state.state_version != STATE_VERSION:
        raise UnsupportedFormat(f"the state of the mount is of version {state.state_version}, not {STATE_VERSION}")
    return state
