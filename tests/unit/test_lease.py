"""Leases are counted from when the daemon spoke, by a clock that goes on while the machine sleeps."""

import time

import pytest

from kmsfs.client import lease as room
from kmsfs.client.lease import Lease
from kmsfs.clock import passed
from kmsfs.quantity import LEASE_SECONDS, STORE_SECONDS, TAKEOVER_SECONDS


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(room, "passed", made)
    return made


def test_the_clock_goes_on_while_the_machine_sleeps():
    assert abs(passed() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


def test_nothing_heard_is_no_lease(clock):
    assert not Lease().holds
    held = Lease()
    held.asked(clock.now, {})
    assert held.holds and held.silent == 0
    clock.now += LEASE_SECONDS
    assert not held.holds


@pytest.mark.parametrize("other_clock", [0.0, -500.0, 7000.0])
def test_a_heartbeat_that_lay_in_the_socket_is_an_old_one(clock, other_clock):
    held = Lease()
    held.asked(clock.now, {})
    for _ in range(3):
        clock.now += 3
        held.heartbeat({"at": clock.now + other_clock - 0.001})
    assert held.holds and held.silent < 0.01
    sent = clock.now + 3
    clock.now += 3600
    held.heartbeat({"at": sent + other_clock - 0.001})
    assert not held.holds and 3590 < held.silent < 3600
    held.heartbeat({"at": clock.now + other_clock})
    assert held.holds


@pytest.mark.parametrize("other_clock", [0.0, -500.0, 7000.0])
def test_so_is_the_first_heartbeat_of_all(clock, other_clock):
    held = Lease()
    held.asked(clock.now, {"SentAt": clock.now + other_clock})
    sent = clock.now + 3
    clock.now += 25
    held.heartbeat({"at": sent + other_clock})
    assert not held.holds and 21 < held.silent < 23


def test_another_daemon_has_another_clock(clock):
    held = Lease()
    for offset in (0.0, 5000.0, -5000.0):
        clock.now += 100
        held.asked(clock.now, {"SentAt": clock.now + offset})
        clock.now += 9
        held.heartbeat({"at": clock.now + offset})
        assert held.holds and held.silent == 0


def test_what_was_asked_before_the_sleep_and_answered_after_it_is_old(clock):
    held = Lease()
    asked = clock.now
    clock.now += 60
    held.asked(asked, {})
    assert not held.holds
    held.asked(asked - 10, {})
    assert held.silent == 60


def test_a_lost_connection_ends_it_and_an_older_daemon_says_no_time(clock):
    held = Lease()
    held.heartbeat({"kind": "heartbeat"})
    assert held.holds
    held.lost()
    assert not held.holds
    clock.now += 100
    held.heartbeat({"kind": "heartbeat"})
    assert held.holds


def test_storing_ends_before_another_host_may_begin():
    assert LEASE_SECONDS + 5 < STORE_SECONDS <= TAKEOVER_SECONDS - 10
