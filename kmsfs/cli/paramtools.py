"""kmsfs param tree, copy, rollback, diff, edit, export, import: the tree as people work with it."""

import difflib
import json
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli import param
from kmsfs.cli.output import SETTINGS, call, confirm, pages, read_text_value, say, show
from kmsfs.client.tree import variable_name
from kmsfs.errors import KmsfsError, ParameterAlreadyExists, ParameterNotFound, UsageError

app = param.app
"""The group `kmsfs param`, which these commands join."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name.")]


def _below(path: str) -> list[dict[str, Any]]:
    return pages(
        "GetParametersByPath", "Parameters", "NextToken", "NextToken", Path=path, Recursive=True, WithDecryption=True
    )  # fmt: skip


def _facts(name: str) -> dict[str, Any]:
    """Return what PutParameter must be told again of a parameter: a version without it would lose it."""
    filters = [{"Key": "Name", "Option": "Equals", "Values": [name]}]
    found = pages("DescribeParameters", "Parameters", "NextToken", "NextToken", MaxResults=50, ParameterFilters=filters)
    kept = ("Description", "AllowedPattern", "DataType", "KeyId", "Tier")
    return {field: found[0][field] for field in kept if found[0].get(field)} if found else {}


def _replace(parameter: dict[str, Any], value: str) -> dict[str, Any]:
    """Make a new version of the parameter as it was read.

    Raises:
        UsageError: if somebody else made a version since then.
    """
    name = parameter["Name"]
    facts = _facts(name)
    newest = call("GetParameter", Name=name)["Parameter"]["Version"]
    if newest != parameter["Version"]:
        raise UsageError(
            f"{name} has version {newest} by now, and version {parameter['Version']} was edited: nothing was changed",
            hint="edit it again",
        )
    answer: dict[str, Any] = call("PutParameter", Name=name, Value=value, Overwrite=True, **facts)
    return answer


@app.command()
def tree(path: Annotated[str, typer.Argument(help="Path to show below.")] = "/") -> None:
    """Show the hierarchy below a path, without values."""
    filters = [{"Key": "Path", "Option": "Recursive", "Values": [path]}]
    found = pages("DescribeParameters", "Parameters", "NextToken", "NextToken", MaxResults=50, ParameterFilters=filters)
    show(found, lambda: _print_tree({p["Name"]: p for p in found}))


def _print_tree(found: dict[str, dict[str, Any]]) -> None:
    shown: list[str] = []
    for name in sorted(found):
        parts = name.strip("/").split("/")
        common = 0
        while common < min(len(shown), len(parts) - 1) and shown[common] == parts[common]:
            common += 1
        for depth in range(common, len(parts) - 1):
            print("  " * depth + parts[depth] + "/")
        facts = found[name]
        print("  " * (len(parts) - 1) + f"{parts[-1]}  ({facts['Type']}, version {facts['Version']})")
        shown = parts[:-1]


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Name, or with --recursive a path.")],
    target: Annotated[str, typer.Argument(help="New name, or new path.")],
    recursive: Annotated[bool, typer.Option("--recursive", help="Everything below the path.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make new versions of what is there.")
    ] = False,
) -> None:
    """Copy a parameter, or a whole subtree: value, type, KMS key, tier, description, pattern and data type."""
    if recursive:
        found = _below(source)
        prefix = source.rstrip("/")
        names = {p["Name"]: target.rstrip("/") + p["Name"].removeprefix(prefix) for p in found}
    else:
        found = [call("GetParameter", Name=source, WithDecryption=True)["Parameter"]]
        names = {found[0]["Name"]: target}
    if not found:
        raise ParameterNotFound(f"There are no parameters below {source}.")
    for parameter in found:
        facts = {"Type": parameter["Type"], **_facts(parameter["Name"])}
        _put(names[parameter["Name"]], parameter["Value"], overwrite=overwrite, **facts)
    show(sorted(names.values()), lambda: say(f"copied {len(names)} parameter(s)"))


@app.command()
def rollback(
    name: Name, to: Annotated[int, typer.Option("--to", min=1, help="Version whose value shall count again.")]
) -> None:
    """Make an older value the newest version; nothing is lost."""
    old = call("GetParameter", Name=f"{name}:{to}", WithDecryption=True)["Parameter"]
    answer = call("PutParameter", Name=name, Value=old["Value"], Overwrite=True, **_facts(name))
    show(answer, lambda: say(f"{name} version {answer['Version']} has the value of version {to}"))


@app.command()
def diff(
    name: Name,
    old: Annotated[int, typer.Argument(min=1, help="Version.")],
    new: Annotated[int | None, typer.Argument(min=1, help="Version; the newest if none.")] = None,
) -> None:
    """Show what changed between two versions, decrypted."""
    before = call("GetParameter", Name=f"{name}:{old}", WithDecryption=True)["Parameter"]
    after = call("GetParameter", Name=f"{name}:{new}" if new else name, WithDecryption=True)["Parameter"]
    labels = (f"{name}:{before['Version']}", f"{name}:{after['Version']}")
    lines = list(
        difflib.unified_diff(before["Value"].splitlines(), after["Value"].splitlines(), *labels, lineterm="")
    )
    show(lines, lambda: print("\n".join(lines) if lines else "no difference"))


@app.command()
def edit(name: Name) -> None:
    """Change a value in $EDITOR, through a private file in memory; saved unchanged, nothing happens."""
    parameter = call("GetParameter", Name=name, WithDecryption=True)["Parameter"]
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    memory = Path(os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="kmsfs-", dir=memory if memory.is_dir() else None) as folder:
        file = Path(folder) / "value"
        file.touch(mode=0o600)
        file.write_bytes(parameter["Value"].encode() + b"\n")
        try:
            done = subprocess.run([*editor, os.fspath(file)], check=False)
        except OSError as error:
            raise UsageError(f"cannot run {editor[0]}: {error.strerror}", hint="set EDITOR") from error
        if done.returncode:
            raise UsageError(f"{editor[0]} ended with {done.returncode}: nothing was changed")
        try:
            value = file.read_bytes().decode().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{editor[0]} left no UTF-8 text: nothing was changed") from error
    if value == parameter["Value"]:
        say("unchanged")
        return
    try:
        answer = _replace(parameter, value)
    except KmsfsError:
        kept = _keep(value, memory)
        say(f"what you wrote is kept in {kept}: `kmsfs param put {name} --overwrite --value-file {kept}`, then remove it")
        raise
    show(answer, lambda: say(f"{name} version {answer['Version']}"))


def _keep(value: str, memory: Path) -> str:
    """Leave a value in a private file, in memory where there is any."""
    descriptor, path = tempfile.mkstemp(prefix="kmsfs-kept-", dir=memory if memory.is_dir() else None)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(value.encode())
    return path


@app.command("export")
def export_tree(
    path: Annotated[str, typer.Argument(help="Path to export below.")],
    style: Annotated[str, typer.Option("--format", help="dotenv, json, or yaml.")] = "dotenv",
) -> None:
    """Print the values below a path, decrypted. Example: kmsfs param export /app/prod > .env"""
    found = _below(path)
    if style in ("json", "yaml") or SETTINGS.as_json:
        prefix = path.rstrip("/") + "/"
        document = {p["Name"].removeprefix(prefix): p["Value"] for p in found}
        if style == "yaml" and not SETTINGS.as_json:
            from kmsfs.cli.importing import as_yaml

            print(as_yaml(document), end="")
        else:
            print(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False))
    elif style == "dotenv":
        variables = {variable_name(p["Name"], path): p["Value"] for p in found}
        if len(variables) != len(found):
            raise UsageError(
                f"two parameters below {path} give the same variable", hint="--format json keeps their names"
            )
        for name, value in variables.items():
            print(f"{name}={_quoted(value)}")
    else:
        raise UsageError(f"unknown format {style!r}", hint="dotenv, json or yaml")


@app.command("import")
def import_tree(
    path: Annotated[str, typer.Argument(help="Path to import below.")],
    source: Annotated[str | None, typer.Option("--file", help="File, `-` for standard input.")] = None,
    style: Annotated[
        str, typer.Option("--format", help="dotenv, json, yaml, vault (`vault kv get -format=json`), or sops.")
    ] = "dotenv",
    from_aws: Annotated[
        str | None, typer.Option(metavar="PATH", help="Instead of a file: what is below this path of AWS's Parameter Store, by boto3.")
    ] = None,
    kind: Annotated[str, typer.Option("--type", help="Type of new parameters; those from AWS keep theirs.")] = "SecureString",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make new versions of what is there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before overwriting.")] = False,
) -> None:
    """Store every value of a file as a parameter. Example: kmsfs param import /app/prod --file .env"""
    if (source is None) == (from_aws is None):
        raise UsageError("give either --file or --from-aws")
    from kmsfs.cli.importing import read_aws, read_values

    if from_aws is not None:
        values = read_aws(from_aws)
    else:
        values = {name: (kind, value) for name, value in read_values(style, read_text_value(source or "-")).items()}
    names = {f"{path.rstrip('/')}/{name}": value for name, value in values.items()}
    if overwrite:
        confirm(f"{len(names)} parameters below {path} get new values", path, yes=yes)
    for name, (its_kind, value) in names.items():
        _put(name, value, overwrite=overwrite, Type=its_kind)
    show(sorted(names), lambda: say(f"stored {len(names)} parameter(s) below {path}"))


def _put(name: str, value: str, *, overwrite: bool, **facts: str) -> None:
    """Store a value; an existing parameter keeps its facts and gets a new version, if that was asked for."""
    try:
        call("PutParameter", Name=name, Value=value, **facts)
    except ParameterAlreadyExists as error:
        if not overwrite:
            raise ParameterAlreadyExists(f"{name} exists already.", hint="pass --overwrite") from error
        call("PutParameter", Name=name, Value=value, Overwrite=True, **_facts(name))


def _quoted(value: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9_./:@%+,-]+", value)
    if plain:
        return value
    # Single quotes keep a shell from reading `$` and the like; what they cannot hold is escaped in double ones.
    return json.dumps(value, ensure_ascii=False) if "'" in value or "\n" in value else f"'{value}'"
