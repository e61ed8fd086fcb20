"""kmsfs tighten: the least that a key's policy must allow, from the audit log."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.output import call, confirm, say, session, show
from kmsfs.errors import InvariantBroken
from kmsfs.formats.audit import LOG_NAME
from kmsfs.trail.reading import read_records
from kmsfs.trail.tightening import Observed, Use, observe, propose

_DAY_SECONDS = 86_400
_ASKED = ("kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:Sign", "kms:PutKeyPolicy", "kms:CreateGrant", "kms:ScheduleKeyDeletion")
"""Actions whose losers are told."""


def tighten(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN, or alias/NAME.")],
    days: Annotated[int, typer.Option(min=1, help="Look so far back; what was not used since is not allowed.")] = 90,
    log: Annotated[Path | None, typer.Option(help="The log (default: that of the daemon that answers).")] = None,
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Make it the key's policy, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Propose the least policy for a key that allows what the audit log shows. Example: kmsfs tighten alias/app --days 30

    Administrators stay, without the use of the key; what is denied stays denied. The daemon's evaluator checks that every call in the log
    would still be allowed.
    """
    status = call("GetStatus")
    arn = call("DescribeKey", KeyId=key)["KeyMetadata"]["Arn"]
    path = log or Path(status["StateDirectory"]) / "audit" / LOG_NAME
    since = time.time() - days * _DAY_SECONDS
    seen = observe(read_records(path, since), arn, status["Account"], since)
    before = json.loads(call("GetKeyPolicy", KeyId=key)["Policy"])
    policy = propose(before, seen.uses, _who(arn, "kms:PutKeyPolicy"))
    text = json.dumps(policy, indent=1)
    _check(arn, text, seen.uses)
    document = {
        "KeyId": arn, "Days": days, "Policy": policy, "Calls": sum(seen.uses.values()), "Lost": _lost(arn, text),
        "UnusedGrants": _unused_grants(arn, seen),
    }  # fmt: skip
    show(document, lambda: _print(document, text))
    if apply:
        confirm(f"This replaces the policy of {arn}", arn.rpartition("/")[2], yes=yes)
        call("PutKeyPolicy", KeyId=arn, PolicyName="default", Policy=text)
        say("it is the key's policy now")


def _who(arn: str, action: str) -> list[str]:
    found = call("ListAuthorizedPrincipals", KeyId=arn, Action=action)["Principals"]
    return [item["Principal"] for item in found if item["Principal"] != "*" and not item["DecidedBy"].startswith("grant:")]


def _allowed(arn: str, text: str, use: Use) -> bool:
    answer = call(
        "SimulateKeyAccess", KeyId=arn, Principal=use.principal, Action=use.action, AskedContext=dict(use.context),
        ViaService=use.via, Policy=text,
    )  # fmt: skip
    return bool(answer["Allowed"])


def _check(arn: str, text: str, uses: dict[Use, int]) -> None:
    """Ask the evaluator about every call in the log, under the proposal."""
    for use in uses:
        if not _allowed(arn, text, use):
            raise InvariantBroken(f"the proposal would deny {use.action} to {use.principal}, which was used")


def _lost(arn: str, text: str) -> list[dict[str, str]]:
    """Who may do something now, under whatever conditions, and could not at all by the proposal's unconditional statements."""
    return [
        {"Principal": principal, "Action": action}
        for action in _ASKED
        for principal in _who(arn, action)
        if not _allowed(arn, text, Use(principal, action))
    ]


def _unused_grants(arn: str, seen: Observed) -> list[dict[str, Any]]:
    grants = session().pages("ListGrants", "Grants", {"KeyId": arn}, ("Marker", "NextMarker"))
    return [
        {"GrantId": grant["GrantId"], "GranteePrincipal": grant["GranteePrincipal"]}
        for grant in grants
        if grant["GrantId"] not in seen.grants
    ]


def _print(document: dict[str, Any], text: str) -> None:
    print(text)
    say(f"allows what {document['Calls']} calls of the last {document['Days']} days needed; checked by the daemon's evaluator")
    for lost in document["Lost"]:
        say(f"would lose {lost['Action']} (or have it under conditions only): {lost['Principal']}")
    for grant in document["UnusedGrants"]:
        say(f"grant not used: {grant['GrantId']} of {grant['GranteePrincipal']}; kmsfs grant revoke")
