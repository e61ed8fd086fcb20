"""Requests and answers of AWS's JSON 1.1 and query protocols as bytes. Pure."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import msgspec

from kmsfs.api.operation import Operation
from kmsfs.api.registry import of_service
from kmsfs.errors import KmsfsError, SerializationFailed, UnknownOperation

JSON = "application/x-amz-json-1.1"
XML = "text/xml"
_TARGETS = {"TrentService": "kms", "AmazonSSM": "ssm", "secretsmanager": "secretsmanager"}
_QUERY_VERSIONS = {"2011-06-15": "sts"}
_STS_SPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


@dataclass(frozen=True, slots=True)
class DoorRequest:
    """One request, before it is authenticated. `service` is the name that its signature must be for."""

    operation: Operation
    service: str
    parameters: dict[str, Any]
    query: bool


def read_request(target: str, content_type: str, body: bytes) -> DoorRequest:
    """Find out what is asked.

    Raises:
        UnknownOperation: if no operation has that name here.
        SerializationFailed: if the body is not what the protocol says.
    """
    if target:
        prefix, _, name = target.partition(".")
        return DoorRequest(
            _operation(_TARGETS.get(prefix, ""), name), _TARGETS[prefix], _json(body), query=False
        )
    if content_type.startswith("application/x-www-form-urlencoded"):
        fields = _form(body)
        service = _QUERY_VERSIONS.get(fields.pop("Version", ""), "")
        operation = _operation(service, fields.pop("Action", ""))
        return DoorRequest(operation, service, _typed(operation, fields), query=True)
    raise UnknownOperation("The request names no operation.")


def _operation(service: str, name: str) -> Operation:
    operation = of_service(service, name)
    if operation is None:
        raise UnknownOperation(f"The operation {name[:64]!r} is not offered here.")
    return operation


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise SerializationFailed("The request body is not JSON.") from error
    if not isinstance(value, dict):
        raise SerializationFailed("The request body is not a JSON object.")
    # A null member is an absent one (Smithy, "awsJson1_1 protocol").
    return {name: item for name, item in value.items() if item is not None}


def _form(body: bytes) -> dict[str, str]:
    try:
        return dict(
            parse_qsl(
                body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=100
            )
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise SerializationFailed("The request body is not a form.") from error


def _typed(operation: Operation, fields: dict[str, str]) -> dict[str, Any]:
    typed: dict[str, Any] = dict(fields)
    for name in ("DurationSeconds",):
        if name in typed and operation.service == "sts":
            try:
                typed[name] = int(typed[name])
            except ValueError as error:
                raise SerializationFailed(f"{name} is not a number.") from error
    return typed


def answer_bytes(request: DoorRequest, result: dict[str, Any], request_id: str) -> bytes:
    """Return the body of a successful answer."""
    if not request.query:
        return msgspec.json.encode(result)
    name = request.operation.name
    inner = "".join(_xml(key, value) for key, value in result.items())
    return (
        f'<{name}Response xmlns="{_STS_SPACE}"><{name}Result>{inner}</{name}Result>'
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{name}Response>"
    ).encode()


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(key, item) for key, item in value.items())}</{name}>"
    return f"<{name}>{escape(str(value))}</{name}>"


def error_bytes(error: KmsfsError, message: str, request_id: str, *, query: bool) -> bytes:
    """Return the body of a failure."""
    if not query:
        return json.dumps({"__type": error.code, "message": message}).encode()
    kind = "Receiver" if error.http_status >= 500 else "Sender"
    code = error.code.removesuffix("Exception") if error.code == "AccessDeniedException" else error.code
    return (
        f'<ErrorResponse xmlns="{_STS_SPACE}"><Error><Type>{kind}</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(message)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()
