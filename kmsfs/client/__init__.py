"""Speak to kmsd: transport, sessions, boto3-like clients, the data-key provider of the mount.

The package is callable, so that `kmsfs.client("kms")` works as `boto3.client("kms")` does.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmsfs.client.boto import ServiceClient


class _CallableModule(ModuleType):
    def __call__(
        self, service: str, *, socket: str | None = None, autostart: bool = True, timeout: float = 30.0
    ) -> "ServiceClient":
        """Return a client of `service`: see `kmsfs.client.boto.make_client`."""
        from kmsfs.client.boto import make_client

        return make_client(service, socket=socket, autostart=autostart, timeout=timeout)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"kmsfs.client has no attribute {name!r}")


sys.modules[__name__].__class__ = _CallableModule
