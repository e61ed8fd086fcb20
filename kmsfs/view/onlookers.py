"""Who may be watching a directory of a view that has many readers, and must not learn names from it that he cannot see."""

import threading

from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError
from kmsfs.view.announce import concerns
from kmsfs.view.readers import Readers, User
from kmsfs.view.tree import Tree

_USERS_MAX = 64


class Onlookers:
    """The users who were shown something, with the tree that each was shown last.

    inotify tells whoever watches a directory, and asks nobody. To watch one, a process has to find it, and so was shown its tree; but
    for the topmost, which anybody finds.
    """

    def __init__(self, readers: Readers, path: str) -> None:
        self._readers = readers
        self._path = path
        self._trees: dict[User, Tree] = {}
        self._folders: dict[User, set[str]] = {}
        """Directories that each was ever shown: a watch stays when its owner no longer finds what he watches."""
        self._since: dict[User, set[str]] = {}
        """Parameters that each was found to see after he was shown his tree."""
        self._too_many = False
        self._lock = threading.Lock()

    def note(self, user: User, tree: Tree) -> None:
        """Take what somebody is shown."""
        with self._lock:
            if user in self._trees or len(self._trees) < _USERS_MAX:
                self._trees[user] = tree
                self._folders.setdefault(user, set()).update(tree.folders)
                self._since[user] = set()
            else:
                self._too_many = True

    def may_not_know(self, folder: str, path: str, name: str) -> bool:
        """Tell whether somebody may watch `folder` and not see `path` in it, now that the parameter `name` has changed."""
        if not folder or self._too_many:
            return True
        with self._lock:
            watching = [(user, tree) for user, tree in self._trees.items() if folder in self._folders[user]]
        return not all(
            path in tree.files or path in tree.folders or (concerns(path, name, self._path) and self._sees(user, name))
            for user, tree in watching
        )

    def _sees(self, user: User, name: str) -> bool:
        if name in self._since[user]:
            return True
        try:
            session: ClientSession = self._readers.session_of(user)
            request = {"ParameterFilters": [{"Key": "Name", "Option": "Equals", "Values": [name]}]}
            found = any(True for _ in session.pages("DescribeParameters", "Parameters", request))
        except KmsfsError:
            return False
        if found:
            self._since[user].add(name)
        return found
