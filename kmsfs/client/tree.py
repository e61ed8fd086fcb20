"""A part of the parameter tree as the settings of a program: read at once, named as variables or as nested levels."""

import re
from dataclasses import dataclass
from typing import Any

from kmsfs.errors import InvalidRequest, UsageError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OPERATION = "get_parameters_by_path"


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter below a path: the levels of its name there, and its value; a StringList's is a list."""

    name: str
    levels: tuple[str, ...]
    value: str | list[str]


def variable_name(name: str, path: str) -> str:
    """Return the environment variable of a parameter below a path: `/app/prod/db/pass-word` gives DB_PASS_WORD.

    Raises:
        UsageError: if no variable may have that name.
    """
    rest = name.removeprefix(path.rstrip("/")).strip("/")
    made = re.sub(r"[/.-]", "_", rest).upper()
    if not _VARIABLE.match(made):
        raise UsageError(
            f"{name} gives no name for a variable", hint="rename it, or read it with --var NAME=PARAMETER"
        )
    return made


def read_tree(path: str, client: Any = None) -> list[Setting]:
    """Return all parameters below a path, SecureStrings in the clear.

    `client` is one of `kmsfs.client("ssm")` or of boto3; without one the daemon on the socket is asked.

    Raises:
        ClientError: as GetParametersByPath, of the client's own kind.
    """
    if client is None:
        from kmsfs.client.boto import make_client

        client = make_client("ssm", socket=None, autostart=True)
    pages = client.get_paginator(_OPERATION).paginate(Path=path, Recursive=True, WithDecryption=True)
    return [_setting(entry, path) for page in pages for entry in page["Parameters"]]


def nested(settings: list[Setting], *, lower: bool) -> dict[str, Any]:
    """Return settings as a dict of dicts by level; `-` and `.` in a level become `_`.

    Raises:
        InvalidRequest: if a name is a value and has levels below it, or two names become one.
    """
    tree: dict[str, Any] = {}
    for setting in settings:
        levels = [re.sub(r"[.-]", "_", level) for level in setting.levels]
        levels = [level.lower() for level in levels] if lower else levels
        branch: Any = tree
        for level in levels[:-1]:
            branch = branch.setdefault(level, {})
            if not isinstance(branch, dict):
                raise _clash(setting)
        if levels[-1] in branch:
            raise _clash(setting)
        branch[levels[-1]] = setting.value
    return tree


def _clash(setting: Setting) -> InvalidRequest:
    return InvalidRequest(
        f"the parameter {setting.name} and another one below the same path are one setting", hint="rename one of them"
    )


def _setting(entry: dict[str, Any], path: str) -> Setting:
    name, value = entry["Name"], entry["Value"]
    levels = tuple(name.removeprefix(path.rstrip("/")).strip("/").split("/"))
    return Setting(name, levels, value.split(",") if entry["Type"] == "StringList" else value)
