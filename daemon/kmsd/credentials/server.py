"""One connection is one credential: who connects, as which unit, and the value, or more than systemd takes.

Only systemd's own helper may name a unit: it runs as root, or as the user whose manager it is and whose daemon this is.
A value that is refused must not be an empty credential, as which systemd would take a closed connection; it fails a unit
whose credential is longer than 1 MiB.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kmsd.authz.principal import unit_caller
from kmsd.credentials.names import parse_peer, places_of
from kmsd.server.peer import peer_ids
from kmsd.server.session import ServerState
from kmsfs.errors import KmsfsError, ParameterNotFound
from kmsfs.formats.frame import Request

_LOG = logging.getLogger("kmsd")
CREDENTIAL_MAX_BYTES = 1 << 20
_REFUSAL = bytes(CREDENTIAL_MAX_BYTES + 1)


class CredentialSession(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: ServerState, managers: frozenset[int]) -> None:
        """Serve one; processes of the uids `managers` are believed which unit they ask for."""
        self._state = state
        self._managers = managers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer and close: systemd sends nothing."""
        writer: Any = transport
        try:
            answer = self._answer(writer.get_extra_info("socket"))
        except (KmsfsError, OSError) as error:
            _LOG.warning("a credential was refused: %s", error)
            answer = _REFUSAL
        writer.write(answer)
        writer.close()

    def _answer(self, connection: Any) -> bytes:
        pid, uid, gid = peer_ids(connection)
        unit, credential = parse_peer(connection.getpeername())
        if uid not in self._managers:
            raise ParameterNotFound(f"uid {uid} is no service manager, but asks as {unit} for {credential}")
        caller = unit_caller(self._state.account, unit, uid, gid, pid)
        self._state.spend(caller.principal, Request(0, "GetParameter", {}, None, None))
        return self._settled(lambda: self._value(caller, unit, credential))

    def _value(self, caller: Any, unit: str, credential: str) -> bytes:
        for name in places_of(unit, credential):
            request = Request(0, "GetParameter", {"Name": name, "WithDecryption": True}, None, None)
            try:
                result, _ = self._state.pipeline.run(caller, request, 0)
            except ParameterNotFound:
                continue
            value: str = result["Parameter"]["Value"]
            return value.encode()
        raise ParameterNotFound(f"no parameter {' or '.join(places_of(unit, credential))} of the account's for {unit}")

    def _settled(self, work: Callable[[], bytes]) -> bytes:
        """Do the work, and let nothing out before the audit log has it.

        Raises:
            KmsfsError: the work's own; or AuditUnavailable, StorageError.
        """
        try:
            return work()
        finally:
            self._state.settlement.now()
