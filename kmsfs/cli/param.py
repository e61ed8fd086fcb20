"""kmsfs param: the parameter tree."""

import sys
from typing import Annotated, Any

import typer

from kmsfs.cli.output import call, confirm, facts, pages, read_text_value, say, show, table, when
from kmsfs.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Parameters and secrets in a tree.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name, or selector NAME:VERSION.")]
Decrypt = Annotated[bool, typer.Option("--with-decryption", help="Decrypt SecureStrings.")]


@app.command()
def put(
    name: Name,
    value_file: Annotated[
        str, typer.Option("--value-file", help="File with the value, `-` for standard input.")
    ],
    kind: Annotated[str | None, typer.Option("--type", help="String, StringList or SecureString.")] = None,
    tier: Annotated[str | None, typer.Option(help="Standard, Advanced or Intelligent-Tiering.")] = None,
    key: Annotated[str | None, typer.Option(help="KMS key of a SecureString.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make a new version of an existing one.")
    ] = False,
    allowed_pattern: Annotated[
        str | None, typer.Option(help="Regular expression that the value must match.")
    ] = None,
    strip: Annotated[bool, typer.Option(help="Drop one line break at the end of the value.")] = True,
) -> None:
    """Store a parameter. Example: pwgen | kmsfs param put /app/db --type SecureString --value-file -"""
    value = read_text_value(value_file)
    if strip and value.endswith("\n"):
        value = value[:-1]
    answer = call(
        "PutParameter", Name=name, Value=value, Type=kind, Tier=tier, KeyId=key, Description=description,
        Overwrite=overwrite, AllowedPattern=allowed_pattern,
    )  # fmt: skip
    show(answer, lambda: say(f"{name} version {answer['Version']} ({answer['Tier']})"))


@app.command()
def get(
    name: Name,
    with_decryption: Decrypt = False,
    raw: Annotated[bool, typer.Option("--raw", help="Print the bare value.")] = False,
) -> None:
    """Read a parameter. Example: kmsfs param get /app/db --with-decryption --raw"""
    parameter = call("GetParameter", Name=name, WithDecryption=with_decryption)["Parameter"]
    if raw:
        sys.stdout.write(parameter["Value"] + ("\n" if sys.stdout.isatty() else ""))
        return
    show(parameter, lambda: _print_parameter(parameter))


def _print_parameter(parameter: dict[str, Any]) -> None:
    facts(
        [
            ("name", parameter["Name"]),
            ("type", parameter["Type"]),
            ("version", parameter["Version"]),
            ("modified", when(parameter["LastModifiedDate"])),
            ("value", parameter["Value"]),
        ]
    )


@app.command("list")
def list_parameters(
    path: Annotated[str, typer.Argument(help="Path to list below.")] = "/",
    one_level: Annotated[bool, typer.Option("--one-level", help="Do not walk down.")] = False,
) -> None:
    """List parameters below a path, without values."""
    option = "OneLevel" if one_level else "Recursive"
    filters = [{"Key": "Path", "Option": option, "Values": [path]}]
    found = pages("DescribeParameters", "Parameters", "NextToken", "NextToken", MaxResults=50, ParameterFilters=filters)
    rows = [(p["Name"], p["Type"], p["Tier"], p["Version"], when(p["LastModifiedDate"])) for p in found]
    show(found, lambda: table(("name", "type", "tier", "version", "modified"), rows))


@app.command()
def find(
    text: Annotated[str, typer.Argument(help="Part of the name.")] = "",
    kind: Annotated[str | None, typer.Option("--type", help="String, StringList or SecureString.")] = None,
    tier: Annotated[str | None, typer.Option(help="Standard, Advanced or Intelligent-Tiering.")] = None,
    key: Annotated[str | None, typer.Option(help="KMS key, as the parameter names it.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME or NAME=VALUE; all that are given must be there.")] = None,
) -> None:
    """Find parameters in the whole tree, without values. Example: kmsfs param find password --type SecureString --tag team=blue"""
    filters: list[dict[str, Any]] = [{"Key": "Name", "Option": "Contains", "Values": [text]}] if text else []
    filters += [{"Key": name, "Values": [value]} for name, value in (("Type", kind), ("Tier", tier), ("KeyId", key)) if value]
    for one in tag or ():
        name, equals, value = one.partition("=")
        filters.append({"Key": f"tag:{name}", **({"Values": [value]} if equals else {})})
    if not filters:
        raise UsageError("what is to be found?", hint="give a part of the name, --type, --tier, --key or --tag; `kmsfs param list` lists all")
    found = pages("DescribeParameters", "Parameters", "NextToken", "NextToken", MaxResults=50, ParameterFilters=filters)
    rows = [(p["Name"], p["Type"], p["Tier"], p["Version"], when(p["LastModifiedDate"])) for p in found]
    show(found, lambda: table(("name", "type", "tier", "version", "modified"), rows))


@app.command()
def history(name: Name, with_decryption: Decrypt = False) -> None:
    """List the kept versions of a parameter."""
    found = pages(
        "GetParameterHistory",
        "Parameters",
        "NextToken",
        "NextToken",
        Name=name,
        WithDecryption=with_decryption,
    )
    rows = [
        (p["Version"], p["Type"], p["Tier"], when(p["LastModifiedDate"]), p["LastModifiedUser"])
        for p in found
    ]
    show(found, lambda: table(("version", "type", "tier", "modified", "by"), rows))


@app.command("by-path")
def by_path(
    path: Annotated[str, typer.Argument(help="Path to read below.")],
    recursive: Annotated[bool, typer.Option("--recursive", help="All levels.")] = False,
    with_decryption: Decrypt = False,
) -> None:
    """Read all parameters below a path."""
    found = pages(
        "GetParametersByPath", "Parameters", "NextToken", "NextToken", Path=path, Recursive=recursive,
        WithDecryption=with_decryption,
    )  # fmt: skip
    show(
        found,
        lambda: table(("name", "version", "value"), [(p["Name"], p["Version"], p["Value"]) for p in found]),
    )


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Names.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete parameters with all their versions."""
    confirm(f"{len(names)} parameter(s) and their history will be gone", names[0], yes=yes)
    if len(names) == 1:
        call("DeleteParameter", Name=names[0])
        answer = {"DeletedParameters": names, "InvalidParameters": []}
    else:
        answer = call("DeleteParameters", Names=names)
    show(
        answer,
        lambda: say(
            f"deleted {len(answer['DeletedParameters'])}, not found {len(answer['InvalidParameters'])}"
        ),
    )
