"""kmsfs bench: the AES-GCM core, the key service, and the mount beside its peers; medians of alternating rounds."""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmsfs.aead.bare import bare_seal_loop
from kmsfs.aead.gcm import GcmKey
from kmsfs.api.shapes.crypto import BATCH_MAX
from kmsfs.cli.benchrealm import bench_realm
from kmsfs.client.locate import private_daemon
from kmsfs.client.remote import to_exception
from kmsfs.client.session import ClientSession
from kmsfs.errors import UsageError

_SIZES = (4096, 16384, 65536, 1 << 20)
_ROUND_SECONDS = 0.3
_CALLS = 3000
_BATCHES = 40


def run_benchmarks(
    what: str, peers: list[str], rounds: int, folder: Path, *, low_latency: bool, up_to: int, only: str, database: str, quiet: bool
) -> dict[str, Any]:
    """Run the named part, or all but door, growth and shared; return tables by name. `low_latency` is that of `kmsfs mount`.

    Raises:
        UsageError: if there is no such part.
    """
    from kmsfs.cli.doorbench import bench_door
    from kmsfs.cli.growthbench import bench_growth
    from kmsfs.cli.mountbench import bench_mount
    from kmsfs.cli.sharedbench import bench_shared

    parts: dict[str, Callable[[Callable[[str], None]], dict[str, Any]]] = {
        "aead": lambda tell: _bench_aead(rounds, tell),
        "kms": lambda tell: _bench_kms(rounds, tell),
        "mount": lambda tell: bench_mount(peers, rounds, folder, tell, low_latency=low_latency),
    }
    alone: dict[str, Callable[[Callable[[str], None]], dict[str, Any]]] = {
        "door": lambda tell: bench_door(peers, rounds, folder, tell),
        "growth": lambda tell: bench_growth(up_to, only, folder, tell),
        "shared": lambda tell: {"shared": bench_shared(database, rounds, folder, tell)},
    }
    if what not in (*parts, *alone, "all"):
        raise UsageError(f"no benchmark {what!r}", hint=f"one of {', '.join((*parts, *alone))}, all")
    from rich.console import Console
    from rich.status import Status

    with Status("measuring", console=Console(stderr=True, quiet=quiet)) as status:
        tell = lambda text: status.update(f"measuring {text}")  # noqa: E731
        if what in alone:
            return alone[what](tell)
        return {name: parts[name](tell) for name in (parts if what == "all" else [what])}


