"""The report as a page on loopback, for whoever has its address: read-only, made anew for each look."""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from kmsfs.errors import KmsfsError

_COOKIE = "kmsfs-report"
_PLAIN = "text/plain; charset=utf-8"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ReportPage:
    """The ASGI application. `make` returns the page; it runs in a thread, one at a time.

    Everybody on the machine can reach a port on loopback, so the page is for who knows `key`: it comes with the address that was printed, and stays as a cookie.
    The Host header must be an address of loopback, so that a page from elsewhere cannot read this one under a name of its own (DNS rebinding).
    """

    def __init__(self, make: Callable[[], str], port: int) -> None:
        self._make = make
        self._port = port
        self._one = asyncio.Lock()
        self.key = secrets.token_urlsafe(24)

    async def __call__(self, scope: dict[str, Any], _receive: Receive, send: Send) -> None:
        """ASGI 3 (asgi.readthedocs.io, "HTTP Connection Scope")."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, text, kind, more = await self._answer(scope, headers)
        body = text.encode()
        out = [
            (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"), *more,
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": status, "headers": out})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str, str, list[tuple[bytes, bytes]]]:
        if headers.get("host", "") not in (f"127.0.0.1:{self._port}", f"[::1]:{self._port}", f"localhost:{self._port}"):
            return 400, "this page is for loopback\n", _PLAIN, []
        if scope["method"] not in ("GET", "HEAD") or scope["path"] != "/":
            return 404, "there is / only\n", _PLAIN, []
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if given and self._is_key(given):
            # Into a cookie, and out of the address: that ends up in histories.
            cookie = f"{_COOKIE}={self.key}; HttpOnly; SameSite=Strict; Path=/"
            return 303, "", _PLAIN, [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        if not self._is_key(_cookie(headers.get("cookie", ""))):
            return 403, "open the address that `kmsfs report --serve` printed\n", _PLAIN, []
        try:
            async with self._one:
                page = await asyncio.to_thread(self._make)
        except KmsfsError as error:
            return 503, f"{error.detail}\n", _PLAIN, []
        return 200, page, "text/html; charset=utf-8", []

    def _is_key(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.key.encode())


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def serve_page(page: ReportPage, listener: Any) -> None:
    """Serve until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        page, interface="asgi3", lifespan="off", access_log=False, log_config=None, server_header=False, date_header=False,
        proxy_headers=False, http="httptools", limit_concurrency=32,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
