"""Turn a map from the wire into a typed request, answering AWS's texts where it does not fit."""

import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from kmsfs.api.operation import Operation, Shape
from kmsfs.errors import ShapeError

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`\Z")
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_BOUND = re.compile(r"Expected `(?P<kind>\w+)`(?P<length> of length)? (?P<op><=|>=|<|>) (?P<bound>-?\d+)")
_ENUM = "Member must satisfy enum value set"
_WORDS = {"<=": "less than or equal to", ">=": "greater than or equal to"}


def decode(operation: Operation, parameters: dict[str, Any]) -> Shape:
    """Return the typed request of `operation`.

    Raises:
        ShapeError: if a field is missing, unknown, mistyped or out of bounds, or a rule across fields breaks.
    """
    try:
        request = msgspec.convert(parameters, operation.request, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise _explain(operation, parameters, str(error)) from None
    for rule in operation.rules:
        rule(request)
    return request


def _explain(operation: Operation, parameters: dict[str, Any], text: str) -> ShapeError:
    found = _AT.search(text)
    path = found["path"] if found else ""
    reason = text[: found.start()] if found else text
    missing = re.match(r"Object missing required field `(\w+)`", reason)
    if missing:
        name = f"{path}.{missing[1]}".lstrip(".")
        return ShapeError(
            f"1 validation error detected: Value null at '{_member(name)}' failed to satisfy constraint: "
            "Member must not be null"
        )
    unknown = re.match(r"Object contains unknown field `(.*)`", reason)
    if unknown:
        return ShapeError(f"Unknown parameter in input: {unknown[1][:64]!r} of {operation.name}")
    constraint = _constraint(reason)
    if constraint == _ENUM:
        constraint += f": [{', '.join(_choices(operation.request, path))}]"
    if constraint is None:
        return ShapeError(f"{reason} at '{_member(path.lstrip('.'))}'")
    top = re.split(r"[.\[]", path.lstrip("."))[0]
    shown = "Value"
    value = _value_at(parameters, path)
    if path.endswith("]") and isinstance(value, str):
        # An item that breaks a bound is told as its list (AWS's answers to LabelParameterVersion).
        path = path[: path.rindex("[")]
        value = [value]
        constraint = _item_constraint(operation.request, path) or f"Member must satisfy constraint: [{constraint}]"
    if top not in (*operation.secret, "GrantTokens") and _is_text(value):
        shown = f"Value '{_shown(value)[:256]}'"
    return ShapeError(
        f"1 validation error detected: {shown} at '{_member(path.lstrip('.'))}' failed to satisfy constraint: "
        f"{constraint}"
    )


def _constraint(reason: str) -> str | None:
    bound = _BOUND.match(reason)
    if bound and bound["op"] in _WORDS:
        what = "length" if bound["length"] else "value"
        return f"Member must have {what} {_WORDS[bound['op']]} {bound['bound']}"
    pattern = re.match(r"Expected `str` matching regex (.*)", reason)
    if pattern:
        return f"Member must satisfy regular expression pattern: {pattern[1].strip(chr(39) + chr(34))}"
    if reason.startswith("Invalid enum value"):
        return _ENUM
    return None


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return not isinstance(value, (bytes, dict))


def _shown(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _item_constraint(shape: Any, path: str) -> str | None:
    """Return AWS's text for all bounds of a list's items, None if they have none in length."""
    hint: Any = _hint_at(shape, path, extras=True)
    lists = [part for part in (hint, *get_args(hint)) if get_origin(part) is list]
    item = get_args(lists[0])[0] if lists else None
    for meta in get_args(item):
        if isinstance(meta, msgspec.Meta) and meta.max_length is not None:
            return (
                f"Member must satisfy constraint: [Member must have length less than or equal to {meta.max_length}, "
                f"Member must have length greater than or equal to {meta.min_length or 0}]"
            )
    return None


def _choices(shape: Any, path: str) -> tuple[str, ...]:
    """Return the values that a field takes."""
    kind = _hint_at(shape, path, extras=False)
    found = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return tuple(str(value) for part in found for value in get_args(part))


def _hint_at(shape: Any, path: str, *, extras: bool) -> Any:
    """Return the type of a field, found along a path such as `.Filters[0].Key`; () if there is none."""
    kind: Any = shape
    for step in _STEP.finditer(path):
        if step["name"]:
            shapes = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Shape)]
            if not shapes:
                return ()
            hints = get_type_hints(shapes[0], include_extras=extras)
            wire = dict(zip(shapes[0].__struct_encode_fields__, shapes[0].__struct_fields__, strict=True))
            kind = hints[wire[step["name"]]]
        else:
            lists = [part for part in (kind, *get_args(kind)) if get_origin(part) is list]
            kind = get_args(lists[0])[0] if lists else kind
    return kind


def _member(path: str) -> str:
    """AWS's spelling of a path: lower camel case, list positions from 1."""
    text = _STEP.sub(
        lambda step: "." + step["name"] if step["name"] else f".{int(step['index'] or 0) + 1}.member",
        path if path.startswith("[") else "." + path,
    )
    return ".".join(part[:1].lower() + part[1:] for part in text.strip(".").split("."))


def _value_at(parameters: Any, path: str) -> Any:
    value = parameters
    for step in _STEP.finditer(path):
        try:
            value = value[step["name"]] if step["name"] else value[int(step["index"] or 0)]
        except (KeyError, IndexError, TypeError):
            return b""
    return value
