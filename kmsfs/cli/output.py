"""How commands print: data on stdout, everything else on stderr; tables for people, JSON for programs."""

import base64
import contextlib
import datetime
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmsfs.client.session import ClientSession
from kmsfs.errors import KmsfsError

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@dataclass(slots=True)
class Settings:
    """Options that every command shares."""

    as_json: bool = False
    log_json: bool = False
    quiet: bool = False
    socket: str | None = None
    autostart: bool = True


SETTINGS = Settings()
_TELL_SECONDS = 0.5


def session() -> ClientSession:
    """Return a session with the chosen daemon."""
    return ClientSession(socket=SETTINGS.socket, autostart=SETTINGS.autostart)


def call(operation: str, **parameters: Any) -> Any:
    """Run one operation; None parameters are left out.

    Raises:
        KmsfsError: the operation's error.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    return session().call(operation, given)


def pages(operation: str, field: str, marker_in: str, marker_out: str, **parameters: Any) -> list[Any]:
    """Run a paged operation to its end and return all entries of `field`.

    Raises:
        KmsfsError: the operation's error.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    return session().pages(operation, field, given, (marker_in, marker_out))


def show(document: Any, human: Callable[[], None]) -> None:
    """Print `document` as JSON if asked, else let `human` print."""
    if SETTINGS.as_json:
        print(json.dumps(plain(document), indent=1, sort_keys=True))
    else:
        human()


def plain(value: Any) -> Any:
    """Return a value that JSON can carry: bytes become base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table that fits the terminal."""
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, soft_wrap=False).print(made)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line."""
    listed = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def when(seconds: float | None) -> str | None:
    """Return a point in time as ISO text in UTC."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def say(text: str) -> None:
    """Print a message on stderr."""
    if SETTINGS.quiet:
        return
    if SETTINGS.log_json:
        log_message(text)
    else:
        print(f"kmsfs: {text}", file=sys.stderr)


def log_message(text: str) -> None:
    """Print a message on stderr as a program reads it."""
    _log("message", message=text)


def _log(kind: str, **fields: Any) -> None:
    """Print one event on stderr: docs/develop/cli-abi.md has their fields."""
    print(json.dumps({"type": kind, "time": round(time.time(), 3), **fields}), file=sys.stderr, flush=True)


def fail(error: KmsfsError) -> int:
    """Print an error and its hint; return the exit code."""
    text = error.detail or type(error).__name__
    code = getattr(error, "wire_code", error.code)
    if SETTINGS.log_json:
        _log("error", code=code, message=text, hint=error.hint, exit_code=int(error.exit_code))
    elif SETTINGS.as_json:
        print(json.dumps({"error": {"code": code, "message": text, "hint": error.hint}}), file=sys.stderr)
    else:
        print(f"kmsfs: {text}", file=sys.stderr)
        if error.hint:
            print(f"kmsfs: hint: {error.hint}", file=sys.stderr)
    return int(error.exit_code)


def confirm(what: str, name: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone: the name must be typed, or --yes given.

    Raises:
        UsageError: if it is not confirmed.
    """
    from kmsfs.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"this needs your confirmation: {what[:1].lower()}{what[1:]}", hint="pass --yes")
    print(f"{what}. Type {name} to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != name:
        raise UsageError("not confirmed, nothing was done")


def read_value(source: str) -> bytes:
    """Return the bytes of a file, or of standard input for `-`: secrets do not go on the command line.

    Raises:
        UsageError: if it cannot be read.
    """
    from kmsfs.errors import UsageError

    try:
        if source == "-":
            return sys.stdin.buffer.read()
        with open(source, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error


def read_text_value(source: str) -> str:
    """Return the text of a file, or of standard input for `-`, its line ends as they are.

    Raises:
        UsageError: if it cannot be read, or is not UTF-8.
    """
    from kmsfs.errors import UsageError

    try:
        return read_value(source).decode()
    except UnicodeDecodeError as error:
        what = "standard input" if source == "-" else source
        raise UsageError(f"{what} is not UTF-8 text") from error


def stored_bytes(folder: Path) -> int:
    """Return how many bytes lie in the regular files of a folder and below."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


@contextlib.contextmanager
def byte_progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left on stderr, if that is a terminal, or events for programs; yields what to call with bytes done."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _progress(text, total, "bytes", (DownloadColumn(), TransferSpeedColumn())) as advance:
        yield advance


@contextlib.contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """As `byte_progress`, for things that are counted; `text` says what they are."""
    from rich.progress import MofNCompleteColumn

    with _progress(text, total, text, (MofNCompleteColumn(),)) as advance:
        yield advance


@contextlib.contextmanager
def _progress(text: str, total: int, unit: str, columns: "Sequence[ProgressColumn]") -> Iterator[Callable[[int], None]]:
    if SETTINGS.log_json:
        with _logged_progress(text, total, unit) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=SETTINGS.quiet)
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, advance=done)


@contextlib.contextmanager
def _logged_progress(text: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Log how far something is: at its beginning, at most twice a second, and at its end, whichever that is."""
    operation_id = uuid.uuid4().hex[:12]
    current = 0
    told = 0.0

    def tell(*, finished: bool) -> None:
        nonlocal told
        told = time.monotonic()
        _log("progress", id=operation_id, operation=text, current=current, total=total, unit=unit, finished=finished)

    def advance(done: int) -> None:
        nonlocal current
        current += done
        if time.monotonic() - told >= _TELL_SECONDS:
            tell(finished=False)

    tell(finished=False)
    try:
        yield advance
    finally:
        tell(finished=True)
