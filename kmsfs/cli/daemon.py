"""kmsfs daemon: the private key daemon of this user, and how the daemon in use is."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, call, facts, say, show
from kmsfs.client.locate import answers, locate, private_daemon, start_private, stop
from kmsfs.errors import DaemonUnreachable

app = typer.Typer(no_args_is_help=True, help="The key daemon.")


@app.command()
def start(
    aws_endpoint: Annotated[
        str | None,
        typer.Option(help="Serve AWS's clients too, on this loopback address, such as 127.0.0.1:4599."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Serve Prometheus's metrics on this loopback address, such as 127.0.0.1:9464.")
    ] = None,
) -> None:
    """Start this user's private key daemon, making its key store on first use."""
    place = private_daemon()
    if aws_endpoint:
        os.environ["KMSD_AWS_ENDPOINT"] = aws_endpoint
    if metrics:
        os.environ["KMSD_METRICS"] = metrics
    if answers(place.socket):
        say(f"already running on {place.socket}")
        return
    start_private(place)


@app.command("stop")
def stop_daemon() -> None:
    """Stop this user's private key daemon. Mounts lose their keys within ten seconds."""
    place = private_daemon()
    if not answers(place.socket):
        raise DaemonUnreachable("no private key daemon is running")
    SETTINGS.socket = os.fspath(place.socket)
    stop(call("GetSealStatus")["Pid"], place.socket)
    say("stopped")


@app.command()
def metrics() -> None:
    """Print what the daemon counts of itself, in Prometheus's text. Example: kmsfs daemon metrics > /var/lib/node-exporter/kmsd.prom"""
    found = call("GetMetrics")
    show(found, lambda: print(found["Text"], end=""))


@app.command()
def status() -> None:
    """Tell which daemon answers and how it sees you."""
    where = locate(SETTINGS.socket, autostart=False)
    SETTINGS.socket = where
    sealed = {**call("GetSealStatus"), "Socket": where}
    if sealed["Sealed"]:
        _show_sealed(sealed)
        return
    found = {**call("GetStatus"), "Sealed": False, "Socket": where}
    pairs = [
        ("socket", where),
        ("pid", found["Pid"]),
        ("version", found["Version"]),
        ("account", found["Account"]),
        ("you are", found["Principal"]),
        ("state", Path(found["StateDirectory"])),
        ("root key", found["RootKeySource"]),
        ("keys", found["Keys"]),
        ("AWS endpoint", found.get("AwsEndpoint", "none")),
        ("up for", f"{found['UptimeSeconds']:.0f} s"),
    ]
    show(found, lambda: facts(pairs))


def _show_sealed(found: dict[str, Any]) -> None:
    given = ""
    if "SharesNeeded" in found:
        given = f"; {found['SharesGiven']} of {found['SharesNeeded']} shares are given"
    pairs = [
        ("socket", found["Socket"]),
        ("pid", found["Pid"]),
        ("root key", found["RootKeySource"]),
        ("state", f"sealed{given}: `kmsd unseal --socket {found['Socket']}`"),
    ]
    show(found, lambda: facts(pairs))
