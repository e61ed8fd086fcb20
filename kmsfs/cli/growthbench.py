"""How costs grow with what is there: a realm and a volume of its own, filled step by step, measured at each step."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmsfs.client.locate import answers
from kmsfs.client.session import ClientSession
from kmsfs.errors import DaemonUnreachable, StorageError

_START_SECONDS = 120.0
_SAMPLES = 200
_CHANGES = 20
_GRANTS_MAX = 50_000
_PARAMETERS_MAX = 10_000
_STATEMENTS = (1, 10, 100, 250)
_LOOKS = 2000
_NO_QUOTAS = [word for name in ("cryptographic", "parameters", "management") for word in ("--quota", f"{name}=1e9")]
Tell = Callable[[str], None]
Table = dict[str, Any]


class _Realm:
    """A key daemon with a state of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "kmsd.sock"
        self._state = folder / "state"
        self._process: subprocess.Popen[bytes] | None = None
        self.talk: ClientSession
        done = subprocess.run(_kmsd("init", "--state", self._state), capture_output=True, check=False)
        if done.returncode:
            raise StorageError(f"no realm could be made in {folder}: {done.stderr.decode(errors='replace').strip()}")

    def start(self) -> float:
        """Start it; return how long it took until it answered, in seconds.

        Raises:
            DaemonUnreachable: if it does not.
        """
        began = time.perf_counter()
        command = _kmsd("serve", "--private", "--state", self._state, "--socket", self.socket, *_NO_QUOTAS)
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not answers(self.socket):
            if self._process.poll() is not None or time.perf_counter() - began > _START_SECONDS:
                raise DaemonUnreachable("the key daemon of the benchmark does not start")
            time.sleep(0.005)
        self.talk = ClientSession(socket=os.fspath(self.socket), autostart=False, timeout=_START_SECONDS)
        # Its socket takes connections before the keys are loaded.
        self.call("GetStatus")
        return time.perf_counter() - began

    def stop(self) -> None:
        """Stop it and wait."""
        if self._process is not None:
            self.talk.close()
            _end(self._process)

    def call(self, name: str, **parameters: Any) -> Any:
        """Call an operation."""
        return self.talk.call(name, parameters)

    @property
    def resident_mb(self) -> int:
        """Its memory."""
        return _resident_mb(self._process)


def bench_growth(up_to: int, folder: Path, tell: Tell) -> dict[str, Table]:
    """Return a table for each thing of which there may be many; `up_to` is how many keys and files there are at most.

    Raises:
        DaemonUnreachable, StorageError: if the realm cannot be made.
    """
    steps = [step for step in (10, 100, 1000, 10_000, 100_000, 1_000_000) if step <= up_to]
    with _realm(folder) as realm:
        tables = {
            "policy statements": _statements(realm, tell),
            "grants on a key": _grants(realm, [step for step in (*steps, _GRANTS_MAX) if step <= min(up_to, _GRANTS_MAX)], tell),
            "parameters": _parameters(realm, [step for step in steps if step <= _PARAMETERS_MAX], tell),
            "keys": _keys(realm, steps, tell),
        }
    with _realm(folder) as realm:
        tables["files in a directory"] = _directories(realm, [step for step in steps if step >= 1000], folder, tell)
    return tables


@contextmanager
def _realm(folder: Path) -> Iterator[_Realm]:
    with tempfile.TemporaryDirectory(prefix="kmsfs-growth-", dir=folder) as place:
        realm = _Realm(Path(place))
        realm.start()
        try:
            yield realm
        finally:
            realm.stop()


# --- the key service: microseconds a call, medians ------------------------------------------------------------


def _keys(realm: _Realm, steps: list[int], tell: Tell) -> Table:
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


def _all_keys(realm: _Realm) -> list[str]:
    found: list[str] = []
    marker: dict[str, str] = {}
    while True:
        page = realm.call("ListKeys", Limit=1000, **marker)
        found += [entry["KeyId"] for entry in page["Keys"]]
        if not page["Truncated"]:
            return found
        marker = {"Marker": page["NextMarker"]}


def _grants(realm: _Realm, steps: list[int], tell: Tell) -> Table:
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


def _statements(realm: _Realm, tell: Tell) -> Table:
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


