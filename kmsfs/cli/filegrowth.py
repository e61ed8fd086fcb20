"""How the costs of files grow: entries of a directory, the size of a file, writers at once. A volume of its own for each."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmsfs.cli.benchrealm import BenchRealm, end_process, resident_mb
from kmsfs.errors import StorageError

Tell = Callable[[str], None]
Table = dict[str, Any]
_LOOKS = 2000
_MIB = 1 << 20
_BLOCK = 4096
_APPENDS = 64
_OVERWRITES = 1024
_SYNCS = 64
_RECORDS = 4096
_RECORDS_A_SYNC = 8


# --- a directory, and a volume of so many files -----------------------------------------------------------------


def grow_directory(realm: BenchRealm, steps: list[int], folder: Path, tell: Tell) -> Table:
    """Return rates of one directory with so many files, and what the volume costs at the mount, in memory and in `kmsfs check`.

    Raises:
        StorageError: if the volume cannot be mounted, or does not pass its check.
    """
    columns = ["files", "create /s", "list and stat cold /s", "lookup and stat /s", "read /s", "unlink /s", "mount s", "mount MiB", "check s"]
    return _grown(columns, steps, folder, tell, lambda cipher, plain, count: _directory(realm, cipher, plain, count))


def _directory(realm: BenchRealm, cipher: Path, plain: Path, count: int) -> list[Any]:
    many = plain / f"d{count}"
    some = [many / f"f{number * 7919 % count}" for number in range(min(count, _LOOKS))]
    with _mounted(realm, cipher, plain) as process:
        many.mkdir()
        made = _rate(count, lambda: _make_files(many, count))
        used = resident_mb(process)
    with _mounted(realm, cipher, plain) as process:
        looked = _rate(len(some), lambda: list(map(os.stat, some)))
        used = max(used, resident_mb(process))
    began = time.perf_counter()
    with _mounted(realm, cipher, plain) as process:
        ready = time.perf_counter() - began
        listed = _rate(count, lambda: [entry.stat() for entry in os.scandir(many)])
        read = _rate(len(some), lambda: [path.read_bytes() for path in some])
        removed = _rate(len(some), lambda: list(map(os.unlink, some)))
        used = max(used, resident_mb(process))
    return [count, made, listed, looked, read, removed, round(ready, 2), used, round(_check(realm, cipher), 1)]


def _make_files(folder: Path, count: int) -> None:
    for number in range(count):
        with (folder / f"f{number}").open("wb", buffering=0) as stream:
            stream.write(b"x" * 100)


def _check(realm: BenchRealm, cipher: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(_kmsfs(realm, "--quiet", "check", cipher), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(f"the volume of the benchmark does not pass its check: {done.stderr.strip()}")
    return time.perf_counter() - began


# --- one file ---------------------------------------------------------------------------------------------------


def grow_file(realm: BenchRealm, sizes: list[int], folder: Path, tell: Tell) -> Table:
    """Return rates of one file of so many MiB. 4 KiB of each MiB are stored, so its map is as high and as wide as that of a full one.

    Raises:
        StorageError: if the volume cannot be mounted.
    """
    columns = [
        "MiB", "append MB/s", "random 4 KiB writes, fsync each 32 /s", "fsync of one 4 KiB write us", "open and first read us",
        "random 4 KiB reads cold /s", "mount MiB",
    ]  # fmt: skip
    return _grown(columns, sizes, folder, tell, lambda cipher, plain, size: _file(realm, cipher, plain, size))


def _file(realm: BenchRealm, cipher: Path, plain: Path, size: int) -> list[Any]:
    path, places = plain / f"f{size}", random.Random(size)  # noqa: S311  (where to write, not what)
    block = os.urandom(_BLOCK)
    with _mounted(realm, cipher, plain):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        for number in range(size):
            os.pwrite(file, block, number * _MIB)
        os.ftruncate(file, size * _MIB)
        os.fsync(file)
        os.close(file)
    with _mounted(realm, cipher, plain) as process:
        began = time.perf_counter()
        file = os.open(path, os.O_RDWR)
        os.pread(file, _BLOCK, places.randrange(size) * _MIB)
        opened = time.perf_counter() - began
        cold = _rate(_LOOKS, lambda: [os.pread(file, _BLOCK, places.randrange(size) * _MIB) for _ in range(_LOOKS)])
        written = _rate(_OVERWRITES, lambda: _overwrite(file, block, [places.randrange(size) * _MIB for _ in range(_OVERWRITES)]))
        synced = statistics.median(_sync_one(file, block, places.randrange(size) * _MIB) for _ in range(_SYNCS))
        appended = _rate(_APPENDS, lambda: _append(file, size))
        used = resident_mb(process)
        os.close(file)
        path.unlink()
    return [size, round(appended * _MIB / 1e6), written, round(synced * 1e6), round(opened * 1e6), cold, used]


def _overwrite(file: int, block: bytes, places: list[int]) -> None:
    for number, place in enumerate(places, 1):
        os.pwrite(file, block, place)
        if number % 32 == 0:
            os.fsync(file)


def _sync_one(file: int, block: bytes, place: int) -> float:
    os.pwrite(file, block, place)
    began = time.perf_counter()
    os.fsync(file)
    return time.perf_counter() - began


def _append(file: int, size: int) -> None:
    content = os.urandom(_MIB)
    for number in range(_APPENDS):
        os.pwrite(file, content, (size + number) * _MIB)
    os.fsync(file)


# --- writers at once --------------------------------------------------------------------------------------------


def grow_writers(realm: BenchRealm, steps: list[int], folder: Path, tell: Tell) -> Table:
    """Return the rate of all writers together: each appends records of 4 KiB to a file of its own, with fsync after each eighth.

    Raises:
        StorageError: if the volume cannot be mounted.
    """
    columns = ["writers", "records /s", "fsync p50 us", "fsync p99 us", "mount MiB"]
    return _grown(columns, steps, folder, tell, lambda cipher, plain, writers: _writers(realm, cipher, plain, writers))


def _writers(realm: BenchRealm, cipher: Path, plain: Path, writers: int) -> list[Any]:
    block = os.urandom(_BLOCK)

    def work(number: int) -> list[float]:
        """Write a file of its own, and return how long each sync took, in seconds."""
        times = []
        file = os.open(plain / f"w{writers}-{number}", os.O_WRONLY | os.O_CREAT)
        for record in range(_RECORDS // writers):
            os.pwrite(file, block, record * _BLOCK)
            if record % _RECORDS_A_SYNC == _RECORDS_A_SYNC - 1:
                began = time.perf_counter()
                os.fsync(file)
                times.append(time.perf_counter() - began)
        os.close(file)
        return times

    with _mounted(realm, cipher, plain) as process, ThreadPoolExecutor(writers) as pool:
        began = time.perf_counter()
        times = sorted(took for each in pool.map(work, range(writers)) for took in each)
        spent = time.perf_counter() - began
        used = resident_mb(process)
    written = _RECORDS // writers * writers
    return [writers, round(written / spent), round(times[len(times) // 2] * 1e6), round(times[len(times) * 99 // 100] * 1e6), used]


# --- what they have in common -----------------------------------------------------------------------------------


def _grown(columns: list[str], steps: list[int], folder: Path, tell: Tell, measure: Callable[[Path, Path, int], list[Any]]) -> Table:
    """Return a row of each step, measured in the same cipher directory and mountpoint, which are gone afterwards."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="kmsfs-growth-", dir=folder) as place:
        for step in steps:
            tell(f"{columns[0]}: {step}")
            rows.append(measure(Path(place) / "cipher", Path(place) / "plain", step))
    return {"columns": columns, "rows": rows}


@contextmanager
def _mounted(realm: BenchRealm, cipher: Path, plain: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(_kmsfs(realm, "--quiet", "mount", "--foreground", cipher, plain))
    try:
        while not os.path.ismount(plain):
            if process.poll() is not None:
                raise StorageError("the volume of the benchmark cannot be mounted")
            time.sleep(0.005)
        yield process
    finally:
        end_process(process)


def _kmsfs(realm: BenchRealm, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "kmsfs.cli", "--socket", os.fspath(realm.socket), *map(str, arguments)]


def _rate(count: int, act: Callable[[], object]) -> int:
    began = time.perf_counter()
    act()
    return round(count / (time.perf_counter() - began))
