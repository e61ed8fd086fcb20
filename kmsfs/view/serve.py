"""The view under libfuse 3's high-level API, by mfusepy: only to be read, nothing cached by the kernel, values read as the caller."""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")

import mfusepy

from kmsfs.client.changes import HEARD, LOST, RESET, ChangeStream
from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError
from kmsfs.view.announce import Announcements, Announcer
from kmsfs.view.onlookers import Onlookers
from kmsfs.view.readers import Readers, User, user_of
from kmsfs.view.tree import Tree, tree_of

_FOLDER, _FILE = 0o040500, 0o100400
_TREES_MAX = 64
_PAGE = 50


class Names:
    """Each reader's tree, held until a parameter changes; not held while the daemon is silent."""

    def __init__(self, session: ClientSession, path: str, announcements: Announcements, onlookers: Onlookers | None) -> None:
        """Keep trees of what is below `path`. `onlookers` are told who was shown what, where it is not one user's view."""
        self._path = path
        self._session = session
        self._announcements = announcements
        self._onlookers = onlookers
        self._stream = ChangeStream(session, sources=("ssm",))
        self._held: dict[User, Tree] = {}
        self._round = 0
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
        if held is not None and self._stream.lease.holds:
            return held
        before = self._round
        made = tree_of(_names(session, self._path), self._path)
        if self._onlookers is not None:
            self._onlookers.note(user, made)
        with self._lock:
            if self._round == before:
                if len(self._held) >= _TREES_MAX:
                    self._held.clear()
                self._held[user] = made
        return made

    def _run(self) -> None:
        known = False
        try:
            for event in self._stream:
                if event["kind"] == LOST:
                    continue
                if event["kind"] == HEARD:
                    # What was missed was told before.
                    if not known:
                        self._announcements.begin(_names(self._session, self._path))
                    known = True
                else:
                    with self._lock:
                        self._round += 1
                        self._held.clear()
                    if event["kind"] == RESET:
                        known = False
                    elif known:
                        self._announcements.tell(event["operation"], event["name"])
        except KmsfsError:
            # Then every look asks the daemon, which says why.
            self._stream.lease.lost()


def _names(session: ClientSession, path: str) -> list[str]:
    request: dict[str, Any] = {"MaxResults": _PAGE}
    if path.strip("/"):
        request["ParameterFilters"] = [{"Key": "Path", "Option": "Recursive", "Values": [path]}]
    return [parameter["Name"] for parameter in session.pages("DescribeParameters", "Parameters", request)]


class ViewOperations(mfusepy.Operations):  # type: ignore[misc]
    """Paths to parameters, nothing else."""

    use_ns = True

    def __init__(self, names: Names, readers: Readers, announcer: Announcer, on_ready: Callable[[], None]) -> None:
        self._names = names
        self._readers = readers
        self._announcer = announcer
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
        with self._asking() as (user, _, tree):
            if place in tree.folders:
                return _facts(user, _FOLDER, 2)
            if place not in tree.files:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return _facts(user, _FILE, 1)

    def readdir(self, path: str, fh: int) -> list[str]:
        """See mfusepy.Operations."""
        with self._asking() as (_, _, tree):
            found = tree.folders.get(path.strip("/"))
            if found is None:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return [".", "..", *sorted(found)]

    def open(self, path: str, flags: int) -> int:
        """See mfusepy.Operations: one GetParameter in the caller's name."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._only_announced()
            return 0
        with self._asking() as (_, session, tree):
            name = tree.files.get(path.strip("/"))
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

    # --- what changes nothing, and lets inotify know -------------------------------------------------------------

    def create(self, path: str, mode: int, fi: object = None) -> int:
        """See mfusepy.Operations."""
        self._announced("create", path)
        return 0

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        """See mfusepy.Operations."""
        self._only_announced()
        return len(data)

    def unlink(self, path: str) -> int:
        """See mfusepy.Operations."""
        return self._announced("unlink", path)

    def rename(self, old: str, new: str) -> int:
        """See mfusepy.Operations: libfuse renames what somebody has open instead of removing it."""
        return self._announced("unlink", old)

    def mkdir(self, path: str, mode: int) -> int:
        """See mfusepy.Operations."""
        return self._announced("mkdir", path)

    def rmdir(self, path: str) -> int:
        """See mfusepy.Operations."""
        return self._announced("rmdir", path)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """See mfusepy.Operations."""
        self._only_announced()
        return 0

    def _announced(self, verb: str, path: str) -> int:
        self._only_announced()
        self._announcer.tree.apply(verb, path.strip("/"))
        return 0

    def _only_announced(self) -> None:
        if mfusepy.fuse_get_context()[2] != self._announcer.pid:
            raise mfusepy.FuseOSError(errno.EROFS)

    @contextmanager
    def _asking(self) -> Iterator[tuple[User, ClientSession, Tree]]:
        """Yield who calls, the session to ask with in his name, and what he sees."""
        uid, gid, pid = mfusepy.fuse_get_context()
        try:
            if pid == self._announcer.pid:
                yield (uid, gid, ()), self._readers.own, self._announcer.tree
                return
            user = user_of(uid, gid, pid)
            session = self._readers.session_of(user)
            yield user, session, self._names.tree(user, session)
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
    readers = Readers(session, named)
    onlookers = Onlookers(readers, path) if allow_other else None
    announcer = Announcer(mountpoint)
    announcements = Announcements(announcer, path, onlookers.may_not_know if onlookers is not None else lambda *_: False)
    operations = ViewOperations(Names(session, path, announcements, onlookers), readers, announcer, on_ready)
    extra: dict[str, Any] = {"allow_other": True} if allow_other else {}
    # Nothing of one reader's may be answered to another out of the kernel's caches.
    try:
        mfusepy.FUSE(
            operations, os.fspath(mountpoint), foreground=True, nothreads=True, direct_io=True, attr_timeout=0,
            entry_timeout=0, negative_timeout=0, fsname=f"parameters:{path}", subtype="kmsfs-secrets", **extra,
        )  # fmt: skip
    finally:
        announcer.close()
