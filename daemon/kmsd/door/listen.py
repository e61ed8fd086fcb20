"""The door's listener: uvicorn on a loopback address, in the daemon's own event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the daemon has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class DoorServer:
    """A running door."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        # Who is at the other end the kernel says, never a header: by the address credentials are given, and policies decide.
        config = uvicorn.Config(
            app, interface="asgi3", lifespan="off", access_log=False, log_config=None, server_header=False, proxy_headers=False,
            date_header=False, http="httptools", timeout_keep_alive=75, limit_concurrency=128,
        )  # fmt: skip
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def close(self) -> None:
        """Stop listening and let requests under way end."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
