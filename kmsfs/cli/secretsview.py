"""kmsfs secrets: the parameter tree as files."""

import os
from pathlib import Path
from typing import Annotated

import typer

from kmsfs.cli.background import serve_mount
from kmsfs.cli.output import SETTINGS, session
from kmsfs.cli.rendering import sync
from kmsfs.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="The parameter tree as files.")
app.command()(sync)


@app.command()
def mount(
    mountpoint: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="An empty directory, or one to be made.")],
    path: Annotated[str, typer.Option(help="Show the parameters below this path.")] = "/",
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="As root: let every user in, each to what is his.")
    ] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted.")] = False,
) -> None:
    """Show parameters as files, each read in the reader's name. Example: kmsfs secrets mount /run/secrets --path /app --allow-other"""
    from kmsfs.mount.hardening import forbid_dumps
    from kmsfs.view.serve import serve_view

    place = mountpoint.absolute()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise UsageError(f"{mountpoint} is not empty: its files would be hidden", hint="choose an empty directory")
    except OSError as error:
        raise UsageError(f"cannot use {mountpoint}: {error.strerror}") from error
    if allow_other and os.geteuid():
        raise UsageError("only root may let others in: it reads in their names", hint="leave out --allow-other")
    if not path.startswith("/"):
        raise UsageError(f"{path!r} is no path", hint="it begins with a slash")
    talk = session()
    talk.call("GetStatus", {})
    forbid_dumps()
    serve_mount(
        lambda ready: serve_view(place, path, talk, SETTINGS.socket, allow_other=allow_other, on_ready=ready),
        place, f"the parameters below {path} are in {mountpoint}", foreground=foreground,
    )  # fmt: skip