def _parameters(realm: _Realm, steps: list[int], tell: Tell) -> Table:
    realm.call("PutParameter", Name="/secret", Value="secret", Type="SecureString")
    count, rows = 1, []
    for step in steps:
        tell(f"{step} parameters")
        while count < step:
            realm.call("PutParameter", Name=f"/app/{count % 10}/p{count}", Value="value", Type="String")
            count += 1
        rows.append([
            step, _median(realm, "GetParameter", Name="/app/1/p1"),
            _median(realm, "GetParameter", Name="/secret", WithDecryption=True),
            _median(realm, "GetParametersByPath", Path="/app/1"), _median(realm, "DescribeParameters"),
            _median(realm, "PutParameter", samples=_CHANGES, Name="/app/1/p1", Value="new", Type="String", Overwrite=True),
        ])  # fmt: skip
    columns = ["parameters", "GetParameter us", "… SecureString us", "GetParametersByPath (10) us", "DescribeParameters us", "PutParameter us"]
    return {"columns": columns, "rows": rows}


def _key_and_blob(realm: _Realm) -> tuple[str, bytes]:
    key = realm.call("CreateKey")["KeyMetadata"]["KeyId"]
    return key, realm.call("GenerateDataKey", KeyId=key, KeySpec="AES_256")["CiphertextBlob"]


def _median(realm: _Realm, operation: str, samples: int = _SAMPLES, **parameters: Any) -> int:
    times = []
    for _ in range(samples):
        began = time.perf_counter()
        realm.talk.call(operation, parameters)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e6)


# --- the mount: operations a second ---------------------------------------------------------------------------


def _directories(realm: _Realm, steps: list[int], folder: Path, tell: Tell) -> Table:
    rows = []
    with tempfile.TemporaryDirectory(prefix="kmsfs-growth-", dir=folder) as place:
        cipher, plain = Path(place) / "cipher", Path(place) / "plain"
        for step in steps:
            tell(f"{step} files in a directory")
            rows.append(_directory(realm, cipher, plain, step))
    columns = ["files", "create /s", "list and stat cold /s", "read /s", "unlink /s", "mount s", "mount MiB"]
    return {"columns": columns, "rows": rows}


def _directory(realm: _Realm, cipher: Path, plain: Path, count: int) -> list[Any]:
    many = plain / f"d{count}"
    with _mounted(realm, cipher, plain) as process:
        many.mkdir()
        made = _rate(count, lambda: _make_files(many, count))
        used = _resident_mb(process)
    began = time.perf_counter()
    with _mounted(realm, cipher, plain) as process:
        ready = time.perf_counter() - began
        listed = _rate(count, lambda: [entry.stat() for entry in os.scandir(many)])
        paths = [many / f"f{number * 7919 % count}" for number in range(min(count, _LOOKS))]
        read = _rate(len(paths), lambda: [path.read_bytes() for path in paths])
        removed = _rate(len(paths), lambda: list(map(os.unlink, paths)))
        return [count, made, listed, read, removed, round(ready, 2), max(used, _resident_mb(process))]


@contextmanager
def _mounted(realm: _Realm, cipher: Path, plain: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--quiet", "--socket", os.fspath(realm.socket), "mount", "--foreground"]
    process = subprocess.Popen([sys.executable, "-P", "-m", "kmsfs.cli", *options, os.fspath(cipher), os.fspath(plain)])
    try:
        while not os.path.ismount(plain):
            if process.poll() is not None:
                raise StorageError("the volume of the benchmark cannot be mounted")
            time.sleep(0.005)
        yield process
    finally:
        _end(process)


def _make_files(folder: Path, count: int) -> None:
    for number in range(count):
        with (folder / f"f{number}").open("wb", buffering=0) as stream:
            stream.write(b"x" * 100)


def _rate(count: int, act: Callable[[], object]) -> int:
    began = time.perf_counter()
    act()
    return round(count / (time.perf_counter() - began))


# --- processes ------------------------------------------------------------------------------------------------


def _kmsd(*words: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "kmsd", *(os.fspath(word) for word in words)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def _resident_mb(process: subprocess.Popen[bytes] | None) -> int:
    if process is None:
        return 0
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20
