"""kmsfs events: changes as they happen."""

import json
from typing import Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, say, session
from kmsfs.trail.tables import time_of


def events(
    path: Annotated[str | None, typer.Option(help="Of parameters, only those below this path.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="kms, secretsmanager, ssm or alarms; can be given again (default: all but alarms).")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="First what happened since the event with this token.")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many events (0: never).")] = 0,
) -> None:
    """Print changes of parameters, secrets and keys, or alarms, as they happen. Example: kmsfs events --source ssm --path /app

    A line is time, source, operation, name, token. `reset` instead of an operation says that events may have been missed: read again
    what you hold.
    """
    from kmsfs.client.changes import ChangeStream, following

    stream = ChangeStream(session(), sources=source, path=path, after=after)
    left = count
    try:
        for event in following(stream):
            _print(event)
            left -= 1
            if not left:
                return
    except KeyboardInterrupt:
        say(f"to go on from here: kmsfs events --after {stream.token}")
    finally:
        stream.close()


def _print(event: dict[str, Any]) -> None:
    if SETTINGS.as_json:
        print(json.dumps(event), flush=True)
    elif event["kind"] == "change":
        when = time_of({"ts": event["time"]})
        name = event["name"]
        if "detail" in event:
            name = f"{name}  {event['detail']['count']}  {event['detail']['group'] or '-'}"
        print(f"{when}  {event['source']:<14}  {event['operation']:<22}  {name}  {event['token']}", flush=True)
    else:
        print(event["kind"], flush=True)
