"""Leases are counted from when the daemon spoke, by a clock that goes on while the machine sleeps."""

import time
from types import SimpleNamespace

import pytest

from kmsfs.client import lease as room
from kmsfs.client import watch
from kmsfs.client.lease import Lease
from kmsfs.client.watch import LOST, RESUMED, KeyWatcher
from kmsfs.clock import passed
from kmsfs.errors import DaemonUnreachable, DeadlineExceeded, KeyDisabled, VolumeBusy
from kmsfs.mount.volume import VolumeLease
from kmsfs.quantity import LEASE_SECONDS, STORE_SECONDS, TAKEOVER_SECONDS
from support.waiting import soon


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(room, "passed", made)
    return made


def test_the_clock_goes_on_while_the_machine_sleeps(monkeypatch):
    monkeypatch.setattr(time, "clock_gettime", lambda which: {time.CLOCK_BOOTTIME: 7.0}[which])
    assert passed() == 7.0


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


class Stream:
    """A daemon that answers, and then has spoken at the times that are given."""

    def __init__(self, clock, heartbeats):
        self.clock, self.heartbeats, self.opened = clock, heartbeats, 0

    def open_transport(self):
        self.opened += 1
        return self

    def call(self, _operation, _request):
        return {"r": {"SentAt": self.clock.now}}

    def receive(self, timeout):
        if not self.heartbeats:
            time.sleep(0.02)
            raise DeadlineExceeded("silence")
        self.clock.now += self.heartbeats.pop(0)
        return {"ev": {"kind": "heartbeat", "at": self.clock.now}}

    def close(self):
        pass


def test_nothing_counts_before_it_is_known_that_the_lease_is_held(clock, monkeypatch):
    monkeypatch.setattr(watch, "passed", clock)
    stream, held = Stream(clock, []), []

    def guard():
        held.append(clock.now)
        raise VolumeBusy("taken over")

    watcher = KeyWatcher(stream, ["k"], lambda _event: None, guard)
    with pytest.raises(VolumeBusy):
        watcher.start(patient=False)
    watcher.close()
    assert held and not watcher.alive and watcher.silent > STORE_SECONDS


def test_nor_does_a_heartbeat(clock, monkeypatch):
    monkeypatch.setattr(watch, "passed", clock)
    stream, asked = Stream(clock, [3, 3]), []

    def guard():
        asked.append(clock.now)
        if len(asked) > 2:
            raise VolumeBusy("taken over")

    watcher = KeyWatcher(stream, ["k"], lambda _event: None, guard)
    watcher.start()
    soon(True, lambda: len(asked) >= 3)
    watcher.close()
    # The answer at 1000, the first heartbeat at 1003; the second, at 1006, came after the lease was lost.
    assert asked[:3] == [1000, 1003, 1006] and watcher.silent == 3


@pytest.mark.parametrize(
    ("refusal", "told"),
    [(KeyDisabled("disabled"), True), (VolumeBusy("taken over"), False), (DaemonUnreachable("away again"), False)],
)
def test_a_daemon_that_is_back_and_says_no_is_believed_at_once(clock, monkeypatch, refusal, told):
    """Not where somebody else has what is held here: nothing is to be asked for then."""
    monkeypatch.setattr(watch, "passed", clock)
    monkeypatch.setattr(watch, "_RETRY_SECONDS", 0.01)
    asked, events = [], []

    def guard():
        asked.append(clock.now)
        if len(asked) > 1:
            raise refusal

    watcher = KeyWatcher(Stream(clock, []), ["k"], lambda event: events.append(event["kind"]), guard)
    watcher.start()
    soon(True, lambda: len(asked) >= 3)
    watcher.close()
    assert events[0] == LOST and (RESUMED in events) == told
    assert watcher.silent == 0 and clock.now == 1000


def test_who_was_refused_his_lease_stores_nothing():
    class Answers:
        def __init__(self, *answers):
            self.answers = list(answers)

        def call(self, _operation, _request):
            return self.answers.pop(0)

    opened = {"Session": 4, "UncleanSessions": [], "FreshnessHead": b"", "FreshnessMayBegin": True}
    config = SimpleNamespace(key_arn="arn", volume_id=bytes(16))
    alone, shared = VolumeLease(config, read_only=False), VolumeLease(config, read_only=False)
    alone.claim(Answers({"r": opened}))
    assert alone.may_store(1e9)
    shared.claim(Answers({"r": {**opened, "StoreSeconds": STORE_SECONDS}}))
    assert shared.may_store(STORE_SECONDS - 1) and not shared.may_store(STORE_SECONDS)
    busy = {"e": {"code": VolumeBusy.code, "message": "taken over"}}
    with pytest.raises(VolumeBusy):
        shared.claim(Answers(busy))
    assert not shared.may_store(0)
    shared.claim(Answers({"r": {**opened, "StoreSeconds": STORE_SECONDS}}))
    assert shared.may_store(0)
    with pytest.raises(VolumeBusy):
        alone.claim(Answers(busy))
    assert not alone.may_store(0)


def test_storing_ends_before_another_host_may_begin():
    assert LEASE_SECONDS + 5 < STORE_SECONDS <= TAKEOVER_SECONDS - 10
