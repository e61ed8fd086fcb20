"""kmsfs why, who-can, simulate: who may do what with a key, and why not."""

from typing import Annotated, Any

import typer

from kmsfs.cli.grant import principal_arn
from kmsfs.cli.key import parse_context
from kmsfs.cli.output import call, facts, show, table, when
from kmsfs.errors import ExitCode

Action = Annotated[str, typer.Argument(metavar="ACTION", help="kms:Decrypt, or just Decrypt.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN, or alias/NAME.")]
Context = Annotated[
    list[str] | None, typer.Option("--context", help="NAME=VALUE of the encryption context, any number of times.")
]
Via = Annotated[str | None, typer.Option("--via", help="The service that asks, such as ssm.")]


def why(decision_id: Annotated[str, typer.Argument(metavar="ID", help="From the hint of the denial.")]) -> None:
    """Tell why a call was denied: every statement and grant, and what each is not about."""
    answer = call("ExplainDecision", DecisionId=decision_id)
    show(answer, lambda: _print(answer))


def who_can(action: Action, key: Key, context: Context = None, via: Via = None) -> None:
    """List who may do something with a key, and by what. Example: kmsfs who-can Decrypt alias/app"""
    answer = call(
        "ListAuthorizedPrincipals", KeyId=key, Action=_action(action), AskedContext=parse_context(context),
        ViaService=via,
    )  # fmt: skip
    rows = [
        (item["Principal"], item["DecidedBy"], "under conditions" if item["Conditional"] else "yes")
        for item in answer["Principals"]
    ]
    show(answer, lambda: table(("principal", "by", "allowed"), rows))


def simulate(
    principal: Annotated[
        str, typer.Argument(metavar="PRINCIPAL", help="uid/1000, gid/100, user/NAME, role/NAME or an ARN.")
    ],
    action: Action,
    key: Key,
    context: Context = None,
    via: Via = None,
) -> None:
    """Tell whether somebody would be allowed something now, and why. Exit code 10: no."""
    answer = call(
        "SimulateKeyAccess", KeyId=key, Principal=principal_arn(principal), Action=_action(action),
        AskedContext=parse_context(context), ViaService=via,
    )  # fmt: skip
    show(answer, lambda: _print(answer))
    if not answer["Allowed"]:
        raise typer.Exit(ExitCode.DENIED)


def _action(text: str) -> str:
    return text if ":" in text else f"kms:{text}"


def _print(answer: dict[str, Any]) -> None:
    context = ", ".join(f"{name}={value}" for name, value in answer.get("EncryptionContext", {}).items())
    facts(
        [
            ("principal", answer["Principal"]), ("action", answer["Action"]), ("resource", answer["Resource"]),
            ("encryption context", context or None), ("through", answer.get("ViaService")),
            ("when", when(answer["Time"])), ("answer", "allowed" if answer["Allowed"] else "denied"),
            ("by", answer["DecidedBy"]),
        ]
    )  # fmt: skip
    print()
    rows = [
        (step["Source"], step["Name"], step["Effect"], "applies" if step["Applies"] else step["Reason"])
        for step in answer["Steps"]
    ]
    table(("from", "statement or grant", "effect", "here"), rows)
