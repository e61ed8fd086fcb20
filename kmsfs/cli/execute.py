"""kmsfs exec: run a program with parameters and secrets in its environment, or behind its file descriptors."""

import fcntl
import os
import re
from typing import Annotated

import typer

from kmsfs.cli.output import call, pages
from kmsfs.client.tree import variable_name
from kmsfs.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FIRST, _LAST = 3, 255
"""Descriptors that may be given; ours are kept above meanwhile."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR")


def execute(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run, after `--`.")],
    path: Annotated[
        list[str] | None, typer.Option(help="Set every parameter below this path; may be repeated.")
    ] = None,
    var: Annotated[list[str] | None, typer.Option(help="NAME=PARAMETER: set one parameter.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="NAME=SECRET: set one secret's text.")] = None,
    fd: Annotated[
        list[str] | None,
        typer.Option(help="NUMBER=PARAMETER: let a value be read from a file descriptor, 3 to 255, also as /dev/fd/NUMBER."),
    ] = None,
    pristine: Annotated[
        bool, typer.Option("--pristine", help="Start from a bare environment instead of this one.")
    ] = False,
) -> None:
    """Run a command with secrets in its environment, or behind file descriptors. Example: kmsfs exec --path /app/prod -- ./server"""
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
    values = [_value_of(text) for text in fd or ()]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ} if pristine else dict(os.environ)
    for number, value in values:
        _put_behind(number, value)
    try:
        os.execvpe(command[0], command, {**kept, **wanted})  # noqa: S606  (to become that program is the point)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error


def _pair(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not source or not _NAME.match(name):
        raise UsageError(f"{text!r} is not NAME=SOURCE")
    return name, source


def _value_of(text: str) -> tuple[int, bytes]:
    number, _, source = text.partition("=")
    if not (number.isascii() and number.isdigit() and _FIRST <= int(number) <= _LAST and source):
        raise UsageError(f"{text!r} is not NUMBER=PARAMETER", hint=f"the number is one from {_FIRST} to {_LAST}")
    value: str = call("GetParameter", Name=source, WithDecryption=True)["Parameter"]["Value"]
    return int(number), value.encode()


def _put_behind(number: int, value: bytes) -> None:
    """Let a value be read from a descriptor of the program that we become: it is in memory, and nobody can change it."""
    made = os.memfd_create("kmsfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(made, value)
    os.lseek(made, 0, os.SEEK_SET)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
    # By way of a number that is none of those that are still to be given.
    above = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _LAST + 1)
    os.close(made)
    os.dup2(above, number, inheritable=True)
    os.close(above)
