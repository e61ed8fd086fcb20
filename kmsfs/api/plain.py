"""JSON's view of a request: base64 text where the declaration says bytes."""

import base64
import binascii
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from kmsfs.errors import ShapeError


@cache
def _fields(shape: type) -> dict[str, Any]:
    """Wire name to type hint, of a shape's fields."""
    hints = get_type_hints(shape, include_extras=False)
    names = zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True)  # type: ignore[attr-defined]
    return {wire: hints[name] for name, wire in names}


def with_bytes(parameters: dict[str, Any], shape: type) -> dict[str, Any]:
    """Return the parameters with base64 text turned into bytes where the shape says bytes, however deep.

    Raises:
        ShapeError: if such a text is not base64.
    """
    fields = _fields(shape)
    return {name: _decoded(name, value, fields.get(name)) for name, value in parameters.items()}


def _decoded(name: str, value: Any, kind: Any) -> Any:
    choices = (kind, *get_args(kind))
    if isinstance(value, str):
        if bytes not in choices:
            return value
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ShapeError(f"{name} is not base64") from error
    shapes = [part for part in choices if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    if isinstance(value, dict) and shapes:
        return with_bytes(value, shapes[0])
    if isinstance(value, list):
        inner = next((get_args(part)[0] for part in choices if get_origin(part) is list), None)
        return [_decoded(name, item, inner) for item in value]
    return value
