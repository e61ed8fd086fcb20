"""Parameter names and paths (Systems Manager user guide, "Parameter name requirements and constraints")."""

import re

from kmsfs.errors import HierarchyLevelLimit, InvalidName
from kmsfs.quantity import PARAMETER_LEVELS_MAX, PARAMETER_NAME_MAX_CHARS

_NAME = re.compile(r"[a-zA-Z0-9_.\-/]+\Z")


def check_name(name: str) -> str:
    """Return `name` if a parameter may have it.

    Raises:
        InvalidName: for a foreign character, a reserved prefix, a missing or doubled slash, or excess length.
        HierarchyLevelLimit: for more than 15 levels.
    """
    if len(name) > PARAMETER_NAME_MAX_CHARS:
        raise InvalidName(f"Parameter name must be at most {PARAMETER_NAME_MAX_CHARS} characters.")
    if not _NAME.match(name):
        raise InvalidName(
            "Only a mix of letters, numbers and the following 4 symbols .-_/ are allowed in a parameter name."
        )
    if "/" in name and not name.startswith("/"):
        raise InvalidName(
            "Parameter name must be a fully qualified name: it starts with / where it has levels."
        )
    levels = name.removeprefix("/").split("/")
    if "" in levels:
        raise InvalidName("A parameter name has no empty level and does not end with /.")
    if len(levels) > PARAMETER_LEVELS_MAX:
        raise HierarchyLevelLimit(f"A parameter name has at most {PARAMETER_LEVELS_MAX} levels.")
    if levels[0].lower().startswith(("aws", "ssm")):
        raise InvalidName(_reserved(name, levels[0].lower()))
    return name


def _reserved(name: str, first: str) -> str:
    if not name.startswith("/"):
        return 'Parameter name: can\'t be prefixed with "aws" or "ssm" (case-insensitive).'
    if first.startswith("aws"):
        return f"No access to reserved parameter name: {name}."
    return (
        'Parameter name: can\'t be prefixed with "ssm" (case-insensitive). If formed as a path, it can consist of '
        "sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and the following "
        "3 symbols .-_"
    )


def other_spelling(name: str) -> str | None:
    """Return the other name of a parameter of one level: `/db` and `db` are one parameter, as they have one ARN."""
    bare = name.removeprefix("/")
    if "/" in bare or not bare:
        return None
    return bare if name != bare else "/" + bare


def check_path(path: str) -> str:
    """Return `path` without its last slash, if it is a path; the root is the empty string.

    Raises:
        InvalidName: if it is not one.
    """
    if not path.startswith("/") or not _NAME.match(path) or "//" in path:
        raise InvalidName(
            "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a forward "
            'slash "/". It can\'t be prefixed with "aws" or "ssm" (case-insensitive). It must use only letters, '
            "numbers, or the following symbols: . (period), - (hyphen), _ (underscore). Special characters are not "
            'allowed. All sub-paths, if specified, must use the forward slash symbol "/". '
            "Valid example: /get/parameters2-/by1./path0_."
        )
    return path.rstrip("/")


def below(name: str, path: str, *, recursive: bool) -> bool:
    """Tell whether a parameter lies below a checked path."""
    full = name if name.startswith("/") else "/" + name
    if not full.startswith(path + "/"):
        return False
    return recursive or "/" not in full[len(path) + 1 :]
