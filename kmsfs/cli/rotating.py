"""kmsfs secret rotate, rotate-due, and the rotators themselves."""

import time
from typing import Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, call, say, session, show, when
from kmsfs.client.locate import locate
from kmsfs.errors import ExitCode, KmsfsError, UsageError
from kmsfs.rotation.event import event_of_environment
from kmsfs.rotation.rotators import ROTATORS, run_step
from kmsfs.rotation.runner import command_of, run_steps

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or ARN.")]
_STUCK_SECONDS = 86_400.0


def rotate(
    name: Name,
    rotator: Annotated[
        str | None, typer.Option(help="random, postgresql, or a program in /etc/kmsfs/rotators; kept with the secret.")
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="From now on by itself: 30d, 12h, or cron(0 8 1 * ? *). `kmsfs secret rotate-due` runs what is due.")
    ] = None,
    later: Annotated[bool, typer.Option("--later", help="Set the schedule only, rotate when it comes.")] = False,
) -> None:
    """Give a secret a new value, and whoever checks it too: create, set, test, finish."""
    if rotator is not None:
        command_of(rotator)
    request: dict[str, Any] = {"SecretId": name, "RotationLambdaARN": rotator, "RotateImmediately": not later}
    if every is not None:
        request["RotationRules"] = {"ScheduleExpression": _rate(every)}
    waiting = [item for item in call("ListDueRotations")["Rotations"] if name in (item["Name"], item["ARN"])]
    # A rotation that was begun and did not end goes on with its version.
    token = next((item["ClientRequestToken"] for item in waiting if "ClientRequestToken" in item), None)
    answer = call("RotateSecret", **request, ClientRequestToken=token)
    if later:
        told = call("DescribeSecret", SecretId=name)
        show(answer, lambda: say(f"{name} rotates next on {when(told.get('NextRotationDate'))}"))
        return
    run_steps(_rotator_of(name), answer["ARN"], answer["VersionId"], locate(SETTINGS.socket, autostart=SETTINGS.autostart))
    show(answer, lambda: say(f"{name} is rotated: version {answer['VersionId']}"))


def cancel_rotation(name: Name) -> None:
    """Let a secret rotate no more by itself."""
    answer = call("CancelRotateSecret", SecretId=name)
    show(answer, lambda: say(f"{name} rotates no more by itself"))


def rotate_due() -> None:
    """Run every rotation that is due, or was begun and did not end; for a timer. Exit code 31: one failed."""
    socket = locate(SETTINGS.socket, autostart=SETTINGS.autostart)
    done, failed = [], []
    for item in call("ListDueRotations")["Rotations"]:
        try:
            token = item.get("ClientRequestToken") or call("RotateSecret", SecretId=item["ARN"])["VersionId"]
            run_steps(item["RotationLambdaARN"], item["ARN"], token, socket)
            done.append(item["Name"])
        except KmsfsError as error:
            failed.append({"Name": item["Name"], "Problem": error.detail, "PendingSince": item.get("PendingSince")})
    show({"Rotated": done, "Failed": failed}, lambda: _tell(done, failed))
    if failed:
        raise typer.Exit(ExitCode.STORAGE)


def _tell(done: list[str], failed: list[dict[str, Any]]) -> None:
    for name in done:
        say(f"{name} is rotated")
    for item in failed:
        since = item["PendingSince"]
        stuck = since is not None and time.time() - since > _STUCK_SECONDS
        say(f"{item['Name']} is not rotated: {item['Problem']}" + (f"; it is stuck since {when(since)}" if stuck else ""))


def rotator(kind: Annotated[str, typer.Argument(help="random or postgresql.")]) -> None:
    """One step of a rotation, as `kmsfs secret rotate` runs it."""
    if kind not in ROTATORS:
        raise UsageError(f"no rotator {kind!r}", hint=f"one of {', '.join(ROTATORS)}")
    run_step(ROTATORS[kind](), session(), event_of_environment())


def _rotator_of(name: str) -> str:
    found: str | None = call("DescribeSecret", SecretId=name).get("RotationLambdaARN")
    if found is None:
        raise UsageError(f"{name} has no rotator", hint="name one with --rotator")
    return found


def _rate(text: str) -> str:
    if text.startswith("cron("):
        return text
    units = {"d": "days", "h": "hours"}
    if not text[:-1].isdigit() or text[-1:] not in units:
        raise UsageError(f"{text!r} is no interval", hint="30d, 12h, or 'cron(0 8 1 * ? *)'")
    return f"rate({int(text[:-1])} {units[text[-1]]})"
