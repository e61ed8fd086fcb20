"""A root mount asks for short wake-ups while it has requests, and only then."""

import os
import struct
import time

import pytest

from kmsfs.mount.kernel.wakeups import DEVICE, wanted_microseconds

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.alone,
    pytest.mark.skipif(not DEVICE.exists(), reason="this kernel has no /dev/cpu_dma_latency"),
]


def limit():
    """What all who ask have agreed on, in microseconds."""
    with DEVICE.open("rb", buffering=0) as device:
        return struct.unpack("=i", device.read(4))[0]


def lowest_while_it_works(folder):
    for number in range(50):
        (folder / f"f{number}").touch()
    lowest = []
    for number in range(200):
        # Names that are not there, so that each is a request.
        (folder / f"absent{number}").exists()
        if number > 100:
            lowest.append(limit())
    return min(lowest)


@pytest.mark.skipif(DEVICE.exists() and limit() < 1000, reason="somebody else asks for short wake-ups now")
@pytest.mark.parametrize("options, expected", [((), True), (("--no-low-latency",), False)])
def test_asked_while_there_are_requests(make_mount, options, expected):
    mount = make_mount(*options).start()
    wanted = wanted_microseconds(os.cpu_count())
    assert (lowest_while_it_works(mount.plain) == wanted) == expected
    deadline = time.monotonic() + 5
    while limit() <= wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert limit() > wanted


def test_a_killed_mount_leaves_no_request_behind(make_mount):
    mount = make_mount().start()
    assert lowest_while_it_works(mount.plain) == wanted_microseconds(os.cpu_count())
    mount.kill()
    assert limit() > wanted_microseconds(os.cpu_count())
