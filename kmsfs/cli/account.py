"""kmsfs account: the accounts of a realm, and who of the machine's users belongs to which."""

import pwd
from typing import Annotated, Any

import typer

from kmsfs.api.shapes.accounts import ACCESS_ROLE
from kmsfs.cli.output import call, confirm, pages, say, show, table, when
from kmsfs.errors import AccountConstraint, AccountNotFound, UsageError

app = typer.Typer(no_args_is_help=True, help="Accounts of this realm: each has users, keys, parameters and secrets of its own.")
Named = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id (twelve digits) or its name.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    email: Annotated[str | None, typer.Option(help="Of whoever answers for it; NAME@kmsfs.local if not given.")] = None,
    account_id: Annotated[str | None, typer.Option("--id", help="Twelve digits; at random if not given.")] = None,
    role: Annotated[str, typer.Option(help="The role that is made in it, for the managing account.")] = ACCESS_ROLE,
) -> None:
    """Make an account. Example: kmsfs account create staging, and then eval "$(kmsfs aws env --account staging)"."""
    made = call(
        "CreateAccount", AccountName=name, Email=email or f"{_mailbox(name)}@kmsfs.local", RoleName=role, AccountId=account_id
    )["CreateAccountStatus"]
    if made["State"] != "SUCCEEDED":
        raise AccountConstraint(f"no account was made: {made['FailureReason']}", hint="give another --email")
    show(made, lambda: print(made["AccountId"]))


@app.command("list")
def list_accounts() -> None:
    """List accounts."""
    found = _all()
    rows = [
        (each["Id"], each["Name"], each["Status"].lower(), ", ".join(_user(uid) for uid in each.get("LocalUsers", [])),
         when(each["JoinedTimestamp"]))
        for each in found
    ]  # fmt: skip
    show(found, lambda: table(("id", "name", "status", "local users", "since"), rows))


@app.command()
def close(account: Named, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Close an account: its users are refused and its keys open nothing. Nothing is removed; see reopen."""
    found = find_account(account)
    confirm(f"Everything under the keys of {found['Name']} ({found['Id']}) is unreadable until it is opened again", account, yes=yes)
    call("CloseAccount", AccountId=found["Id"])
    show({}, lambda: say(f"closed {found['Name']} ({found['Id']})"))


@app.command()
def reopen(account: Named) -> None:
    """Let a closed account work again."""
    found = find_account(account)
    call("ReopenAccount", AccountId=found["Id"])
    show({}, lambda: say(f"{found['Name']} ({found['Id']}) is open"))


@app.command()
def assign(
    user: Annotated[str, typer.Argument(metavar="USER", help="Name or uid of a user of this machine.")], account: Named
) -> None:
    """Let a local user belong to an account: his calls over the socket are that account's. What he has stays where it is."""
    found = find_account(account)
    call("AssignLocalUser", Uid=_uid(user), AccountId=found["Id"])
    show({}, lambda: say(f"{user} belongs to {found['Name']} ({found['Id']})"))


def find_account(text: str) -> dict[str, Any]:
    """Return the account of an id or a name.

    Raises:
        AccountNotFound: if there is none.
        UsageError: if several have the name.
    """
    named = [each for each in _all() if text in (each["Id"], each["Name"])]
    if not named:
        raise AccountNotFound(f"there is no account {text}", hint="kmsfs account list")
    if len(named) > 1:
        raise UsageError(f"{len(named)} accounts are called {text}", hint="name it by its id: kmsfs account list")
    return named[0]


def _all() -> list[dict[str, Any]]:
    return pages("ListAccounts", "Accounts", "NextToken", "NextToken")


def _mailbox(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _uid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError as error:
        raise UsageError(f"this machine has no user {text!r}", hint="name or uid: getent passwd") from error


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
