"""The view under libfuse 3's high-level API, by mfusepy: read-only, nothing cached by the kernel, values read as the caller."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from kmsfs.client.changes import HEARD, LOST, ChangeStream
from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError
from kmsfs.quantity import LEASE_SECONDS
from kmsfs.view.readers import Readers, User, user_of
from kmsfs.view.tree import Tree, tree_of

_FOLDER, _FILE = 0o040500, 0o100400
_TREES_MAX = 64
_PAGE = 50


class Names:
    """Each reader's tree, held until a parameter changes; not held while the daemon is silent."""

    def __init__(self, session: ClientSession, path: str) -> None:
        self._path = path
        self._stream = ChangeStream(session, sources=("ssm",))
        self._held: dict[User, Tree] = {}
        self._round = 0
        self._heard = 0.0
        self._lock = threading.Lock()

    def follow(self) -> None:
        """Begin to hear of changes."""
        threading.Thread(target=self._run, name="kmsfs-view", daemon=True).start()

    def tree(self, user: User, session: ClientSession) -> Tree:
        """Return what a user sees.

        Raises:
            KmsfsError: as DescribeParameters.
        """
        held = self._held.get(user)
        if held is not None and time.monotonic() < self._heard + LEASE_SECONDS:
            return held
        before = self._round
        made = tree_of(_names(session, self._path), self._path)
        with self._lock:
            if self._round == before:
                if len(self._held) >= _TREES_MAX:
                    self._held.clear()
                self._held[user] = made
        return made

    def _run(self) -> None:
        try:
            for event in self._stream:
                if event["kind"] == HEARD:
                    self._heard = time.monotonic()
                elif event["kind"] == LOST:
                    self._heard = 0.0
                else:
                    with self._lock:
                        self._round += 1
                        self._held.clear()
        except KmsfsError:
            # Then every look asks the daemon, which says why.
            self._heard = 0.0


def _names(session: ClientSession, path: str) -> list[str]:
    request: dict[str, Any] = {"MaxResults": _PAGE}
    if path.strip("/"):
        request["ParameterFilters"] = [{"Key": "Path", "Option": "Recursive", "Values": [path]}]
    return [parameter["Name"] for parameter in session.pages("DescribeParameters", "Parameters", request)]


class ViewOperations(mfusepy.Operations):  # type: ignore[misc]
    """Paths to parameters, nothing else."""

    use_ns = True

    def __init__(self, names: Names, readers: Readers, on_ready: Callable[[], None]) -> None:
        self._names = names
        self._readers = readers
        self._on_ready = on_ready
        self._numbers = itertools.count(1)
        self._open: dict[int, bytes] = {}

    def init(self, path: str) -> None:
        """Libfuse is up: the file system answers from here on."""
        self._names.follow()
        self._on_ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """See mfusepy.Operations. A file's size is 0, as in /proc: values are not read for that."""
        place = path.strip("/")
        if not place:
            # There even while the daemon is not.
            return _facts(user_of(*mfusepy.fuse_get_context()), _FOLDER, 2)
        with self._asking() as (user, session):
            tree = self._names.tree(user, session)
            if place in tree.folders:
                return _facts(user, _FOLDER, 2)
            if place not in tree.files:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return _facts(user, _FILE, 1)

    def readdir(self, path: str, fh: int) -> list[str]:
        """See mfusepy.Operations."""
        with self._asking() as (user, session):
            found = self._names.tree(user, session).folders.get(path.strip("/"))
            if found is None:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return [".", "..", *sorted(found)]

    def open(self, path: str, flags: int) -> int:
        """See mfusepy.Operations: one GetParameter in the caller's name."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise mfusepy.FuseOSError(errno.EROFS)
        with self._asking() as (user, session):
            name = self._names.tree(user, session).files.get(path.strip("/"))
            if name is None:
                raise mfusepy.FuseOSError(errno.ENOENT)
            answer = session.call("GetParameter", {"Name": name, "WithDecryption": True})
            handle = next(self._numbers)
            self._open[handle] = answer["Parameter"]["Value"].encode()
            return handle

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        """See mfusepy.Operations."""
        return self._open[fh][offset : offset + size]

    def release(self, path: str | None, fh: int) -> int:
        """See mfusepy.Operations."""
        self._open.pop(fh, None)
        return 0

    @contextmanager
    def _asking(self) -> Iterator[tuple[User, ClientSession]]:
        user = user_of(*mfusepy.fuse_get_context())
        try:
            yield user, self._readers.session_of(user)
        except KmsfsError as error:
            raise mfusepy.FuseOSError(error.errno) from error


def _facts(user: User, mode: int, links: int) -> dict[str, Any]:
    return {"st_mode": mode, "st_nlink": links, "st_uid": user[0], "st_gid": user[1]}


def serve_view(
    mountpoint: Path, path: str, session: ClientSession, named: str | None, *, allow_other: bool, on_ready: Callable[[], None]
) -> None:
    """Mount the parameters below a path and serve them until it is unmounted.

    Raises:
        DaemonUnreachable: if no daemon answers.
        RuntimeError: if libfuse refuses to mount.
    """
    session.call("GetStatus", {})
    operations = ViewOperations(Names(session, path), Readers(session, named), on_ready)
    extra: dict[str, Any] = {"allow_other": True} if allow_other else {}
    # Nothing of one reader's may be answered to another out of the kernel's caches.
    mfusepy.FUSE(
        operations, os.fspath(mountpoint), foreground=True, nothreads=True, ro=True, direct_io=True, attr_timeout=0,
        entry_timeout=0, negative_timeout=0, fsname=f"parameters:{path}", subtype="kmsfs-secrets", **extra,
    )  # fmt: skip
