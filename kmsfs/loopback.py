"""Addresses on loopback: plain HTTP stays on this machine."""

import ipaddress

from kmsfs.errors import UsageError


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return (address, port) of `127.0.0.1:4599` or `[::1]:4599`.

    Raises:
        UsageError: if it is not a loopback address with a port.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
    except ValueError as error:
        raise UsageError(f"{text!r} is no address with a port", hint="such as 127.0.0.1:4599") from error
    if not address.is_loopback or not 0 <= number < 1 << 16:
        raise UsageError(f"{text!r} is not on loopback: plain HTTP stays on this machine", hint="such as 127.0.0.1:4599")
    return str(address), number
