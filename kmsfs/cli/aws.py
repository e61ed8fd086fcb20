"""kmsfs aws: what AWS's own clients need to work against the daemon's HTTP door."""

import datetime
import json
import os
import shlex
from typing import Annotated, Any

import typer

from kmsfs.api.shapes.accounts import ACCESS_ROLE
from kmsfs.cli.account import find_account
from kmsfs.cli.output import SETTINGS, call, read_text_value, say
from kmsfs.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="AWS's own clients against the key daemon.")
Seconds = Annotated[
    int, typer.Option("--seconds", min=900, max=129_600, help="How long the credentials work: 12 hours for `env`, one for the rest, if not given.")
]
Role = Annotated[
    str | None, typer.Option(help="Credentials of a role that you may assume: its name, or its ARN if it is of another account.")
]
Account = Annotated[
    str | None, typer.Option(help="Credentials in this account, by the role that was made with it; id or name.")
]
_ROLE_SECONDS = 3_600
_SERVICES = ("KMS", "SSM", "SECRETS_MANAGER", "STS", "IAM", "ORGANIZATIONS")


@app.command()
def env(
    seconds: Seconds | None = None,
    role: Role = None,
    account: Account = None,
    container: Annotated[
        bool, typer.Option("--container", help="No credentials, but where SDKs get them, and get new ones before they end.")
    ] = False,
    region: Annotated[
        str | None, typer.Option(help="A region; by default the one that shows what the socket keeps.")
    ] = None,
) -> None:
    """Print variables for a shell. Example: eval "$(kmsfs aws env)"; aws kms list-keys"""
    endpoint, home = _endpoint()
    region = region or home
    if container and (seconds or role or account):
        raise UsageError("--container gives your own credentials, of an hour", hint="roles: a profile with role_arn and credential_source = EcsContainer")
    variables = {
        **(_of_container(endpoint) if container else _of_session(_credentials(seconds, role, account, by_default=43_200))),
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        **{f"AWS_ENDPOINT_URL_{service}": endpoint for service in _SERVICES},
    }
    if SETTINGS.as_json:
        print(json.dumps(variables, indent=1, sort_keys=True))
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def credentials(seconds: Seconds | None = None, role: Role = None, account: Account = None) -> None:
    """Print credentials as `credential_process` of AWS's configuration wants them; SDKs then renew them themselves."""
    made = _credentials(seconds, role, account, by_default=3_600)
    expiration = datetime.datetime.fromtimestamp(made["Expiration"], datetime.UTC).isoformat(
        timespec="seconds"
    )
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    print(json.dumps({"Version": 1, **{name: made[name] for name in names}, "Expiration": expiration}))


@app.command("put-access-key")
def put_access_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The access key id that the tool uses.")],
    secret_file: Annotated[
        str, typer.Option("--secret-file", help="File with the secret access key, `-` for standard input.")
    ],
    user: Annotated[
        str | None, typer.Option(help="IAM user for whom it stands; the account root if none.")
    ] = None,
) -> None:
    """Let credentials that a tool has already stand for a user, or for the account root. Administrators only."""
    secret = read_text_value(secret_file).strip()
    call("PutAccessKey", AccessKeyId=key_id, SecretAccessKey=secret, UserName=user)
    say(f"{key_id} stands for {user or 'the account root'}")


def _of_container(endpoint: str) -> dict[str, str]:
    return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{endpoint}/credentials"}


def _of_session(made: dict[str, Any]) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        "AWS_SESSION_TOKEN": made["SessionToken"],
    }  # fmt: skip


def _credentials(seconds: int | None, role: str | None, account: str | None, *, by_default: int) -> dict[str, Any]:
    made: dict[str, Any]
    if role is None and account is None:
        made = call("GetSessionToken", DurationSeconds=seconds or by_default)["Credentials"]
        return made
    arn = role or ACCESS_ROLE
    if not arn.startswith("arn:"):
        account_id = find_account(account)["Id"] if account is not None else call("GetStatus")["Account"]
        arn = f"arn:kmsfs:iam::{account_id}:role/{arn}"
    made = call("AssumeRole", RoleArn=arn, RoleSessionName=_session_name(), DurationSeconds=seconds or _ROLE_SECONDS)["Credentials"]
    return made


def _session_name() -> str:
    """Whoever reads the audit log sees who it was."""
    return f"uid-{os.getuid()}"


def _endpoint() -> tuple[str, str]:
    """Return the door's URL and home region."""
    status = call("GetStatus")
    endpoint: str | None = status.get("AwsEndpoint")
    if not endpoint:
        raise UsageError(
            "the key daemon serves no AWS endpoint", hint="kmsfs daemon start --aws-endpoint 127.0.0.1:4599"
        )
    return endpoint, status["HomeRegion"]
