"""kmsfs grant: let somebody use a key for some operations."""

from typing import Annotated

import typer

from kmsfs.cli.key import parse_context
from kmsfs.cli.output import call, facts, pages, say, show, table, when
from kmsfs.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Grants: let somebody use a key for some operations.")
Key = Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN, or alias/NAME.")]


@app.command()
def create(
    key: Key,
    to: Annotated[str, typer.Option("--to", help="Grantee principal: its ARN, uid/1000, gid/100 or unit/app.service.")],
    operation: Annotated[list[str], typer.Option("--operation", help="Decrypt, Encrypt, GenerateDataKey …")],
    retiring: Annotated[str | None, typer.Option(help="Principal that may retire the grant.")] = None,
    name: Annotated[str | None, typer.Option(help="Makes the call idempotent.")] = None,
    context: Annotated[
        list[str] | None, typer.Option("--context", help="NAME=VALUE that calls must carry.")
    ] = None,
    lasts: Annotated[str | None, typer.Option("--for", help="It ends by itself: 30s, 90m, 2h or 7d.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for whoever looks at it later.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Calls must carry this context and nothing else.")
    ] = False,
) -> None:
    """Create a grant. Example: kmsfs grant create alias/a --to uid/1000 --operation Decrypt"""
    constraints = None
    if context:
        constraints = {
            "EncryptionContextEquals" if exact else "EncryptionContextSubset": parse_context(context)
        }
    answer = call(
        "CreateGrant", KeyId=key, GranteePrincipal=principal_arn(to), Operations=operation, Name=name,
        RetiringPrincipal=principal_arn(retiring) if retiring else None, Constraints=constraints,
        ExpiresInSeconds=seconds_of(lasts) if lasts else None, Reason=reason,
    )  # fmt: skip
    show(answer, lambda: facts([("grant id", answer["GrantId"]), ("grant token", answer["GrantToken"])]))


@app.command("list")
def list_grants(key: Key) -> None:
    """List a key's grants."""
    found = pages("ListGrants", "Grants", "Marker", "NextMarker", KeyId=key)
    rows = [
        (g["GrantId"], g["GranteePrincipal"], ", ".join(g["Operations"]), g.get("Name"), when(g.get("ExpirationDate")), g.get("Reason"))
        for g in found
    ]
    show(found, lambda: table(("grant id", "grantee principal", "operations", "name", "ends", "reason"), rows))


@app.command("list-retirable")
def list_retirable(
    principal: Annotated[str | None, typer.Argument(help="By default yourself.")] = None,
) -> None:
    """List the grants that you may retire."""
    who = principal_arn(principal) if principal else call("GetStatus")["Principal"]
    found = pages("ListRetirableGrants", "Grants", "Marker", "NextMarker", RetiringPrincipal=who)
    rows = [(g["GrantId"], g["KeyId"], ", ".join(g["Operations"])) for g in found]
    show(found, lambda: table(("grant id", "key", "operations"), rows))


@app.command()
def retire(
    token: Annotated[str | None, typer.Option(help="Grant token.")] = None,
    key: Annotated[str | None, typer.Option(help="Key, with --grant-id.")] = None,
    grant_id: Annotated[str | None, typer.Option(help="Grant id, with --key.")] = None,
) -> None:
    """End a grant as its retiring principal or grantee."""
    call("RetireGrant", GrantToken=token, KeyId=key, GrantId=grant_id)
    show({}, lambda: say("retired"))


@app.command()
def revoke(key: Key, grant_id: Annotated[str, typer.Argument(help="Grant id.")]) -> None:
    """End a grant as the key's administrator; it takes effect at once."""
    call("RevokeGrant", KeyId=key, GrantId=grant_id)
    show({}, lambda: say("revoked"))


def principal_arn(text: str) -> str:
    """Return the ARN of uid/NUMBER, gid/NUMBER, user/NAME, role/NAME or unit/NAME of this account; an ARN stays."""
    if text.startswith(("uid/", "gid/", "user/", "role/", "unit/")):
        return f"arn:kmsfs:iam::{call('GetStatus')['Account']}:{text}"
    return text


def seconds_of(text: str) -> int:
    """Return the seconds of 30s, 90m, 2h or 7d.

    Raises:
        UsageError: if it is none of them.
    """
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
    if not text[:-1].isdigit() or text[-1:] not in units:
        raise UsageError(f"{text!r} is no time", hint="30s, 90m, 2h or 7d")
    return int(text[:-1]) * units[text[-1]]
