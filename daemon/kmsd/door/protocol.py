"""Requests and answers of AWS's JSON 1.1 and query protocols as bytes. Pure."""

import base64
import datetime
import json
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

import msgspec

from kmsd.door.sigv4 import HttpRequest
from kmsfs.api.operation import Operation, Shape
from kmsfs.api.registry import of_service
from kmsfs.errors import KmsfsError, SerializationFailed, UnknownOperation

JSON = "application/x-amz-json-1.1"
XML = "text/xml"
PLAIN_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_TARGETS = {"TrentService": "kms", "AmazonSSM": "ssm", "secretsmanager": "secretsmanager",
            "AWSOrganizationsV20161128": "organizations"}  # fmt: skip
_QUERY_VERSIONS = {"2011-06-15": "sts", "2010-05-08": "iam"}
_SPACES = {
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
    "iam": "https://iam.amazonaws.com/doc/2010-05-08/",
}
_MAPS = frozenset({"SummaryMap"})
_DOCUMENTS = frozenset({"PolicyDocument", "AssumeRolePolicyDocument", "Document"})
"""Policies travel URL-encoded (IAM API reference, GetUserPolicy)."""
_QUERY_CODES = {"AccessDeniedException": "AccessDenied", "ValidationException": "ValidationError"}
"""What the query protocol calls an error (IAM and STS API references, "Common Errors")."""
_MEMBERS_MAX = 200
_FIELDS_MAX = 500


@dataclass(frozen=True, slots=True)
class DoorRequest:
    """One request, before it is authenticated. `service` is the name that its signature must be for."""

    operation: Operation
    service: str
    parameters: dict[str, Any]


def is_query(asked: HttpRequest) -> bool:
    """Tell whether a request is of the query protocol: a form, in the body or in the URL."""
    in_url = asked.method == "GET" and "Action" in asked.fields
    form = in_url or asked.headers.get("content-type", "").startswith(_FORM)
    return form and "x-amz-target" not in asked.headers


def answer_type(asked: HttpRequest) -> str:
    """Return the content type of an answer: of the query protocol XML, or JSON for who accepts that (as aws-iam-authenticator does of STS)."""
    if not is_query(asked):
        return JSON
    return PLAIN_JSON if asked.headers.get("accept", "").startswith(PLAIN_JSON) else XML


def read_request(asked: HttpRequest) -> DoorRequest:
    """Find out what is asked.

    Raises:
        UnknownOperation: if no operation has that name here.
        SerializationFailed: if the body is not what the protocol says.
    """
    if is_query(asked):
        fields = {**asked.own_fields, **(_form(asked.body) if asked.method == "POST" else {})}
        service = _QUERY_VERSIONS.get(fields.pop("Version", ""), "")
        operation = _operation(service, fields.pop("Action", ""))
        return DoorRequest(operation, service, _typed(operation, fields))
    prefix, _, name = asked.headers.get("x-amz-target", "").partition(".")
    if not prefix or asked.method != "POST" or asked.own_fields:
        raise UnknownOperation("The request names no operation.")
    return DoorRequest(_operation(_TARGETS.get(prefix, ""), name), _TARGETS[prefix], _json(asked.body))


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
                body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=_FIELDS_MAX
            )
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise SerializationFailed("The request body is not a form.") from error


def _typed(operation: Operation, fields: dict[str, str]) -> dict[str, Any]:
    """Return a form's fields as the operation's parameters: lists and structures put together, numbers read."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        _place(nested, name.split("."), value)
    # An empty list is written as a field without a value.
    empty = _optional_lists(operation.request)
    plain = {name: [] if value == "" and name in empty else _lists(value) for name, value in nested.items()}
    try:
        request = msgspec.convert(plain, operation.request, strict=False)
    except msgspec.ValidationError:
        # The pipeline says what is wrong, in AWS's words.
        return plain
    typed: dict[str, Any] = msgspec.to_builtins(request)
    return typed


@cache
def _optional_lists(request: type[Shape]) -> frozenset[str]:
    return frozenset(each.encode_name for each in msgspec.structs.fields(request) if each.default_factory is list)


def _place(nested: dict[str, Any], path: list[str], value: str) -> None:
    if len(path) > 8 or "" in path:
        raise SerializationFailed("The request body has a malformed field name.")
    for step in path[:-1]:
        nested = nested.setdefault(step, {})
        if not isinstance(nested, dict):
            raise SerializationFailed("The request body has a field that is a value and a structure at once.")
    nested[path[-1]] = value


def _lists(value: Any) -> Any:
    """Turn {"member": {"1": a, "2": b}} into [a, b], however deep."""
    if not isinstance(value, dict):
        return value
    members = value.get("member")
    if isinstance(members, dict) and len(value) == 1:
        if len(members) > _MEMBERS_MAX or not all(name.isascii() and name.isdigit() for name in members):
            raise SerializationFailed("The request body has a malformed list.")
        return [_lists(members[name]) for name in sorted(members, key=int)]
    return {name: _lists(item) for name, item in value.items()}


def answer_bytes(request: DoorRequest, result: dict[str, Any], request_id: str, kind: str) -> bytes:
    """Return the body of a successful answer, in a content type of `answer_type`."""
    if kind == JSON:
        return msgspec.json.encode(result)
    name = request.operation.name
    if kind == PLAIN_JSON:
        return msgspec.json.encode({f"{name}Response": {f"{name}Result": result, "ResponseMetadata": {"RequestId": request_id}}})
    inner = "".join(_xml(key, value) for key, value in result.items())
    space = _SPACES[request.service]
    return (
        f'<{name}Response xmlns="{space}"><{name}Result>{inner}</{name}Result>'
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{name}Response>"
    ).encode()


def _xml(name: str, value: Any) -> str:
    if name in _MAPS and isinstance(value, dict):
        entries = "".join(f"<entry>{_xml('key', key)}{_xml('value', item)}</entry>" for key, item in value.items())
        return f"<{name}>{entries}</{name}>"
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(key, item) for key, item in value.items())}</{name}>"
    if isinstance(value, list):
        return f"<{name}>{''.join(_xml('member', item) for item in value)}</{name}>"
    if isinstance(value, bool):
        return f"<{name}>{str(value).lower()}</{name}>"
    if isinstance(value, float):
        moment = datetime.datetime.fromtimestamp(value, datetime.UTC)
        return f"<{name}>{moment.strftime('%Y-%m-%dT%H:%M:%SZ')}</{name}>"
    if isinstance(value, bytes):
        value = base64.b64encode(value).decode()
    text = quote(value, safe="") if name in _DOCUMENTS else str(value)
    return f"<{name}>{escape(text)}</{name}>"


def error_bytes(error: KmsfsError, message: str, request_id: str, kind: str) -> bytes:
    """Return the body of a failure, in a content type of `answer_type`."""
    if kind == JSON:
        return json.dumps({"__type": error.code, "message": message}).encode()
    fault = "Receiver" if error.http_status >= 500 else "Sender"
    code = _QUERY_CODES.get(error.code, error.code)
    if kind == PLAIN_JSON:
        return json.dumps({"Error": {"Type": fault, "Code": code, "Message": message}, "RequestId": request_id}).encode()
    return (
        f'<ErrorResponse xmlns="{_SPACES["sts"]}"><Error><Type>{fault}</Type><Code>{escape(code)}</Code>'
        f"<Message>{escape(message)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()
