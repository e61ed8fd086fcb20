"""Wait for what another process does in a moment."""

import time


def soon(expected, read, seconds=10):
    """Read until it is as expected; an OSError is read as its errno."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = read()
        except OSError as error:
            found = error.errno
        if found == expected:
            return
        assert time.monotonic() < deadline, (found, expected)
        time.sleep(0.01)
