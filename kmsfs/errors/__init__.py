"""Every failure kmsfs can name: `core` has the families, the other modules those of one service."""

from kmsfs.errors.accounts import *  # noqa: F403
from kmsfs.errors.core import *  # noqa: F403  (one door: every room imports from here)
from kmsfs.errors.core import KmsfsError
from kmsfs.errors.iam import *  # noqa: F403
from kmsfs.errors.importing import *  # noqa: F403
from kmsfs.errors.keystores import *  # noqa: F403
from kmsfs.errors.parameters import *  # noqa: F403
from kmsfs.errors.secrets import *  # noqa: F403
from kmsfs.errors.sharing import *  # noqa: F403


def all_errors() -> tuple[type[KmsfsError], ...]:
    """Return every error class, root first, in the order of declaration."""
    found: list[type[KmsfsError]] = []

    def visit(cls: type[KmsfsError]) -> None:
        found.append(cls)
        for child in cls.__subclasses__():
            visit(child)

    visit(KmsfsError)
    return tuple(found)
