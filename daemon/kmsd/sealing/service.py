"""Handlers of Seal, GetSealStatus and Unseal in a daemon that is not sealed."""

import os
from collections.abc import Callable

from kmsd.dispatch.call import Call
from kmsfs.api.shapes.admin import SealStatus
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import AccessDenied, Conflict, UnsupportedOperation


class SealService:
    """Seal, GetSealStatus, Unseal."""

    def __init__(
        self, root_key_source: str, management: str, keepers: frozenset[int], seal: Callable[[], None] | None
    ) -> None:
        """The root of the account `management` and `keepers`, which are uids, may seal; `seal` ends this daemon once its answers are out, None where no realm is left then."""
        self._source = root_key_source
        self._management = management
        self._keepers = keepers
        self._seal = seal

    def seal(self, call: Call) -> Empty:
        """Seal: for root, the daemon's user, its administrators and the root of the managing account.

        Raises:
            AccessDenied: for others.
            UnsupportedOperation: if the realm is ephemeral.
        """
        caller = call.caller
        local = not caller.access_key_id and not caller.unit
        if not (caller.root and caller.account == self._management) and not (local and caller.uid in self._keepers):
            raise AccessDenied("Only root, the daemon's user and its administrators may seal it.")
        if self._seal is None:
            raise UnsupportedOperation("An ephemeral realm cannot be sealed.", hint="stop the daemon")
        self._seal()
        return Empty()

    def get_seal_status(self, _call: Call) -> SealStatus:
        """GetSealStatus."""
        return SealStatus(sealed=False, root_key_source=self._source, pid=os.getpid())

    def unseal(self, _call: Call) -> SealStatus:
        """Unseal: there is nothing to unseal.

        Raises:
            Conflict: always.
        """
        raise Conflict("The key daemon is not sealed.")
