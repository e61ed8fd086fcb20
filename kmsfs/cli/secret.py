"""kmsfs secret: secrets with versions and stages, in the manner of Secrets Manager."""

import sys
from typing import Annotated, Any

import typer

from kmsfs.cli import rotating
from kmsfs.cli.output import call, confirm, facts, pages, read_value, say, show, table, when
from kmsfs.errors import SecretNotFound, UsageError

app = typer.Typer(no_args_is_help=True, help="Secrets with versions and stages.")
app.command()(rotating.rotate)
app.command("cancel-rotation")(rotating.cancel_rotation)
app.command("rotate-due")(rotating.rotate_due)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or ARN.")]


@app.command()
def put(
    name: Name,
    value_file: Annotated[
        str, typer.Option("--value-file", help="File with the value, `-` for standard input.")
    ],
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    key: Annotated[str | None, typer.Option(help="KMS key that seals it.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Stage of the new version; AWSCURRENT if none.")
    ] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Keep bytes instead of text.")] = False,
    strip: Annotated[bool, typer.Option(help="Drop one line break at the end of a text.")] = True,
) -> None:
    """Store a secret or a new version of one. Example: pwgen | kmsfs secret put app/db --value-file -"""
    value: dict[str, Any] = {"SecretBinary": read_value(value_file)}
    if not binary:
        try:
            text = value.pop("SecretBinary").decode()
        except UnicodeDecodeError as error:
            raise UsageError("the value is not UTF-8 text", hint="pass --binary") from error
        value["SecretString"] = text[:-1] if strip and text.endswith("\n") else text
    try:
        if description is not None or key is not None:
            call("UpdateSecret", SecretId=name, Description=description, KmsKeyId=key)
        answer = call("PutSecretValue", SecretId=name, VersionStages=stage or None, **value)
    except SecretNotFound:
        if stage:
            raise
        answer = call("CreateSecret", Name=name, Description=description, KmsKeyId=key, **value)
    show(answer, lambda: say(f"{answer['Name']} version {answer['VersionId']}"))


@app.command()
def get(
    name: Name,
    version: Annotated[str | None, typer.Option(help="Version id.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage, AWSCURRENT if none is named.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the bare value.")] = False,
) -> None:
    """Read a secret. Example: kmsfs secret get app/db --raw"""
    found = call("GetSecretValue", SecretId=name, VersionId=version, VersionStage=stage)
    value = found.get("SecretBinary", found.get("SecretString"))
    if raw:
        data = value if isinstance(value, bytes) else value.encode()
        sys.stdout.buffer.write(data + (b"\n" if sys.stdout.isatty() else b""))
        return
    pairs = [
        ("name", found["Name"]), ("version", found["VersionId"]), ("stages", ", ".join(found["VersionStages"])),
        ("made", when(found["CreatedDate"])), ("value", value),
    ]  # fmt: skip
    show(found, lambda: facts(pairs))


@app.command()
def describe(name: Name) -> None:
    """Tell of a secret without its value."""
    found = call("DescribeSecret", SecretId=name)
    stages = [
        f"{version}: {', '.join(names)}" for version, names in found.get("VersionIdsToStages", {}).items()
    ]
    pairs = [
        ("name", found["Name"]), ("arn", found["ARN"]), ("description", found.get("Description")),
        ("key", found.get("KmsKeyId")), ("made", when(found["CreatedDate"])),
        ("changed", when(found.get("LastChangedDate"))), ("marked for deletion", when(found.get("DeletedDate"))),
        *(("version", stage) for stage in stages),
        *(("tag", f"{tag['Key']}={tag.get('Value', '')}") for tag in found.get("Tags", [])),
    ]  # fmt: skip
    show(found, lambda: facts(pairs))


@app.command("list")
def list_secrets(
    deleted: Annotated[bool, typer.Option("--deleted", help="Those marked for deletion too.")] = False,
) -> None:
    """List secrets, without values."""
    found = pages(
        "ListSecrets", "SecretList", "NextToken", "NextToken", IncludePlannedDeletion=deleted, SortBy="name",
        SortOrder="asc",
    )  # fmt: skip
    rows = [
        (s["Name"], when(s.get("LastChangedDate")), s.get("Description"), when(s.get("DeletedDate")))
        for s in found
    ]
    show(found, lambda: table(("name", "changed", "description", "marked for deletion"), rows))


@app.command()
def versions(name: Name) -> None:
    """List all kept versions of a secret."""
    found = pages(
        "ListSecretVersionIds", "Versions", "NextToken", "NextToken", SecretId=name, IncludeDeprecated=True
    )
    rows = [(v["VersionId"], ", ".join(v.get("VersionStages", [])), when(v["CreatedDate"])) for v in found]
    show(found, lambda: table(("version", "stages", "made"), rows))


@app.command()
def stage(
    name: Name,
    label: Annotated[str, typer.Argument(help="The stage to move.")],
    to: Annotated[str | None, typer.Option(help="Version id that gets it; none: it is taken away.")] = None,
) -> None:
    """Move a stage to another version: `kmsfs secret stage app/db AWSCURRENT --to VERSION` rolls back."""
    held = call("DescribeSecret", SecretId=name).get("VersionIdsToStages", {})
    holder = next((version for version, stages in held.items() if label in stages), None)
    answer = call(
        "UpdateSecretVersionStage", SecretId=name, VersionStage=label, RemoveFromVersionId=holder, MoveToVersionId=to
    )  # fmt: skip
    show(answer, lambda: say(f"{label} of {name} is at {to or 'no version'}"))


@app.command()
def delete(
    name: Name,
    days: Annotated[int, typer.Option(min=7, max=30, help="Days in which it can be restored.")] = 30,
    now: Annotated[bool, typer.Option("--now", help="At once and for ever.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Mark a secret for deletion, or delete it at once."""
    if now:
        call("DescribeSecret", SecretId=name)
        confirm(f"{name} and all its versions will be gone for ever", name, yes=yes)
        answer = call("DeleteSecret", SecretId=name, ForceDeleteWithoutRecovery=True)
        show(answer, lambda: say(f"{name} is gone"))
        return
    confirm(f"{name} cannot be read any more, and is gone after {days} days", name, yes=yes)
    answer = call("DeleteSecret", SecretId=name, RecoveryWindowInDays=days)
    show(
        answer,
        lambda: say(f"{name} goes on {when(answer['DeletionDate'])}; until then: kmsfs secret restore"),
    )


@app.command()
def restore(name: Name) -> None:
    """Keep a secret that was marked for deletion."""
    answer = call("RestoreSecret", SecretId=name)
    show(answer, lambda: say(f"{name} is kept"))


@app.command()
def password(
    length: Annotated[int, typer.Option(min=1, max=4096, help="Characters.")] = 32,
    no_punctuation: Annotated[
        bool, typer.Option("--no-punctuation", help="Letters and digits only.")
    ] = False,
    exclude: Annotated[str | None, typer.Option(help="Characters that it shall not have.")] = None,
) -> None:
    """Print a random password. Example: kmsfs secret password | kmsfs secret put app/db --value-file -"""
    made = call(
        "GetRandomPassword", PasswordLength=length, ExcludePunctuation=no_punctuation, ExcludeCharacters=exclude
    )  # fmt: skip
    show(made, lambda: print(made["RandomPassword"]))
