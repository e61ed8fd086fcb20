"""kmsfs audit: tail, query, export, verify."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, call, read_text_value, say, show, table
from kmsfs.errors import ExitCode, StorageError, UsageError
from kmsfs.formats.audit import LOG_NAME
from kmsfs.trail.cloudtrail import cloudtrail_event
from kmsfs.trail.reading import follow_records, last_records, principal_of, read_records
from kmsfs.trail.tables import TrailTable, time_of

if TYPE_CHECKING:
    from kmsfs.alarms.rules import Rule
    from kmsfs.alarms.watching import Alarm

app = typer.Typer(no_args_is_help=True, help="The audit log: every call, who made it, and what decided.")
_DAY_SECONDS = 86_400
_NAME_CHARS, _GROUP_CHARS, _RECORD_CHARS = 128, 256, 32_768
Days = Annotated[float | None, typer.Option(min=0, help="Only records of the last so many days (default: all that are kept).")]
Log = Annotated[Path | None, typer.Option(help="The log (default: that of the daemon that answers).")]


@app.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print what comes, until you end it.")] = False,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    log: Log = None,
) -> None:
    """Print the last calls, one a line. Example: kmsfs audit tail -f --denied"""
    path, account = _place(log)
    for record in last_records(path, lines):
        _print(record, account, denied=denied)
    if follow:
        for record in follow_records(path):
            _print(record, account, denied=denied)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT from `records`.")],
    days: Days = None,
    log: Log = None,
) -> None:
    """Ask the log in SQL. Example: kmsfs audit query "SELECT principal, count(*) FROM records WHERE error LIKE 'Access%' GROUP BY 1"

    Columns: seq, time, ts, request, principal, uid, gid, pid, access_key, service, operation, key, context, params, result, error,
    decided_by, reason, for_uid. SQLite's functions are there, those for JSON too.
    """
    path, account = _place(log)
    names, rows = TrailTable(read_records(path, _since(days)), account).ask(sql)
    show([dict(zip(names, row, strict=True)) for row in rows], lambda: table(names, rows))


@app.command()
def export(
    destination: Annotated[Path, typer.Argument(metavar="FILE", help="A file that is not there yet, or - for standard output.")],
    region: Annotated[str, typer.Option(help="The region to put into each event.")] = "us-east-1",
    days: Days = None,
    log: Log = None,
) -> None:
    """Write the log as CloudTrail delivers it: one JSON object with `Records`."""
    path, account = _place(log)
    events = [cloudtrail_event(record, account, region) for record in read_records(path, _since(days))]
    text = json.dumps({"Records": events})
    if str(destination) == "-":
        print(text)
        return
    try:
        with destination.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {destination}: {error.strerror}") from error
    say(f"{len(events)} events in {destination}")


@app.command()
def verify(
    digest_key: Annotated[
        str | None, typer.Option(help="Public key of the digests, hex, as you keep it (default: the daemon's, or theirs).")
    ] = None,
    log: Log = None,
    witness: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the daemon's messages went, such as its journal; - for standard input.")
    ] = None,
) -> None:
    """Follow the log's chain and its signed digests; needs no secret. Names the first record or digest that is wrong or missing."""
    from kmsfs.formats.digest import parse_witness
    from kmsfs.trail.verify import verify_trail

    if log is None:
        status = call("GetStatus")
        log = Path(status["StateDirectory"]) / "audit" / LOG_NAME
        digest_key = digest_key or status["AuditDigestKey"]
    found = verify_trail(log, digest_key, parse_witness(read_text_value(os.fspath(witness))) if witness is not None else None)
    document = found.document()
    show(document, lambda: _print_verified(document))


@app.command()
def watch(
    rules: Annotated[
        Path | None, typer.Option(help="File of alarms, TOML (default: denials, keys in their deletion window, first uses, gaps, no digest).")
    ] = None,
    log: Log = None,
    *,
    past: Annotated[bool, typer.Option("--past", help="Look at what is in the log, do nothing, and end.")] = False,
) -> None:
    """Raise alarms as the log grows, until you end it: a line each, and what the rules ask for. Example: kmsfs audit watch --rules /etc/kmsd/alarms.toml

    With `--past` the exit code is 23 if there were any.
    """
    from kmsfs.alarms.actions import Doer
    from kmsfs.alarms.following import past_alarms, watch_log
    from kmsfs.alarms.rules import DEFAULT_RULES
    from kmsfs.alarms.watching import Watching

    chosen = _rules(rules) if rules is not None else DEFAULT_RULES
    path, account = _place(log)
    watching = Watching(chosen, account)
    if past:
        found = list(past_alarms(watching, path))
        for alarm in found:
            _print_alarm(alarm)
        raise typer.Exit(ExitCode.WARNINGS_FOUND if found else ExitCode.OK)
    say(f"watching {path} for {len(chosen)} alarms")
    doer = Doer(_publish)
    try:
        for alarm in watch_log(watching, path, time.time):
            _print_alarm(alarm)
            doer.take(alarm)
    except KeyboardInterrupt:
        doer.close()


def _publish(alarm: "Alarm") -> None:
    call(
        "RaiseAlarm", AlarmName=alarm.name[:_NAME_CHARS], About=alarm.kind.value, Group=alarm.group[:_GROUP_CHARS],
        Count=alarm.count, Record=json.dumps(alarm.record)[:_RECORD_CHARS],
    )  # fmt: skip


def _rules(path: Path) -> "tuple[Rule, ...]":
    from kmsfs.alarms.rules import parse_rules

    try:
        return parse_rules(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the rules {path}: {error}") from error


def _print_alarm(alarm: "Alarm") -> None:
    if SETTINGS.as_json:
        print(json.dumps(alarm.document()), flush=True)
        return
    record = alarm.record
    about = record.get("why") or f"{record.get('op', '')} {record.get('err', '')}".strip()
    of = alarm.group or str(record.get("key", "")).rpartition("/")[2]
    print(f"{time_of({'ts': alarm.time})}  {alarm.name}  {alarm.count}  {of}  {about}".rstrip(), flush=True)


def _print_verified(document: dict[str, Any]) -> None:
    if not document["digests"]:
        say(f"{document['records']} records, chain unbroken; no digest was signed yet")
        return
    until = time_of({"ts": document["signed_until"]})
    print(
        f"{document['records']} records, chain unbroken; {document['signed_records']} signed by {document['digests']} digests, "
        f"the last at {until}, under {document['key']}"
        + (f"; a witness confirms {document['witnessed']}" if document["witnessed"] else "")
        + (f"; the first {document['removed_records']} were removed, as the log says" if document["removed_records"] else "")
    )


def _since(days: float | None) -> float:
    return time.time() - days * _DAY_SECONDS if days is not None else 0.0


def _place(log: Path | None) -> tuple[Path, str]:
    status = call("GetStatus")
    return log or Path(status["StateDirectory"]) / "audit" / LOG_NAME, status["Account"]


def _print(record: dict[str, Any], account: str, *, denied: bool) -> None:
    if denied and not str(record.get("err", "")).startswith("AccessDenied"):
        return
    if SETTINGS.as_json:
        print(json.dumps(record, sort_keys=True), flush=True)
        return
    who = principal_of(record, account).rpartition(":")[2]
    what = record["op"] + (f" via {record['svc']}" if record.get("svc") else "")
    on = str(record.get("key", "")).rpartition("/")[2]
    outcome = record.get("err") or "ok"
    words = (time_of(record), f"{who:<12}", f"{what:<28}", f"{outcome:<24}", record.get("by", ""), on)
    print("  ".join(str(word) for word in words).rstrip(), flush=True)
