"""kmsfs exec: run a program with parameters and secrets in its environment."""

import os
import re
from typing import Annotated

import typer

from kmsfs.cli.output import call, pages
from kmsfs.client.tree import variable_name
from kmsfs.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR")


def execute(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run, after `--`.")],
    path: Annotated[
        list[str] | None, typer.Option(help="Set every parameter below this path; may be repeated.")
    ] = None,
    var: Annotated[list[str] | None, typer.Option(help="NAME=PARAMETER: set one parameter.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="NAME=SECRET: set one secret's text.")] = None,
    pristine: Annotated[
        bool, typer.Option("--pristine", help="Start from a bare environment instead of this one.")
    ] = False,
) -> None:
    """Run a command with secrets in its environment. Example: kmsfs exec --path /app/prod -- ./server"""
    wanted: dict[str, str] = {}
    for below in path or ():
        found = pages(
            "GetParametersByPath", "Parameters", "NextToken", "NextToken", Path=below, Recursive=True, WithDecryption=True
        )  # fmt: skip
        for parameter in found:
            name = variable_name(parameter["Name"], below)
            if name in wanted:
                raise UsageError(
                    f"two parameters give the variable {name}", hint="name one of them with --var"
                )
            wanted[name] = parameter["Value"]
    for text in var or ():
        name, source = _pair(text)
        wanted[name] = call("GetParameter", Name=source, WithDecryption=True)["Parameter"]["Value"]
    for text in secret or ():
        name, source = _pair(text)
        value = call("GetSecretValue", SecretId=source)
        if "SecretString" not in value:
            raise UsageError(
                f"the secret {source} is no text", hint="kmsfs secret get --raw prints its bytes"
            )
        wanted[name] = value["SecretString"]
    bad = next((name for name, value in wanted.items() if "\0" in value), None)
    if bad is not None:
        raise UsageError(f"the value of {bad} has a zero byte, which no variable can hold")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ} if pristine else dict(os.environ)
    try:
        os.execvpe(command[0], command, {**kept, **wanted})  # noqa: S606  (to become that program is the point)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error


def _pair(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not source or not _NAME.match(name):
        raise UsageError(f"{text!r} is not NAME=SOURCE")
    return name, source
