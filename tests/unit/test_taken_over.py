"""A mount whose volume another one took over, and what the daemon does to its connections."""

import socket

import pytest

from kmsd.server.session import Session
from kmsfs.errors import DaemonUnreachable, VolumeBusy
from kmsfs.mount.run import RunningMount


class Connection:
    def __init__(self):
        self.closed = False

    def idle(self):
        return not self.closed

    def close(self):
        self.closed = True


class Daemon:
    """Gives connections, and says on each whether the volume is ours."""

    def __init__(self):
        self.opened = []
        self.refusal = None

    def open_transport(self):
        self.opened.append(Connection())
        return self.opened[-1]

    def claim(self, connection):
        assert not connection.closed
        if self.refusal is not None:
            raise self.refusal


def mount_of(daemon):
    mount = RunningMount.__new__(RunningMount)
    mount._session = mount._lease = daemon
    mount._lease_transport, mount._taken = None, None
    mount._claim()
    return mount


def test_a_connection_on_which_the_volume_was_refused_does_not_hold_it():
    daemon = Daemon()
    mount = mount_of(daemon)
    mount._keep_lease()
    assert len(daemon.opened) == 1
    daemon.opened[0].close()
    for refusal in (VolumeBusy("taken over"), DaemonUnreachable("away")):
        daemon.refusal = refusal
        for _ in range(3):
            with pytest.raises(type(refusal)):
                mount._keep_lease()
            assert daemon.opened[-1].closed
    daemon.refusal = None
    mount._keep_lease()
    mount._keep_lease()
    assert len(daemon.opened) == 8 and not daemon.opened[-1].closed


def test_why_nothing_is_stored_is_logged_once(caplog):
    daemon = Daemon()
    mount = mount_of(daemon)
    for _ in range(2):
        daemon.opened[-1].close()
        daemon.refusal = VolumeBusy("taken over")
        for _ in range(3):
            with pytest.raises(VolumeBusy):
                mount._keep_lease()
        daemon.refusal = None
        mount._keep_lease()
    assert caplog.text.count("nothing more is stored: taken over") == 2


def test_who_is_cut_off_is_cut_off_at_once():
    """Not when the loop comes round to it: until then he would take what he holds for his."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)

    class LazyTransport:
        def get_extra_info(self, _name):
            return ours

        def is_closing(self):
            return ours.fileno() < 0

        def abort(self):
            pass

    session = Session.__new__(Session)
    session._transport = LazyTransport()
    session.end()
    assert theirs.recv(1) == b""
    ours.close()
    session.end()
