"""What the daemon counts of itself: on the socket, over HTTP where asked, for the eyes that may see it, without names."""

import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmsfs import errors
from support.peers import as_user


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip


def test_on_the_socket(make_daemon):
    daemon = make_daemon("--administrator", str(os.getuid()))
    session = daemon.session()
    key = session.call("CreateKey", {"Description": "not told"})["KeyMetadata"]["KeyId"]
    for _ in range(3):
        session.call("Encrypt", {"KeyId": key, "Plaintext": b"x"})
    with pytest.raises(errors.KmsfsError):
        session.call("Encrypt", {"KeyId": "alias/none", "Plaintext": b"x"})
    with pytest.raises(errors.UnknownOperation):
        session.call("Nonsense", {})
    session.call("PutParameter", {"Name": "/not-told", "Value": "x", "Type": "SecureString"})
    text = session.call("GetMetrics", {})["Text"]
    found = samples(text)
    # The parameter's own Encrypt under its KMS key is a call too.
    assert found["kmsd_calls_total", "Encrypt", "ok"] == 4
    assert found["kmsd_calls_total", "Encrypt", "NotFoundException"] == 1
    assert found["kmsd_call_seconds_total", "Encrypt"] > 0
    assert found["kmsd_keys", "Enabled"] == 2 and found["kmsd_parameters",] == 1 and found["kmsd_connections",] >= 1
    assert found["kmsd_process_resident_memory_bytes",] > 1 << 20
    assert not any(word in text for word in ("not-told", "not told", key, "Nonsense"))


def test_over_http_on_loopback_alone(make_daemon):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    make_daemon("--metrics", f"127.0.0.1:{port}")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert ("kmsd_grants",) in samples(answer.read().decode())
    refused = subprocess.run(
        [sys.executable, "-m", "kmsd", "serve", "--ephemeral", "--metrics", "0.0.0.0:9"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2 and "loopback" in refused.stderr


@pytest.mark.root
def test_others_may_not(daemon):
    with as_user(daemon, 4321) as other, pytest.raises(errors.AccessDenied):
        other("GetMetrics")
