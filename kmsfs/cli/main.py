"""The `kmsfs` command: its groups, the options they share, and the way out."""

import sys
from typing import Annotated

import typer

from kmsfs import __version__
from kmsfs.cli import (
    access,
    account,
    adopting,
    ageplugin,
    alias,
    api,
    audit,
    aws,
    bringing,
    daemon,
    events,
    examining,
    execute,
    files,
    gitsign,
    grant,
    key,
    keystore,
    paramtools,
    rendering,
    reporting,
    rotating,
    scanning,
    secret,
    secretsview,
    service,
    tightening,
    top,
)
from kmsfs.cli.output import SETTINGS, fail, log_message
from kmsfs.client import locate
from kmsfs.errors import KmsfsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Keys, secrets and encrypted directories. Start with: kmsfs mount CIPHERDIR MOUNTPOINT",
)
app.add_typer(key.app, name="key")
app.add_typer(keystore.app, name="keystore")
app.add_typer(alias.app, name="alias")
app.add_typer(account.app, name="account")
app.add_typer(grant.app, name="grant")
app.add_typer(paramtools.app, name="param")
app.add_typer(secret.app, name="secret")
app.add_typer(files.volume_app, name="volume")
app.add_typer(daemon.app, name="daemon")
app.add_typer(aws.app, name="aws")
app.add_typer(audit.app, name="audit")
app.command("mount")(files.mount)
app.command("umount")(files.umount)
app.command("adopt")(adopting.adopt)
app.command("import")(bringing.bring)
app.command("check")(files.check)
app.command("rescue")(files.rescue)
app.command("rewrap")(files.rewrap)
app.command("inspect")(files.inspect)
app.command("bench")(files.bench)
app.command("install-service")(service.install_service)
app.command("api")(api.api)
app.command("events")(events.events)
app.command("render")(rendering.render)
app.add_typer(secretsview.app, name="secrets")
app.add_typer(gitsign.app, name="git-sign")
app.add_typer(ageplugin.app, name="age")
app.command("doctor")(examining.doctor)
app.command("rotator", hidden=True)(rotating.rotator)
app.command("exec")(execute.execute)
app.command("why")(access.why)
app.command("who-can")(access.who_can)
app.command("simulate")(access.simulate)
app.command("tighten")(tightening.tighten)
app.command("scan")(scanning.scan)
app.command("top")(top.top)
app.command("report")(reporting.report)


def _version(value: bool) -> None:
    if value:
        print(f"kmsfs {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    as_json: Annotated[bool, typer.Option("--json", help="Print documents as JSON.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Print messages, progress and errors as JSON, a line each, on stderr.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no messages.")] = False,
    socket: Annotated[
        str | None, typer.Option("--socket", help="Socket of the key daemon ($KMSFS_SOCKET).")
    ] = None,
    no_autostart: Annotated[
        bool, typer.Option("--no-autostart", help="Never start a private daemon.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options before the command."""
    del version
    SETTINGS.as_json, SETTINGS.quiet, SETTINGS.log_json = as_json, quiet, log_json
    if log_json:
        locate.announce = log_message
    SETTINGS.socket, SETTINGS.autostart = socket, not no_autostart


def run() -> None:
    """Run the command line; known failures become one line and their exit code."""
    try:
        app(args=_with_shared_first(sys.argv[1:]), prog_name="kmsfs")
    except KmsfsError as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _with_shared_first(arguments: list[str]) -> list[str]:
    """Let the shared flags stand anywhere: `kmsfs key list --json` and `kmsfs --json key list` are the same."""
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, rest = arguments[:cut], arguments[cut:]
    else:
        rest = []
    flags = [item for item in arguments if item in ("--json", "--log-json", "--quiet", "--no-autostart")]
    others = [item for item in arguments if item not in flags]
    return [*flags, *others, *rest]
