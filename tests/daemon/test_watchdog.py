"""What the daemon tells systemd: that work gets done, not only that it runs."""

import os
import socket
import sqlite3

import pytest

from support.waiting import soon


@pytest.fixture
def watched(fresh_daemon, tmp_path, monkeypatch):
    """A daemon under a manager that wants a sign of life five times a second: (daemon, `heard` the last message in time)."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(2)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    daemon = fresh_daemon.start()

    def heard():
        try:
            return manager.recv(4096).decode()
        except TimeoutError:
            return ""

    yield daemon, heard
    manager.close()


def test_signs_of_life_until_the_state_is_not_its_own(watched):
    daemon, heard = watched
    soon("WATCHDOG=1\nSTATUS=serving", heard)
    daemon.session().call("CreateKey", {})
    assert heard() == "WATCHDOG=1\nSTATUS=serving"
    with sqlite3.connect(daemon.state / "state.db") as database:
        database.execute("UPDATE head SET blob = ?", (os.urandom(80),))
    soon("", heard)


def test_a_log_that_cannot_be_written_is_no_reason_to_be_started_anew(watched):
    daemon, heard = watched
    soon("WATCHDOG=1\nSTATUS=serving", heard)
    with sqlite3.connect(daemon.state / "state.db") as database:
        database.execute("ALTER TABLE head RENAME TO away")
    soon(True, lambda: heard().startswith("WATCHDOG=1\nSTATUS=not serving: "))
    with sqlite3.connect(daemon.state / "state.db") as database:
        database.execute("ALTER TABLE away RENAME TO head")
    soon("WATCHDOG=1\nSTATUS=serving", heard)
