"""kmsfs: a key management service, secret store and encrypted file system in one.

`kmsfs.client("kms")` and `kmsfs.client("ssm")` return clients with boto3's manners.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmsfs.client.boto import ServiceClient

__version__ = "0.1.0"


def client(service: str, *, socket: str | None = None, autostart: bool = True, **options: Any) -> "ServiceClient":
    """Return a client of `service` ("kms" or "ssm") whose methods are the operations in snake case.

    Args:
        service: "kms" or "ssm".
        socket: path of the daemon's socket; by default $KMSFS_SOCKET, the system daemon, or a private one.
        autostart: start a private daemon if none answers and no socket was named.
        options: `timeout` in seconds for a call (default 30).

    Raises:
        UsageError: if there is no such service.
        DaemonUnreachable: when a call finds no daemon.
    """
    from kmsfs.client.boto import make_client

    return make_client(service, socket=socket, autostart=autostart, **options)
