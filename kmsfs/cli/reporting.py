"""kmsfs report: keys, who can use them, rotation, volumes and the audit log over time, as one page."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.output import call, counting, say, session, show
from kmsfs.errors import StorageError, UsageError
from kmsfs.loopback import parse_endpoint

_REFRESH_SECONDS = 60


def report(
    destination: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="An HTML file that is not there yet, or - for standard output.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, help="How far back the audit log is looked at.")] = 7.0,
    log: Annotated[Path | None, typer.Option(help="The audit log (default: that of the daemon that answers).")] = None,
    serve: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Serve the page on loopback instead, until you end it; port 0 takes a free one.")
    ] = None,
) -> None:
    """Write a report as one self-contained HTML file: keys, who may use them, rotation, volumes, calls over time. Example: kmsfs report keys.html

    You see what you may see; whoever administers the daemon sees everything. With --json, the same as a document.
    """
    if (destination is None) == (serve is None):
        raise UsageError("a report goes into a FILE, or onto a page with --serve", hint="kmsfs report keys.html, or kmsfs report --serve 127.0.0.1:8600")
    if serve is not None:
        _serve(serve, days, log)
        return
    made = _make(days, log, shown=True)
    show(made, lambda: _write(destination or Path("-"), _page(made)))


def _make(days: float, log: Path | None, *, shown: bool) -> dict[str, Any]:
    from kmsfs.mount.mounttable import mounted_volumes
    from kmsfs.report.collect import collect

    quiet: Callable[[int], None] = lambda _done: None  # noqa: E731
    with counting("keys", call("GetStatus")["Keys"] if shown else 0) as advance:
        made = collect(session(), log, time.time(), days, advance if shown else quiet)
    made["mounts"] = [{"point": each.point, "source": each.source, "uid": each.uid} for each in mounted_volumes()]
    return made


def _page(made: dict[str, Any], refresh_seconds: int = 0) -> str:
    from kmsfs.report.page import render_page

    return render_page(made, refresh_seconds=refresh_seconds)


def _write(destination: Path, text: str) -> None:
    if str(destination) == "-":
        sys.stdout.write(text)
        return
    try:
        # It says who may use what: nobody else's business.
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {destination}: {error.strerror}") from error
    say(f"wrote {destination}; open it in a browser")


def _serve(address: str, days: float, log: Path | None) -> None:
    from kmsfs.report.serving import ReportPage, serve_page

    host, port = parse_endpoint(address)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Before the address is printed: whoever reads it may come at once.
        listener.listen()
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    port = listener.getsockname()[1]
    page = ReportPage(lambda: _page(_make(days, log, shown=False), _REFRESH_SECONDS), port)
    shown = f"[{host}]" if ":" in host else host
    say("a read-only page; whoever has this address sees what you see. End it with Ctrl-C.")
    print(f"http://{shown}:{port}/?key={page.key}", flush=True)
    serve_page(page, listener)
