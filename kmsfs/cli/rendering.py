"""kmsfs render and kmsfs secrets sync: secrets in files, kept as they are in the store."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from kmsfs.cli.output import fail, say, session, show
from kmsfs.errors import InvalidRequest, KmsfsError, UsageError

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay, and do it again whenever what it read has changed.")]
Run = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="Run this after each change of the files; no shell is between.")
]


def render(
    template: Annotated[Path, typer.Argument(metavar="TEMPLATE", help="A Jinja2 template.")],
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="The file to replace.")],
    mode: Annotated[str | None, typer.Option(help="Its mode, octal (default: as it is; 600 for a new one).")] = None,
    follow: Follow = False,
    run: Run = None,
) -> None:
    """Write a file from a template with secrets in it. Example: kmsfs render app.conf.j2 /run/app.conf --follow --run "systemctl reload app"

    In the template: param("/app/db"), tree("/app") (a dict by names of variables), secret("NAME"), secret_json("NAME").field.
    """
    from kmsfs.render import places
    from kmsfs.render import template as templates
    from kmsfs.render.sources import Sources

    bits = _mode(mode)
    sources = Sources(session())
    _keep(
        sources.touched_by,
        lambda: places.replace_file(destination, templates.render(template, sources), bits),
        destination, follow=follow, run=run,
    )  # fmt: skip


def sync(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path of the parameter tree.")],
    folder: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A directory on a tmpfs, of nobody else's.")],
    follow: Follow = False,
    run: Run = None,
) -> None:
    """Show the parameters below a path as files in memory, all replaced at once. Example: kmsfs secrets sync /app/prod /run/app --follow"""
    from kmsfs.render import places
    from kmsfs.render.sources import Sources

    places.require_memory(folder)
    sources = Sources(session())
    top = path.rstrip("/") + "/"

    def act() -> bool:
        found = sources.below(path)
        return places.publish(folder, {name.removeprefix(top): value.encode() for name, value in found.items()})

    _keep(sources.touched_by, act, folder, follow=follow, run=run)


def _keep(
    concerns: Callable[[dict[str, str]], bool],
    act: Callable[[], bool],
    place: Path,
    *,
    follow: bool,
    run: str | None,
) -> None:
    command = shlex.split(run) if run else []
    if not follow:
        changed = act()
        show({"Place": str(place), "Changed": changed}, lambda: print(f"{place} {'was written' if changed else 'is as it should be'}"))
        if changed and command:
            _run(command)
        return
    owed = False

    def once() -> None:
        """Write what is to be written, and run the command that is owed for it."""
        nonlocal owed
        if act():
            say(f"{place} was written")
            owed = bool(command)
        if owed:
            _run(command)
            owed = False

    from kmsfs.client.changes import ChangeStream
    from kmsfs.render.following import keep_up

    # The stream begins before the first reading, so that no change falls between them.
    stream = ChangeStream(session(), sources=("ssm", "secretsmanager"))
    try:
        keep_up(stream, concerns, once, lambda error: _complain(error, place))
    except KeyboardInterrupt:
        say(f"{place} is followed no more")
    finally:
        stream.close()


def _complain(error: KmsfsError, place: Path) -> None:
    fail(error)
    say(f"{place} stays as it is; tried again after the next change, or in half a minute")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise InvalidRequest(f"{command[0]} ended with {done.returncode}")


def _mode(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        bits = int(text, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o777:
        raise UsageError(f"{text!r} is no mode", hint="three octal digits, for instance 640")
    return bits
