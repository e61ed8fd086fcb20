"""What one image of a mount's process hands to the next, after an upgrade, while the file system stays mounted.

The old image stores everything and packs what the kernel knows (the inode table, open files and directories) into a
memory file; the new one has the same process, the same /dev/fuse descriptor and those of open files, by execve(2). Requests
wait in the kernel meanwhile. No key is packed: the new image asks kmsd for them, as the first one did.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from kmsfs import __version__
from kmsfs.errors import KmsfsError, StorageError
from kmsfs.formats.handover import STATE_VERSION, Inheritance, decode_state, encode_state
from kmsfs.mount.control import answer
from kmsfs.mount.durability import Vfs
from kmsfs.mount.kernel.directories import OpenDirectories
from kmsfs.mount.volume import VolumeLease

_LOG = logging.getLogger("kmsfs.mount")
_ROUNDS = 3
_START_SECONDS = 60
HELD_BACK = frozenset({signal.SIGTERM, signal.SIGINT})
"""Signals that wait until the next image has its handlers."""


def store_all(vfs: Vfs) -> None:
    """Store everything, so that all there is to know of files can be read back from their headers.

    Raises:
        StorageError: if something cannot be stored; nothing is lost then, and the mount goes on.
    """
    for _ in range(_ROUNDS):
        vfs.tick()
        with vfs.lock:
            if not vfs.unstored():
                return
    raise StorageError(
        "not everything could be stored, so this process goes on serving the mount",
        hint="see its log; make room on the disk, and try again",
    )


def pack_nodes(vfs: Vfs, directories: OpenDirectories) -> dict[str, Any]:
    """Return the fields of an Inheritance that describe what the kernel knows. The caller holds the vfs lock."""
    modified = {}
    for node in vfs.nodes.all_nodes():
        if node.is_dir and node.lookups:
            with contextlib.suppress(OSError):
                modified[node.node_id] = os.fstat(vfs.nodes.descriptor(node)).st_mtime_ns
    nodes, next_node = vfs.nodes.export()
    opened, next_directory = directories.export()
    return {
        "nodes": nodes, "next_node": next_node, "directories": opened, "next_directory": next_directory,
        "modified": modified, "removed_directories": sorted(vfs.removed_directories),
    }  # fmt: skip


def unpack_nodes(state: Inheritance, vfs: Vfs, directories: OpenDirectories) -> None:
    """Make the inode table, open files and open directories what they were."""
    vfs.nodes.restore(state.nodes, state.next_node)
    for facts in state.nodes:
        node = vfs.nodes.get(facts.node_id)
        if node.is_file and facts.descriptor >= 0:
            try:
                vfs.reopen(node, facts.descriptor)
            except KmsfsError as error:
                _LOG.error("an open file cannot be used any more; close it and open it again: %s", error)
    directories.restore(state.directories, state.next_directory)
    vfs.removed_directories.update(state.removed_directories)


def changed_meanwhile(state: Inheritance, vfs: Vfs) -> list[int]:
    """Return the ids of directories in which somebody else made, removed or moved something while nobody watched."""
    changed = []
    for node_id, before in state.modified.items():
        with contextlib.suppress(OSError, KmsfsError):
            if os.fstat(vfs.nodes.descriptor(vfs.nodes.get(node_id))).st_mtime_ns != before:
                changed.append(node_id)
    return changed


def resume_lease(lease: VolumeLease, state: Inheritance) -> None:
    """Let a lease be that of the session that goes on."""
    keys = {bytes.fromhex(directory): key for directory, key in state.directory_keys.items()}
    lease.inherit(state.session, set(state.unclean), state.head, keys, may_begin=state.may_begin)


# --- from one image to the next -------------------------------------------------------------------------------


def startable() -> dict[str, Any]:
    """Return what the next image says of itself when it is asked by `require_startable`."""
    return {"kmsfs_version": __version__, "state_version": STATE_VERSION}


def require_startable(command: Sequence[str]) -> None:
    """Make sure that the next image would start, and read what this one writes.

    Raises:
        StorageError: if not; nothing was begun.
    """
    try:
        done = subprocess.run(
            [*command, "--probe"], capture_output=True, text=True, check=False, timeout=_START_SECONDS, cwd="/"
        )
        told = json.loads(done.stdout) if not done.returncode else {}
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise StorageError(f"the kmsfs that is installed now does not start: {error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StorageError(f"the kmsfs that is installed now does not start: {said}")
    if told.get("state_version") != STATE_VERSION:
        raise StorageError(
            "the kmsfs that is installed now cannot take over what this one serves",
            hint="unmount, and mount again, when nothing uses it",
        )


def execute_next(state: Inheritance, command: Sequence[str]) -> None:
    """Become the next image of this process. Does not return.

    Raises:
        OSError: if it cannot be executed; everything is as it was then.
    """
    descriptor = write_state(state)
    try:
        for number in state.descriptors():
            os.set_inheritable(number, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        os.execv(command[0], [*command, str(descriptor)])  # noqa: S606  (no shell: that is the point)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        os.close(descriptor)
        for number in state.descriptors():
            os.set_inheritable(number, False)


def tell_taken_over(state: Inheritance) -> None:
    """Say that requests are served again, to the log and to who asked."""
    waited = (time.monotonic_ns() - state.since_ns) / 1e9
    opened = sum(facts.descriptor >= 0 and facts.handles > 0 and stat.S_ISREG(facts.kind) for facts in state.nodes)
    _LOG.info("kmsfs %s took over from %s; requests waited %.2f s", __version__, state.kmsfs_version, waited)
    if state.answer >= 0:
        told = {"ok": True, "version": __version__, "waited_seconds": round(waited, 3), "open_files": opened}
        answer(socket.socket(fileno=state.answer), told)


def write_state(state: Inheritance) -> int:
    """Return the descriptor of a memory file with a packed state, inherited by the next image.

    Raises:
        OSError: if there is no memory.
    """
    descriptor = os.memfd_create("kmsfs-handover", 0)
    try:
        view = memoryview(encode_state(state))
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_state(descriptor: int) -> Inheritance:
    """Read what `write_state` wrote, and close it; the descriptors in it are not inherited any further.

    Raises:
        UnsupportedFormat: if another version wrote it.
    """
    with os.fdopen(descriptor, "rb") as file:
        state = decode_state(file.read())
    for number in state.descriptors():
        os.set_inheritable(number, False)
    return state
