"""kmsfs api: any operation, raw."""

import json
from typing import Annotated

import typer

from kmsfs.api.plain import with_bytes
from kmsfs.api.registry import find
from kmsfs.cli.output import SETTINGS, call, read_value, show
from kmsfs.errors import ShapeError


def api(
    operation: Annotated[str, typer.Argument(help="Name, such as GenerateDataKey.")],
    request: Annotated[
        str, typer.Argument(help="File with the request as JSON, `-` for standard input.")
    ] = "-",
) -> None:
    """Call an operation with a JSON request; bytes are base64. Example: echo '{}' | kmsfs api ListKeys"""
    declared = find(operation)
    try:
        parameters = json.loads(read_value(request) or b"{}")
    except ValueError as error:
        raise ShapeError("the request is not JSON") from error
    if not isinstance(parameters, dict):
        raise ShapeError("the request is a JSON object")
    SETTINGS.as_json = True
    answer = call(operation, **with_bytes(parameters, declared.request))
    show(answer, lambda: None)
