"""The ASGI application: authenticate, run the same pipeline as the socket, answer in AWS's shapes."""

import asyncio
import contextlib
import datetime
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kmsd.authz.principal import Caller, make_caller
from kmsd.door.arns import ArnTranslation
from kmsd.door.peers import groups_of, may_connect, uid_of_peer
from kmsd.door.protocol import JSON, DoorRequest, answer_bytes, answer_type, error_bytes, read_request
from kmsd.door.references import refuse_alias
from kmsd.door.sigv4 import HttpRequest, check_signature, parse_signature, read_url
from kmsd.iam.records import KeyUse
from kmsd.server.session import ServerState
from kmsd.sts.credentials import CredentialBook
from kmsfs.api.plain import with_bytes
from kmsfs.errors import (
    AccessDenied,
    InvalidSignature,
    InvariantBroken,
    KmsfsError,
    RequestTooLarge,
    UnknownCredentials,
    UnknownOperation,
)
from kmsfs.formats.frame import Request
from kmsfs.quantity import MAX_BATCH_FRAME_BYTES

_LOG = logging.getLogger("kmsd")
_TOKEN = "X-Amz-Security-Token"  # noqa: S105  (a header's name)

CREDENTIALS_PATH = "/credentials"
_CONTAINER_SECONDS = 3_600
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Door:
    """Serves `/`. One connection may ask many times; nothing is kept between requests."""

    def __init__(self, state: ServerState, book: CredentialBook, home_region: str, path: Path) -> None:
        """`path` is the Unix socket: who may not connect there gets no credentials here."""
        self._path = path
        self._state = state
        self._book = book
        self._home_region = home_region
        self._translations: dict[str, ArnTranslation] = {}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI 3 (asgi.readthedocs.io, "HTTP Connection Scope")."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = str(uuid.UUID(bytes=os.urandom(16), version=4))
        if scope["method"] == "GET" and scope["path"] == CREDENTIALS_PATH:
            await _send(send, *self._credentials(scope, headers, request_id), request_id, JSON)
            return
        asked, kind = HttpRequest(scope["method"], headers, address=_address(scope)), JSON
        try:
            if scope["method"] not in ("GET", "POST") or scope["path"] != "/":
                raise UnknownOperation("This door answers GET / and POST / only.")
            asked.fields, asked.body = read_url(scope["query_string"]), await _body(receive)
            kind = answer_type(asked)
            await self._have_keys(asked)
            status, answer = 200, self._serve(asked, request_id, kind)
        except KmsfsError as error:
            status, answer = self._failure(error, asked, request_id, kind)
        except Exception:
            _LOG.exception("request %s failed", request_id)
            status, answer = self._failure(InvariantBroken("internal error"), asked, request_id, kind)
        await _send(send, status, answer, request_id, kind)

    async def _have_keys(self, asked: HttpRequest) -> None:
        """Have a key made in a thread, if the request may need one that is slow to make."""
        operation = asked.headers.get("x-amz-target", "").rpartition(".")[2]
        if b'"RSA_' not in asked.body:
            return
        with contextlib.suppress(ValueError, RecursionError):
            parameters = json.loads(asked.body)
            spares = self._state.spares
            spec = spares.lacking(operation, parameters) if isinstance(parameters, dict) else None
            if spec is not None:
                await asyncio.get_running_loop().run_in_executor(self._state.makers, spares.make, spec)

    def _serve(self, asked: HttpRequest, request_id: str, kind: str) -> bytes:
        state = self._state
        request = read_request(asked)
        caller, region = self._authenticate(request, asked)
        # Before anything else is done: what is refused costs a token too.
        state.spend(caller.principal, Request(0, request.operation.wire_name, request.parameters, None, None))
        translation = self._translation(region)
        parameters = translation.inward(with_bytes(request.parameters, request.operation.request))
        refuse_alias(request.operation, parameters)
        frame = Request(0, request.operation.wire_name, parameters, None, None)
        try:
            result, _ = state.pipeline.run(
                caller, frame, next(state.numbers), translation.region, request_id
            )
        finally:
            state.settlement.now()
        return answer_bytes(request, translation.outward(result), request_id, kind)

    def _authenticate(self, request: DoorRequest, asked: HttpRequest) -> tuple[Caller, str]:
        """Return who signed the request, and for which region.

        Raises:
            KmsfsError: MissingAuthentication, IncompleteSignature, InvalidSignature, UnknownCredentials, TokenExpired.
        """
        scope = parse_signature(asked)
        now = self._state.clock()
        token = asked.said(_TOKEN)
        if token and not asked.signed_in_url and _TOKEN.lower() not in scope.headers:
            raise UnknownCredentials("The security token included in the request is not signed.")
        caller = replace(self._book.caller(scope.access_key_id, token, now), address=asked.address)
        # By the machine's clock, as the caller signs by his own; what is over is over by the realm's.
        check_signature(scope, asked, self._book.secret_of, time.time())
        if scope.service != request.service:
            raise InvalidSignature(f"Credential should be scoped to correct service: '{request.service}'.")
        self._book.note_use(scope.access_key_id, KeyUse(now, scope.service, scope.region))
        return caller, scope.region

    def _credentials(self, scope: dict[str, Any], headers: Mapping[str, str], request_id: str) -> tuple[int, bytes]:
        """Give temporary credentials to the local user whose process asks, as containers get them at AWS.

        Source: AWS SDKs and tools reference, "Container credential provider". Nobody signs here: who it is the kernel says of the connection.
        A page in a browser does not get them: not under another name than loopback's (DNS rebinding), and not by a script of another origin.
        """
        state = self._state
        client, server = scope.get("client"), scope.get("server")
        host = headers.get("host", "").rpartition(":")[0].strip("[]")
        if client is None or server is None or host not in _LOOPBACK or "origin" in headers or "sec-fetch-mode" in headers:
            return 403, b'{"code":"AccessDenied","message":"credentials are for local programs"}'
        try:
            uid = uid_of_peer(tuple(client[:2]), tuple(server[:2]))
            if uid is None:
                raise UnknownCredentials("The connection is no local user's.")
            gid, groups = groups_of(uid)
            if not may_connect(self._path, uid, frozenset({gid, *groups})):
                raise AccessDenied("The key daemon's socket is not for this user.")
            caller = make_caller(state.account_of(uid), uid, gid, 0, groups, administrators=state.administrators)
            frame = Request(0, "GetSessionToken", {"DurationSeconds": _CONTAINER_SECONDS}, None, None)
            state.spend(caller.principal, frame)
            try:
                made = state.pipeline.run(caller, frame, next(state.numbers), call_id=request_id)[0]["Credentials"]
            finally:
                state.settlement.now()
        except KmsfsError as error:
            message = "internal error" if error.audience == "bug" else error.detail
            return error.http_status, json.dumps({"code": error.code, "message": message}).encode()
        expires = datetime.datetime.fromtimestamp(made["Expiration"], datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, json.dumps(
            {"AccessKeyId": made["AccessKeyId"], "SecretAccessKey": made["SecretAccessKey"], "Token": made["SessionToken"], "Expiration": expires}
        ).encode()

    def _translation(self, region: str) -> ArnTranslation:
        held = self._translations.get(region)
        if held is None:
            if len(self._translations) > 64:
                self._translations.clear()
            held = self._translations[region] = ArnTranslation(region, self._home_region)
        return held

    def _failure(self, error: KmsfsError, asked: HttpRequest, request_id: str, kind: str) -> tuple[int, bytes]:
        bug = error.audience == "bug"
        message = "internal error; the daemon's log has the details" if bug else error.detail
        region = (asked.said("X-Amz-Credential") or asked.headers.get("authorization", "")).split("/")
        held = self._translations.get(region[2]) if len(region) > 2 else None
        if held is not None:
            message = held.outward_text(message)
        status = 500 if bug else error.http_status
        return status, error_bytes(error, message, request_id, kind)


def _address(scope: dict[str, Any]) -> str:
    """Return the client's IP address; one of a Unix socket has none. What a header says of it counts for nothing."""
    client = scope.get("client")
    return str(client[0]) if client is not None else ""


async def _body(receive: Receive) -> bytes:
    parts, total = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        total += len(part)
        if total > MAX_BATCH_FRAME_BYTES:
            raise RequestTooLarge(f"A request body may have {MAX_BATCH_FRAME_BYTES} bytes.")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _send(send: Send, status: int, body: bytes, request_id: str, content_type: str) -> None:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-amzn-requestid", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
