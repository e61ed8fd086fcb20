"""Socket frames: u32 big-endian length ‖ msgpack map (docs/formats/frame-v1.md).

Request: {"v": 1, "id": n, "op": name, "p": {...}} with optional "dl" (deadline in milliseconds) and "uid" (for
the audit log only). Answer: {"v": 1, "id": n, "r": {...}} or {"v": 1, "id": n, "e": {...}}. Pushed event:
{"v": 1, "id": n of the Watch request, "ev": {...}}.
"""

from typing import Any

import msgspec

from kmsfs.errors import BadFrame, FrameTooLarge, InvalidRequest, VersionMismatch
from kmsfs.formats.packing import pack, pack_builtins, unpack
from kmsfs.quantity import MAX_BATCH_FRAME_BYTES, MAX_FRAME_BYTES

PROTOCOL_VERSION = 1
LENGTH_BYTES = 4
BATCH_OPERATIONS = frozenset({"GenerateDataKeyBatch", "DecryptBatch"})
_REQUEST_FIELDS = frozenset({"v", "id", "op", "p", "dl", "uid"})
_MAX_REQUEST_ID = 1 << 53


class Request(msgspec.Struct):
    """A decoded request frame."""

    request_id: int
    operation: str
    parameters: dict[str, Any]
    deadline_ms: int | None
    context_uid: int | None


def with_length(body: bytes) -> bytes:
    """Prefix a frame body with its length.

    Raises:
        FrameTooLarge: if the body exceeds 1 MiB.
    """
    if len(body) > MAX_BATCH_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {len(body)} bytes exceeds {MAX_BATCH_FRAME_BYTES}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_length(prefix: bytes | bytearray | memoryview) -> int:
    """Return the length that four bytes announce.

    Raises:
        FrameTooLarge: if it exceeds 1 MiB; nothing has been allocated then.
        BadFrame: if it is zero.
    """
    length = int.from_bytes(prefix, "big")
    if length > MAX_BATCH_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {length} bytes exceeds {MAX_BATCH_FRAME_BYTES}")
    if not length:
        raise BadFrame("empty frame")
    return length


def encode_request(
    request_id: int,
    operation: str,
    parameters: dict[str, Any],
    *,
    deadline_ms: int | None = None,
    context_uid: int | None = None,
) -> bytes:
    """Return a whole request frame, length included.

    Raises:
        InvalidRequest: if a parameter has a type, a number or a text (a lone surrogate) that no message can hold.
    """
    message: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": request_id, "op": operation, "p": parameters}
    if deadline_ms is not None:
        message["dl"] = deadline_ms
    if context_uid is not None:
        message["uid"] = context_uid
    try:
        packed = pack(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"A parameter of {operation} holds text that is not Unicode, or a type or number that no request can hold."
        ) from error
    return with_length(packed)


def decode_request(body: bytes | memoryview) -> Request:
    """Decode a request's body.

    Raises:
        BadFrame: if a field is missing, unknown or of the wrong type.
        VersionMismatch: if the peer speaks another version.
        FrameTooLarge: if an ordinary operation's frame exceeds 256 KiB.
    """
    message = unpack(body)
    if type(message) is not dict:
        raise BadFrame("a frame is a map")
    if message.get("v") != PROTOCOL_VERSION or type(message["v"]) is not int:
        raise VersionMismatch(f"this daemon speaks frame version {PROTOCOL_VERSION}")
    request_id, operation, parameters = message.get("id"), message.get("op"), message.get("p")
    if type(request_id) is not int or not 0 <= request_id < _MAX_REQUEST_ID:
        raise BadFrame("frame field id is not a request number")
    if type(operation) is not str or len(operation) > 64:
        raise BadFrame("frame field op is not an operation name")
    if type(parameters) is not dict:
        raise BadFrame("frame field p is not a map")
    if not message.keys() <= _REQUEST_FIELDS:
        raise BadFrame("frame has an unknown field")
    if len(body) > MAX_FRAME_BYTES and operation not in BATCH_OPERATIONS:
        raise FrameTooLarge(f"a frame of {operation} may have {MAX_FRAME_BYTES} bytes")
    deadline, uid = message.get("dl"), message.get("uid")
    for number in (deadline, uid):
        if number is not None and (type(number) is not int or not 0 <= number < 1 << 32):
            raise BadFrame("frame fields dl and uid are unsigned 32-bit numbers")
    return Request(request_id, operation, parameters, deadline, uid)


def encode_result(request_id: int, result: Any) -> bytes:
    """Return a success answer, length included; `result` is what `msgspec.to_builtins` made."""
    return with_length(pack_builtins({"v": PROTOCOL_VERSION, "id": request_id, "r": result}))


def encode_error(request_id: int, code: str, message: str, hint: str, *, retryable: bool) -> bytes:
    """Return an error answer, length included."""
    body = {"code": code, "message": message, "hint": hint, "retryable": retryable}
    return with_length(pack({"v": PROTOCOL_VERSION, "id": request_id, "e": body}))


def encode_event(request_id: int, event: dict[str, Any]) -> bytes:
    """Return a pushed event, length included."""
    return with_length(pack({"v": PROTOCOL_VERSION, "id": request_id, "ev": event}))


def decode_answer(body: bytes | memoryview) -> dict[str, Any]:
    """Decode an answer or event.

    Raises:
        BadFrame: if it is neither.
        VersionMismatch: if the peer speaks another version.
    """
    message = unpack(body)
    if type(message) is not dict or type(message.get("id")) is not int:
        raise BadFrame("an answer is a map with an id")
    if message.get("v") != PROTOCOL_VERSION:
        raise VersionMismatch("the daemon speaks another frame version", hint="upgrade both to one version")
    if not ({"r", "e", "ev"} & message.keys()):
        raise BadFrame("an answer carries r, e or ev")
    return message