def _bench_aead(rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    rows = []
    for size in _SIZES:
        tell(f"AES-GCM, chunks of {size} bytes")
        ours, bare = [], []
        for _ in range(rounds):
            ours.append(_rate(size, _core_loop(size)))
            bare.append(_rate(size, bare_seal_loop(size, os.urandom)))
        core, plain = statistics.median(ours), statistics.median(bare)
        rows.append([size, round(core), round(plain), round(core / plain, 2)])
    return {"columns": ["chunk bytes", "core MB/s", "bare loop MB/s", "ratio"], "rows": rows}


def _core_loop(size: int) -> Callable[[], int]:
    """Seal 1 MiB as chunks of `size`, as a write does."""
    key = GcmKey(os.urandom(32))
    total = max(size, 1 << 20)
    plain = memoryview(os.urandom(total))
    out = memoryview(bytearray(total + 16))
    aads = [index.to_bytes(36, "little") for index in range(total // size)]

    def once() -> int:
        key.seal_run(os.urandom, plain, size, aads, out)
        return total

    return once


def _rate(_size: int, once: Callable[[], int]) -> float:
    once()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < _ROUND_SECONDS:
        done += once()
    return done / (time.perf_counter() - start) / 1e6


def _bench_kms(rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    state = private_daemon().state.parent
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Where the user's own daemon has its state: on a disk, as what is durable there is what is measured.
    with bench_realm(state) as realm:
        return _measure_kms(realm.talk, os.fspath(realm.socket), rounds, tell)


def _measure_kms(talk: ClientSession, path: str, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    key, signer, blob, name = _prepare(talk)
    operations: dict[str, tuple[str, dict[str, Any]]] = {
        "GenerateDataKey": ("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}),
        "Decrypt": ("Decrypt", {"CiphertextBlob": blob}),
        "Encrypt": ("Encrypt", {"KeyId": key, "Plaintext": b"x" * 64}),
        "Sign (P-256)": ("Sign", {"KeyId": signer, "Message": b"x" * 64, "SigningAlgorithm": "ECDSA_SHA_256"}),
        "GetParameter(SecureString)": ("GetParameter", {"Name": name, "WithDecryption": True}),
        "PutParameter, durably": ("PutParameter", {"Name": f"{name}/text", "Value": "text", "Type": "String", "Overwrite": True}),
    }
    rows = []
    for label, (operation, parameters) in operations.items():
        for clients in (1, 8, 64):
            tell(f"{label}, {clients} client(s)")
            runs = [_call_many(path, operation, parameters, clients) for _ in range(rounds)]
            middle = sorted(runs)[len(runs) // 2]
            rows.append([label, clients, *middle])
        tell(f"{label}, pipelined")
        piped = statistics.median(_pipelined(talk, operation, parameters) for _ in range(rounds))
        rows.append([label, "1, pipelined", round(piped), "", ""])
        tell(f"{label}, half load")
        rows.append([label, "1, at half load", *_paced(talk, operation, parameters, piped / 2)])
    tell("batches")
    for label, depth in (("1", 1), ("1, pipelined", 4)):
        batched = statistics.median(_batched(talk, key, depth) for _ in range(rounds))
        rows.append(["GenerateDataKeyBatch (keys)", label, round(batched), "", ""])
    return {"columns": ["operation", "clients", "calls/s", "p50 us", "p99 us"], "rows": rows}


def _prepare(talk: ClientSession) -> tuple[str, str, bytes, str]:
    made = talk.call("CreateKey", {"Description": "kmsfs bench; may be deleted"})
    key = made["KeyMetadata"]["KeyId"]
    blob = talk.call("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"})["CiphertextBlob"]
    name = f"/kmsfs-bench/{os.getpid()}"
    talk.call("PutParameter", {"Name": name, "Value": "secret", "Type": "SecureString", "KeyId": key})
    signer = talk.call("CreateKey", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "Description": "kmsfs bench; may be deleted"})
    return key, signer["KeyMetadata"]["KeyId"], blob, name


def _call_many(path: str, operation: str, parameters: dict[str, Any], clients: int) -> tuple[int, float, float]:
    talk = ClientSession(socket=path, autostart=False)
    times: list[float] = []

    def work(count: int) -> None:
        """Call so often, and keep how long each call took."""
        mine = []
        for _ in range(count):
            start = time.perf_counter()
            talk.call(operation, parameters)
            mine.append(time.perf_counter() - start)
        times.extend(mine)

    threads = [threading.Thread(target=work, args=(_CALLS // clients,)) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    talk.close()
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return round(len(times) / spent), round(p50 * 1e6, 1), round(p99 * 1e6, 1)


def _paced(talk: ClientSession, operation: str, parameters: dict[str, Any], rate: float) -> tuple[int, float, float]:
    """Calls at a rate, one after the other: how long each takes while the daemon has as much to do as it has to spare."""
    times = []
    start = time.perf_counter()
    for number in range(_CALLS):
        due = start + number / rate
        while (now := time.perf_counter()) < due:
            continue
        talk.call(operation, parameters)
        times.append(time.perf_counter() - now)
    spent = time.perf_counter() - start
    times.sort()
    return round(_CALLS / spent), round(times[_CALLS // 2] * 1e6, 1), round(times[_CALLS * 99 // 100] * 1e6, 1)


def _pipelined(talk: ClientSession, operation: str, parameters: dict[str, Any]) -> float:
    """Calls per second with 64 requests under way: what the daemon does when its client is not the limit."""
    transport = talk.open_transport()
    depth, left = 64, _CALLS
    start = time.perf_counter()
    for _ in range(depth):
        transport.send(operation, parameters)
    for done in range(left):
        _require_answer(transport.receive())
        if done + depth < left:
            transport.send(operation, parameters)
    spent = time.perf_counter() - start
    transport.close()
    return left / spent


def _require_answer(message: dict[str, Any]) -> None:
    if "e" in message:
        raise to_exception(message["e"])


def _batched(talk: ClientSession, key: str, depth: int) -> float:
    """Data keys per second in batches, so many of them under way."""
    contexts = [{"file": f"{number:032x}"} for number in range(BATCH_MAX)]
    request = {"KeyId": key, "EncryptionContexts": contexts}
    transport = talk.open_transport()
    start = time.perf_counter()
    for _ in range(depth):
        transport.send("GenerateDataKeyBatch", request)
    for done in range(_BATCHES):
        _require_answer(transport.receive())
        if done + depth < _BATCHES:
            transport.send("GenerateDataKeyBatch", request)
    spent = time.perf_counter() - start
    transport.close()
    return _BATCHES * len(contexts) / spent
