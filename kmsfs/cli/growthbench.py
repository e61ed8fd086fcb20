"""How costs grow with what is there: a realm and a volume of its own, filled step by step, measured at each step."""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kmsfs.cli.benchrealm import BenchRealm, bench_realm
from kmsfs.cli.filegrowth import Table, Tell, grow_directory, grow_file, grow_writers
from kmsfs.errors import UsageError

_SAMPLES = 200
_CHANGES = 20
_GRANTS_MAX = 50_000
_FILLERS = 8
_STATEMENTS = (1, 10, 100, 250)
_FILE_MIB = (1, 16, 256, 1024, 8192, 65_536)
_WRITERS = (1, 2, 4, 8, 16, 32, 64)


def bench_growth(up_to: int, only: str, folder: Path, tell: Tell) -> dict[str, Table]:
    """Return a table for each thing of which there may be many; `up_to` is how many there are at most, of a file's size how many MiB, `only` one of them, if any.

    Raises:
        UsageError: if there is no such thing.
        DaemonUnreachable, StorageError: if the realm cannot be made.
    """
    steps = [step for step in (10, 100, 1000, 10_000, 100_000, 1_000_000) if step <= up_to]
    grants = [step for step in (*steps, _GRANTS_MAX) if step <= min(up_to, _GRANTS_MAX)]
    parts: dict[str, tuple[str, Callable[[BenchRealm], Table]]] = {
        "statements": ("policy statements", lambda realm: _statements(realm, tell)),
        "grants": ("grants on a key", lambda realm: _grants(realm, grants, tell)),
        "parameters": ("parameters", lambda realm: _parameters(realm, steps, tell)),
        "keys": ("keys", lambda realm: _keys(realm, steps, tell)),
        "files": ("files in a directory", lambda realm: grow_directory(realm, [step for step in steps if step >= 1000], folder, tell)),
        "size": ("size of a file", lambda realm: grow_file(realm, [size for size in _FILE_MIB if size <= up_to], folder, tell)),
        "writers": ("concurrent writers", lambda realm: grow_writers(realm, [many for many in _WRITERS if many <= up_to], folder, tell)),
    }
    if only and only not in parts:
        raise UsageError(f"nothing grows that is called {only!r}", hint=f"one of {', '.join(parts)}")
    tables = {}
    for name, (title, measure) in parts.items():
        if only in ("", name):
            with bench_realm(folder) as realm:
                tables[title] = measure(realm)
    return tables


# --- the key service: microseconds a call, medians ------------------------------------------------------------


def _keys(realm: BenchRealm, steps: list[int], tell: Tell) -> Table:
    key, blob = _key_and_blob(realm)
    count, rows = len(_all_keys(realm)), []
    for step in steps:
        tell(f"{step} keys")
        while count < step - _CHANGES:
            realm.call("CreateKey")
            count += 1
        create = _median(realm, "CreateKey", samples=_CHANGES)
        count += _CHANGES
        row = [
            count, _median(realm, "Decrypt", CiphertextBlob=blob), _median(realm, "DescribeKey", KeyId=key),
            _median(realm, "ListKeys"), create,
        ]  # fmt: skip
        realm.stop()
        rows.append([*row, round(realm.start(), 2), realm.resident_mb])
    columns = ["keys", "Decrypt us", "DescribeKey us", "ListKeys (100) us", "CreateKey us", "start s", "kmsd MiB"]
    return {"columns": columns, "rows": rows}


def _all_keys(realm: BenchRealm) -> list[str]:
    found: list[str] = []
    marker: dict[str, str] = {}
    while True:
        page = realm.call("ListKeys", Limit=1000, **marker)
        found += [entry["KeyId"] for entry in page["Keys"]]
        if not page["Truncated"]:
            return found
        marker = {"Marker": page["NextMarker"]}


def _grants(realm: BenchRealm, steps: list[int], tell: Tell) -> Table:
    key, blob = _key_and_blob(realm)
    account = realm.call("GetStatus")["Principal"].split(":")[4]
    count, rows = 0, []
    for step in steps:
        tell(f"{step} grants")
        while count < step:
            grantee = f"arn:kmsfs:iam::{account}:uid/{100_000 + count}"
            realm.call("CreateGrant", KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"])
            count += 1
        row = [step, _median(realm, "Decrypt", CiphertextBlob=blob), _median(realm, "ListGrants", KeyId=key, Limit=50)]
        rows.append([*row, _median(realm, "DescribeKey", KeyId=key)])
    return {"columns": ["grants", "Decrypt us", "ListGrants (50) us", "DescribeKey us"], "rows": rows}


def _statements(realm: BenchRealm, tell: Tell) -> Table:
    key, blob = _key_and_blob(realm)
    me = realm.call("GetStatus")["Principal"]
    mine = {"Sid": "Mine", "Effect": "Allow", "Principal": {"AWS": me}, "Action": "kms:*", "Resource": "*"}
    rows = []
    for count in _STATEMENTS:
        tell(f"{count} statements")
        others = [
            {"Effect": "Allow", "Principal": "*", "Action": "kms:GetPublicKey", "Resource": "*"} for _ in range(count - 1)
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": [*others, mine]}, separators=(",", ":"))
        realm.call("PutKeyPolicy", KeyId=key, Policy=policy)
        rows.append([count, _median(realm, "Decrypt", CiphertextBlob=blob)])
    return {"columns": ["statements", "Decrypt us"], "rows": rows}


def _parameters(realm: BenchRealm, steps: list[int], tell: Tell) -> Table:
    realm.call("PutParameter", Name="/secret", Value="secret", Type="SecureString")
    count, rows = 1, []
    for step in steps:
        tell(f"{step} parameters")
        began = time.perf_counter()
        _fill(realm, range(count, step))
        rate = round((step - count) / (time.perf_counter() - began))
        count = step
        row = [
            step, _median(realm, "GetParameter", Name="/app/1/p1"),
            _median(realm, "GetParameter", Name="/secret", WithDecryption=True),
            _median(realm, "GetParametersByPath", Path="/app/1"), _median(realm, "DescribeParameters"),
            _median(realm, "PutParameter", samples=_CHANGES, Name="/app/1/p1", Value="new", Type="String", Overwrite=True), rate,
        ]  # fmt: skip
        realm.stop()
        rows.append([*row, round(realm.start(), 2), realm.resident_mb])
    columns = [
        "parameters", "GetParameter us", "… SecureString us", "GetParametersByPath (10) us", "DescribeParameters us", "PutParameter us",
        f"new ones /s ({_FILLERS} clients)", "start s", "kmsd MiB",
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def _fill(realm: BenchRealm, numbers: range) -> None:
    """Put parameters, by several clients at once."""

    def put(part: range) -> None:
        for number in part:
            realm.call("PutParameter", Name=f"/app/{number % 10}/p{number}", Value="value", Type="String")

    with ThreadPoolExecutor(_FILLERS) as clients:
        list(clients.map(put, [numbers[first::_FILLERS] for first in range(_FILLERS)]))


def _key_and_blob(realm: BenchRealm) -> tuple[str, bytes]:
    key = realm.call("CreateKey")["KeyMetadata"]["KeyId"]
    return key, realm.call("GenerateDataKey", KeyId=key, KeySpec="AES_256")["CiphertextBlob"]


def _median(realm: BenchRealm, operation: str, samples: int = _SAMPLES, **parameters: Any) -> int:
    times = []
    for _ in range(samples):
        began = time.perf_counter()
        realm.talk.call(operation, parameters)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e6)
