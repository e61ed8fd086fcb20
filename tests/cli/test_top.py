"""What happens between two readings of the daemon's counters, and the command that shows it."""

import json
import os
import subprocess
import sys
import threading

import pytest

from kmsfs.cli.rates import Reading, between, read

TEXT = """# TYPE kmsd_calls counter
kmsd_calls_total{operation="Decrypt",code="ok"} 10.0
kmsd_calls_total{operation="Decrypt",code="AccessDeniedException"} 2.0
# TYPE kmsd_call_seconds counter
kmsd_call_seconds_total{operation="Decrypt"} 0.5
# TYPE kmsd_keys gauge
kmsd_keys{state="Enabled"} 3.0
kmsd_keys{state="Disabled"} 1.0
"""


def test_a_reading():
    found = read(TEXT, 5.0)
    assert found.calls == {("Decrypt", "ok"): 10.0, ("Decrypt", "AccessDeniedException"): 2.0}
    assert found.seconds == {"Decrypt": 0.5} and found.gauges["kmsd_keys"] == 4.0
    with pytest.raises(ValueError):
        read("rubbish {", 0.0)


def test_rates_between_two_readings():
    before = read(TEXT, 0.0)
    now = Reading(2.0, {("Decrypt", "ok"): 16.0, ("Decrypt", "AccessDeniedException"): 6.0, ("Sign", "ThrottlingException"): 2.0}, {"Decrypt": 0.51, "Sign": 0.0})
    found = between(before, now)
    assert (found["calls"], found["errors"], found["denials"]) == (6.0, 3.0, 2.0)
    assert [(row["operation"], row["calls"], row["errors"], row["denials"], round(row["mean_us"])) for row in found["operations"]] == [
        ("Decrypt", 5.0, 2.0, 2.0, 1000), ("Sign", 1.0, 1.0, 0.0, 0),
    ]  # fmt: skip
    assert between(now, now)["operations"] == []


def test_a_daemon_that_was_started_anew_counts_from_nothing():
    found = between(read(TEXT, 0.0), Reading(1.0, {("Sign", "ok"): 3.0}, {"Sign": 0.003}))
    assert found["calls"] == 3.0 and [row["operation"] for row in found["operations"]] == ["Sign"]


@pytest.mark.fuse
def test_the_command(daemon, make_mount):
    mounted = make_mount().start()
    stop = threading.Event()

    def work():
        session = daemon.session()
        while not stop.wait(0.01):
            session.call("GenerateRandom", {"NumberOfBytes": 8})
        session.close()

    threading.Thread(target=work, daemon=True).start()
    environment = {**os.environ, "KMSFS_SOCKET": str(daemon.socket)}
    command = [sys.executable, "-m", "kmsfs.cli"]
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 60}
    try:
        done = subprocess.run([*command, "--json", "top", "--interval", "0.5", "--count", "2"], **options)
        human = subprocess.run([*command, "top", "--interval", "0.5", "--count", "1"], **options)
    finally:
        stop.set()
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 2, done.stderr
    for look in looks:
        rates = {row["operation"]: row["calls"] for row in look["operations"]}
        assert 5 < rates["GenerateRandom"] < 200
        (here,) = [row for row in look["mounts"] if row["mountpoint"] == str(mounted.plain)]
        assert here["pid"] == mounted.process.pid and here["memory_bytes"] > 1 << 20
    assert "GenerateRandom" in human.stdout and str(mounted.plain)[:20] in human.stdout.replace("\n", "")
