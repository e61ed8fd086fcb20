"""The door's listener: uvicorn on a loopback address, in the daemon's own event loop."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTIONS_MAX = 128
"""How many connections a door holds at once."""


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the daemon has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(HttpToolsProtocol):
    """A connection that makes room for the next one where there are too many: the one that has done nothing for the longest goes.

    Who opens many and asks nothing, or sends requests that never end, keeps nobody out; AWS's clients connect anew.
    """

    served = 0
    """The number of what it did last: it was opened, a whole request had come or was answered. A clock would have the same time for many."""
    _numbers = itertools.count()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the place of another one, if there is no other place."""
        self.served = next(self._numbers)
        while len(self.connections) >= CONNECTIONS_MAX:
            idlest = min(self.connections, key=attrgetter("served"))
            self.connections.discard(idlest)
            idlest.transport.abort()
        super().connection_made(transport)

    def on_message_complete(self) -> None:
        """Note that a whole request has come."""
        self.served = next(self._numbers)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that it was answered."""
        self.served = next(self._numbers)
        super().on_response_complete()


class DoorServer:
    """A running door."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        # Who is at the other end the kernel says, never a header: by the address credentials are given, and policies decide.
        config = uvicorn.Config(
            app, interface="asgi3", lifespan="off", access_log=False, log_config=None, server_header=False, proxy_headers=False,
            date_header=False, http=_Connection, timeout_keep_alive=75,
        )  # fmt: skip
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def close(self) -> None:
        """Stop listening and let requests under way end."""
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
