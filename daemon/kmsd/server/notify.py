"""Tell systemd that the service is ready, alive or stopping (sd_notify(3))."""

import os
import socket


def notify(message: str) -> None:
    """Send a state such as READY=1; does nothing where no manager asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(message.encode())


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to hear WATCHDOG=1, or None."""
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 2_000_000 if microseconds else None
