"""kmsfs alias: names of KMS keys."""

from typing import Annotated

import typer

from kmsfs.cli.output import call, confirm, pages, say, show, table

app = typer.Typer(no_args_is_help=True, help="Names of KMS keys.")
Name = Annotated[str, typer.Argument(metavar="ALIAS", help="alias/NAME.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN, or alias/NAME.")]


@app.command()
def create(alias: Name, key: Key) -> None:
    """Give a key a name."""
    call("CreateAlias", AliasName=alias, TargetKeyId=key)
    show({}, lambda: say(f"{alias} names {key}"))


@app.command()
def update(alias: Name, key: Key) -> None:
    """Let an alias name another key."""
    call("UpdateAlias", AliasName=alias, TargetKeyId=key)
    show({}, lambda: say(f"{alias} names {key}"))


@app.command()
def delete(alias: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Remove a name; the key stays."""
    confirm(f"What finds its key by {alias} will not find it any more", alias, yes=yes)
    call("DeleteAlias", AliasName=alias)
    show({}, lambda: say(f"removed {alias}"))


@app.command("list")
def list_aliases(key: Annotated[str | None, typer.Option(help="Of this key only.")] = None) -> None:
    """List aliases."""
    found = pages("ListAliases", "Aliases", "Marker", "NextMarker", KeyId=key)
    show(found, lambda: table(("alias", "key id"), [(a["AliasName"], a["TargetKeyId"]) for a in found]))
