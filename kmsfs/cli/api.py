"""kmsfs api: any operation, raw."""

import base64
import binascii
import json
from typing import Annotated, Any, get_args, get_type_hints

import typer

from kmsfs.api.registry import find
from kmsfs.api.shapes.crypto import DecryptItem
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
    answer = call(operation, **_with_bytes(parameters, declared.request))
    show(answer, lambda: None)


def _with_bytes(parameters: dict[str, Any], shape: type) -> dict[str, Any]:
    """Turn base64 text into bytes where the declaration says bytes."""
    names = dict(zip(shape.__struct_encode_fields__, shape.__struct_fields__, strict=True))  # type: ignore[attr-defined]
    hints = get_type_hints(shape, include_extras=False)
    decoded = {}
    for name, value in parameters.items():
        decoded[name] = _decoded(name, value, hints.get(names.get(name, "")))
    return decoded


def _decoded(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, str) and (kind is bytes or bytes in get_args(kind)):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ShapeError(f"{name} is not base64") from error
    if name == "Items" and isinstance(value, list):
        return [_with_bytes(item, DecryptItem) for item in value]
    return value
