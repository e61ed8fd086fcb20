"""Short wake-ups: asked for while requests come one upon the other, and let go when they end."""

import fcntl
import os
import struct
import threading
import time

import pytest

from kmsfs.mount.kernel.wakeups import DENSE, WakeUps, wanted_microseconds


@pytest.fixture
def bell():
    descriptor = os.eventfd(0)
    yield descriptor
    os.close(descriptor)


def asked(device):
    data = device.read_bytes()
    return [value for (value,) in struct.iter_unpack("=i", data)]


def test_dense_requests_ask_and_a_pause_lets_go(bell, tmp_path):
    device = tmp_path / "device"
    device.touch()
    reader, writer = os.pipe()
    wake_ups = WakeUps(device)
    wanted = wanted_microseconds(os.cpu_count())
    for _ in range(DENSE - 1):
        wake_ups.served()
    assert asked(device) == [-1]
    wake_ups.served()
    wake_ups.served()
    assert asked(device) == [-1, wanted]
    os.write(writer, b"1")
    wake_ups.wait(reader, bell)
    assert asked(device) == [-1, wanted]
    os.read(reader, 1)
    threading.Timer(0.1, os.write, (writer, b"1")).start()
    began = time.monotonic()
    wake_ups.wait(reader, bell)
    assert asked(device) == [-1, wanted, -1]
    assert time.monotonic() - began > 0.05
    wake_ups.served()
    assert asked(device) == [-1, wanted, -1]
    wake_ups.close()


def test_few_requests_with_pauses_never_ask(bell, tmp_path):
    device = tmp_path / "device"
    device.touch()
    reader, writer = os.pipe()
    wake_ups = WakeUps(device)
    os.write(writer, b"1")
    for _ in range(10):
        for _ in range(DENSE - 1):
            wake_ups.served()
        wake_ups.wait(reader, bell)
    assert asked(device) == [-1]


def test_without_the_device_it_only_waits(bell, tmp_path, caplog):
    reader, writer = os.pipe()
    os.write(writer, b"1")
    for device in (None, tmp_path / "absent", "/dev/full"):
        wake_ups = WakeUps(device)
        for _ in range(DENSE):
            wake_ups.served()
        wake_ups.wait(reader, bell)
        wake_ups.close()
        wake_ups.close()
    assert caplog.text.count("wake-ups stay") == 1


def test_descriptors_past_1023_are_waited_for_too(bell):
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1500)
    os.write(writer, b"1")
    wake_ups = WakeUps(None)
    for _ in range(DENSE):
        wake_ups.served()
    wake_ups.wait(high, bell)
    for descriptor in (reader, writer, high):
        os.close(descriptor)


def test_the_bell_ends_the_wait(bell):
    reader, writer = os.pipe()
    threading.Timer(0.1, os.eventfd_write, (bell, 1)).start()
    WakeUps(None).wait(reader, bell)
    os.close(reader)
    os.close(writer)


def test_big_machines_let_idle_processors_halt():
    assert [wanted_microseconds(number) for number in (1, 4, 5, 64)] == [0, 0, 2, 2]
