"""Changes made visible to inotify: the kernel tells of calls that somebody makes on the mount, so a process of ours makes them.

It is another process than the one that answers, as a thread that waits for its own file system cannot be killed. What it is
shown is the tree as it was announced last; its calls bring that up to date, and change nothing else.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from kmsfs.view.tree import Tree, place_of, tree_of

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
CREATED, UPDATED, DELETED = "Create", "Update", "Delete"
"""Operations of changes of which inotify has to know (kmsd's events)."""
Step = tuple[str, str]
"""What to do, and to which path below the mountpoint."""


class Announcer:
    """The process, and what it is shown."""

    def __init__(self, mountpoint: Path) -> None:
        """Begin it: before the file system is mounted, so that it does not hold what the mount ends with."""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.tree = Tree()
        self.pid = os.fork()
        if not self.pid:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                _close_all_but(commands, answers)
                _serve(commands, answers, os.fspath(mountpoint))
            finally:
                os._exit(0)
        os.close(commands)
        os.close(answers)

    def act(self, verb: str, path: str) -> bool:
        """Have a call made, and wait for it; return False if the process is gone."""
        try:
            os.write(self._commands, json.dumps([verb, path]).encode() + b"\n")
            return bool(os.read(self._answers, 1))
        except OSError:
            return False

    def close(self) -> None:
        """End it, once the file system is gone."""
        os.close(self._commands)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def _close_all_but(*kept: int) -> None:
    """Whoever waits for the end of something that the view has open does not wait for this process too."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _serve(commands: int, answers: int, mountpoint: str) -> None:
    with os.fdopen(commands, encoding="utf-8") as lines:
        for line in lines:
            verb, path = json.loads(line)
            # Refused where the file system is going.
            with contextlib.suppress(OSError):
                _ACTS[verb](os.path.join(mountpoint, path))
            os.write(answers, b".")


def _write(path: str, flags: int) -> None:
    descriptor = os.open(path, flags, 0o400)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


_ACTS: dict[str, Callable[[str], None]] = {
    "create": lambda path: _write(path, _CREATE),
    "modify": lambda path: _write(path, os.O_WRONLY),
    "unlink": os.unlink,
    "mkdir": lambda path: os.mkdir(path, 0o500),
    "rmdir": os.rmdir,
    "touch": os.utime,
}


class Announcements:
    """Tells inotify what the view's owner sees change; of others' it tells names only where all who may watch may see them."""

    def __init__(self, announcer: Announcer, path: str, secret: Callable[[str, str, str], bool]) -> None:
        """Announce what is below `path`. `secret` tells whether somebody may watch a directory, a path in which he may not see.

        It is given the directory, the path, and the parameter that has changed.
        """
        self._announcer = announcer
        self._path = path
        self._secret = secret
        self._names: set[str] = set()

    def begin(self, names: list[str]) -> None:
        """Take what there is as known; what differs from what was told before is told, and that nothing is known of the rest."""
        before, self._names = self._names, set(names)
        if before:
            self._tell("", self._names & before)
        else:
            self._announcer.tree = tree_of(sorted(self._names), self._path)

    def tell(self, operation: str, name: str) -> None:
        """Tell of one change of a parameter."""
        if operation == DELETED:
            self._names.discard(name)
        elif operation in (CREATED, UPDATED):
            self._names.add(name)
        else:
            return
        self._tell(name, {name} if operation == UPDATED else set())

    def _tell(self, name: str, changed: set[str]) -> None:
        shown = self._announcer.tree
        coming = tree_of(sorted(self._names), self._path)
        touched = set()
        for verb, path in steps(shown, coming, changed):
            folder = path.rpartition("/")[0]
            if self._secret(folder, path, name):
                shown.apply(verb, path)
                touched.add(folder)
            elif not self._announcer.act(verb, path):
                return
        for folder in sorted(touched):
            if folder in shown.folders:
                self._announcer.act("touch", folder)
        self._announcer.tree = coming


def steps(old: Tree, new: Tree, changed: set[str]) -> list[Step]:
    """Return what makes a tree of names into another one, in order; the values of the parameters `changed` are new."""
    return [
        *(("unlink", path) for path in sorted(old.files.keys() - new.files.keys())),
        *(("rmdir", path) for path in sorted(old.folders.keys() - new.folders.keys(), reverse=True)),
        *(("mkdir", path) for path in sorted(new.folders.keys() - old.folders.keys())),
        *(("create", path) for path in sorted(new.files.keys() - old.files.keys())),
        *(("modify", path) for path in sorted(new.files) if new.files[path] in changed and path in old.files),
    ]


def concerns(path: str, name: str, top: str) -> bool:
    """Tell whether a path is that of a parameter's file, or of a directory above it."""
    place = place_of(name, top)
    return place is not None and f"{place}/".startswith(f"{path}/")
