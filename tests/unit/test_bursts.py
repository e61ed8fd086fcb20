"""Many who connect at once: none is turned away while somebody listens, and no socket of a busy daemon is taken for dead."""

import socket
import threading
import time

import pytest

from kmsd.server.listen import bind_socket
from kmsfs.client.locate import answers
from kmsfs.client.transport import Transport
from kmsfs.errors import DaemonUnreachable, UsageError


@pytest.fixture
def full(tmp_path):
    """A socket whose backlog is full; returns (path, listener)."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(0)
    waiting = []
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(str(path))
        except BlockingIOError:
            one.close()
            break
        waiting.append(one)
    yield path, listener
    for each in (*waiting, listener):
        each.close()


def test_who_comes_in_a_burst_waits(full):
    path, listener = full
    taken = []

    def take_in():
        time.sleep(0.3)
        taken.append(listener.accept()[0])

    thread = threading.Thread(target=take_in, daemon=True)
    thread.start()
    began = time.monotonic()
    transport = Transport(str(path), 10)
    assert 0.2 < time.monotonic() - began < 5
    assert transport._socket.gettimeout() == 10
    transport.close()
    thread.join()
    taken[0].close()


def test_who_waited_for_long_enough_is_told(full):
    began = time.monotonic()
    with pytest.raises(DaemonUnreachable, match="no key daemon answers"):
        Transport(str(full[0]), 0.5)
    assert 0.4 < time.monotonic() - began < 3


def test_a_busy_socket_is_alive(full):
    path, _ = full
    assert answers(path)
    with pytest.raises(UsageError, match="already listens"):
        bind_socket(path, 0o600)
    assert path.exists()


def test_a_dead_socket_is_replaced(tmp_path):
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    assert not answers(path)
    bind_socket(path, 0o600).close()
