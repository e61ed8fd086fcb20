"""The realm's time goes on only: what was over is over, and what cannot be undone waits for time that has really passed."""

import os
import time

import pytest

from kmsd.app import Daemon
from kmsd.authz.principal import make_caller
from kmsd.clock import JUMP_SECONDS, RealmClock
from kmsd.config import Config
from kmsd.realm import initialise, open_realm
from kmsd.root.keyring import SealType
from kmsfs.errors import AccessDenied, TokenExpired
from kmsfs.formats.frame import Request


class Hands:
    """A clock on the wall, and what passes."""

    def __init__(self, wall=1000.0, passed=50.0):
        self.wall, self.passed = wall, passed

    def clock(self, floor=0.0):
        return RealmClock(lambda: self.wall, lambda: self.passed, floor)


def test_it_follows_the_wall_and_never_goes_back():
    hands = Hands()
    clock = hands.clock()
    assert clock() == 1000.0
    hands.wall += 5
    hands.passed += 5
    assert clock() == 1005.0 == clock.steady()
    hands.wall -= 500  # set back: what has passed counts
    hands.passed += 2
    assert clock() == 1007.0
    hands.wall = 2000.0  # set ahead, and back again
    assert clock() == 2000.0 and clock.steady() == 1007.0
    hands.wall = 1010.0
    hands.passed += 1
    assert clock() == 2001.0 and clock.steady() == 1008.0  # it goes on: what was given out meanwhile ends, too


def test_it_begins_where_the_log_ends():
    assert Hands(wall=10.0).clock(floor=500.0)() == 500.0


def test_a_jump_is_seen():
    hands = Hands()
    clock = hands.clock()
    hands.wall += JUMP_SECONDS / 2
    assert not clock.jumped
    hands.wall += JUMP_SECONDS
    assert clock.jumped


@pytest.fixture
def realm(tmp_path):
    config = Config(tmp_path / "state", tmp_path / "s", administrators=(os.getuid(),))
    initialise(config, SealType.KEYFILE, None)
    return config


def make(config, monkeypatch, wall):
    monkeypatch.setattr(time, "time", lambda: wall[0])
    daemon = Daemon(config, open_realm(config, None))
    me = make_caller(daemon._account, os.getuid(), 0, 1, (), administrators=daemon._state.administrators)
    return daemon, lambda operation, caller=me, **parameters: daemon._pipeline.run(caller, Request(1, operation, parameters, None, None), 1)[0]


def test_jumps_revive_nothing(realm, monkeypatch):
    """A grant, credentials and imported material whose time was over once stay so, over a restart too."""
    wall = [1_800_000_000.0]
    daemon, call = make(realm, monkeypatch, wall)
    stranger = make_caller(daemon._account, 4321, 4321, 1, ())
    key = call("CreateKey")["KeyMetadata"]["KeyId"]
    blob = call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    call("CreateGrant", KeyId=key, GranteePrincipal=stranger.principal, Operations=["Decrypt"], ExpiresInSeconds=3600)
    made = call("GetSessionToken", DurationSeconds=900)["Credentials"]
    enter = lambda: daemon._book.caller(made["AccessKeyId"], made["SessionToken"], daemon._clock())  # noqa: E731
    doomed = call("CreateKey")["KeyMetadata"]["KeyId"]
    call("ScheduleKeyDeletion", KeyId=doomed, PendingWindowInDays=7)
    assert call("Decrypt", stranger, CiphertextBlob=blob)["Plaintext"] == b"x" and enter()
    wall[0] += 30 * 86_400  # somebody sets the clock a month ahead
    for _ in range(2):
        with pytest.raises(AccessDenied):
            call("Decrypt", stranger, CiphertextBlob=blob)
        with pytest.raises(TokenExpired):
            enter()
        daemon._purge()
        assert call("DescribeKey", KeyId=doomed)["KeyMetadata"]["KeyState"] == "PendingDeletion"  # a week has not passed
        wall[0] = 1_800_000_100.0  # and back
    daemon._close()
    daemon._store.close()
    again, call = make(realm, monkeypatch, wall)
    with pytest.raises(AccessDenied):
        call("Decrypt", stranger, CiphertextBlob=blob)
    again._close()
    again._store.close()


def test_a_clock_that_was_wrong_is_put_right(realm, monkeypatch):
    from dataclasses import replace

    wall = [1_900_000_000.0]
    daemon, call = make(realm, monkeypatch, wall)
    call("CreateKey")
    daemon._close()
    daemon._store.close()
    wall[0] = 1_800_000_000.0
    accepted, _ = make(replace(realm, accept_clock=True), monkeypatch, wall)
    assert accepted._clock() == pytest.approx(1_800_000_000.0, abs=60)
    accepted._close()
    accepted._store.close()
