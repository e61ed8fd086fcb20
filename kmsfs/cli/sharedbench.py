"""kmsfs bench shared: two daemons over one PostgreSQL."""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmsfs.cli.benchrealm import BenchRealm
from kmsfs.errors import KmsfsError, UsageError

_WRITES = 300
_READS = 3000
_REVOCATIONS = 100
_PATIENCE_SECONDS = 20.0


def bench_shared(url: str, rounds: int, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure calls of one daemon and of two, and how long what one revoked still works at the other.

    Raises:
        UsageError: if no database is named.
        KmsfsError: if the daemons do not start.
    """
    if not url:
        raise UsageError("`bench shared` needs an empty database", hint="--database postgresql://…")
    with tempfile.TemporaryDirectory(prefix="kmsfs-bench-", dir=folder) as place:
        hosts: list[BenchRealm] = []
        try:
            for name in ("one", "two"):
                (Path(place) / name).mkdir()
            first = BenchRealm(Path(place) / "one", made_by=("init", "--database", url))
            hosts.append(first)
            joined = ("join", "--database", url, "--keyring", first.state / "keyring.kms", "--code-file", "-")
            hosts.append(BenchRealm(Path(place) / "two", made_by=joined, code=first.made["recovery_code"]))
            for host in hosts:
                host.start()
            return _measure(hosts, rounds, tell)
        finally:
            for host in hosts:
                if host.pid:
                    host.stop()


def _measure(hosts: list[BenchRealm], rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    one, two = hosts
    key = one.call("CreateKey")["KeyMetadata"]["KeyId"]
    blob = one.call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    _until(lambda: _works(two, blob))
    rows = []
    tell("Decrypt")
    rows.append(["Decrypt", *_middle([_timed(lambda: one.call("Decrypt", CiphertextBlob=blob), _READS) for _ in range(rounds)])])
    tell("PutParameter")
    rows.append(["PutParameter", *_middle([_timed(lambda: _put(one, "/one"), _WRITES) for _ in range(rounds)])])
    tell("PutParameter on both hosts")
    rows.append(["PutParameter, both hosts together", *_middle([_together(hosts) for _ in range(rounds)])])
    tell("revocation")
    waits = []
    for _ in range(_REVOCATIONS):
        one.call("DisableKey", KeyId=key)
        began = time.perf_counter()
        _until(lambda: not _works(two, blob))
        waits.append(time.perf_counter() - began)
        one.call("EnableKey", KeyId=key)
        _until(lambda: _works(two, blob))
    rows.append(["disabled on one host until refused on the other", "", *_quantiles(waits)])
    return {"columns": ["operation", "calls/s", "p50 us", "p99 us"], "rows": rows}


def _timed(call: Callable[[], Any], count: int) -> tuple[int, float, float]:
    times = []
    began = time.perf_counter()
    for _ in range(count):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return round(count / (time.perf_counter() - began)), *_quantiles(times)


def _together(hosts: list[BenchRealm]) -> tuple[int, float, float]:
    """Let every host write at once; the rate is of all, the times are of each call."""
    found: list[tuple[int, float, float]] = []

    def write(host: BenchRealm, name: str) -> None:
        found.append(_timed(lambda: _put(host, name), _WRITES))

    threads = [threading.Thread(target=write, args=(host, f"/both/{number}")) for number, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50 = round(statistics.median(middle for _, middle, _ in found), 1)
    return sum(rate for rate, _, _ in found), p50, max(p99 for _, _, p99 in found)


def _put(host: BenchRealm, name: str) -> None:
    host.call("PutParameter", Name=name, Value="x", Type="String", Overwrite=True)


def _middle(runs: list[tuple[int, float, float]]) -> tuple[int, float, float]:
    return sorted(runs)[len(runs) // 2]


def _quantiles(times: list[float]) -> tuple[float, float]:
    in_order = sorted(times)
    return round(statistics.median(in_order) * 1e6, 1), round(in_order[int(len(in_order) * 0.99)] * 1e6, 1)


def _works(host: BenchRealm, blob: bytes) -> bool:
    try:
        host.call("Decrypt", CiphertextBlob=blob)
    except KmsfsError:
        return False
    return True


def _until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + _PATIENCE_SECONDS
    while not what():
        if time.monotonic() > ends:
            raise UsageError("one daemon does not learn of what the other did")
