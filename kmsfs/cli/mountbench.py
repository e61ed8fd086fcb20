"""The mount's workloads, run on kmsfs, its peers and the bare file system in alternating rounds."""

import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmsfs.errors import UsageError

_STREAM_BYTES = 256 << 20
_BLOCK = 1 << 20
_SMALL_FILES = 2000
_RANDOM_OPS = 2000

Remount = Callable[[], None]
Workload = Callable[[Path, Remount], float]


class Target:
    """A file system under test, mounted in a folder of its own."""

    def __init__(self, name: str, folder: Path, options: tuple[str, ...] = ()) -> None:
        """Make it in `folder`; `options` are those of `kmsfs mount`."""
        self.name = name
        self._options = options
        self.cipher = folder / f"{name}.cipher"
        self.plain = folder / f"{name}.plain"
        self.cipher.mkdir()
        self.plain.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        if name == "gocryptfs":
            _run(["gocryptfs", "-q", "-init", "-extpass", "echo bench", os.fspath(self.cipher)])
        elif name == "securefs":
            _run(["securefs", "create", "--pass", "bench", os.fspath(self.cipher)])

    def mount(self) -> None:
        """Mount it.

        Raises:
            UsageError: if the peer is not installed or does not start.
        """
        cipher, plain = os.fspath(self.cipher), os.fspath(self.plain)
        if self.name == "kmsfs":
            _run([sys.executable, "-P", "-m", "kmsfs.cli", "--quiet", "mount", *self._options, cipher, plain])
        elif self.name == "gocryptfs":
            _run(["gocryptfs", "-q", "-extpass", "echo bench", cipher, plain])
        elif self.name == "securefs":
            _run(["securefs", "mount", "-b", "--pass", "bench", "--log", "/dev/null", cipher, plain])
        elif self.name == "encfs":
            _run(["encfs", "--standard", "--extpass=echo bench", cipher, plain])
        if self.name != "bare":
            deadline = time.monotonic() + 10
            while not os.path.ismount(plain) and time.monotonic() < deadline:
                time.sleep(0.01)

    def unmount(self) -> None:
        """Unmount it and wait."""
        if self.name == "bare":
            return
        if self.name == "kmsfs":
            _run([sys.executable, "-P", "-m", "kmsfs.cli", "--quiet", "umount", os.fspath(self.plain)])
            return
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        for _ in range(50):
            done = subprocess.run([*command, os.fspath(self.plain)], capture_output=True, check=False)
            if not done.returncode or not os.path.ismount(self.plain):
                break
            time.sleep(0.1)
        time.sleep(0.2)

    @property
    def root(self) -> Path:
        """Where files go."""
        return self.cipher if self.name == "bare" else self.plain


def bench_mount(
    peers: list[str], rounds: int, folder: Path, tell: Callable[[str], None], *, low_latency: bool = True
) -> dict[str, Any]:
    """Return the table of all workloads; rates, higher is better.

    Raises:
        UsageError: if a peer is unknown or not installed.
    """
    for peer in peers:
        if peer not in ("gocryptfs", "securefs", "encfs") or shutil.which(peer) is None:
            raise UsageError(f"the peer {peer!r} is unknown or not installed", hint=f"apt-get install {peer}")
    names = ["kmsfs", *peers, "bare"]
    results: dict[str, dict[str, list[float]]] = {
        label: {name: [] for name in names} for label, _ in _WORKLOADS
    }
    for number in range(rounds):
        for name in names:
            with _place(folder) as place:
                target = Target(name, place, () if low_latency else ("--no-low-latency",))
                target.mount()
                try:
                    _run_all(target, results, tell, f"{name}, round {number + 1}")
                finally:
                    target.unmount()
    columns = ["workload", *names, *(f"kmsfs / {peer}" for peer in peers)]
    return {
        "columns": columns,
        "rows": [_row(label, results[label], names, peers) for label, _ in _WORKLOADS],
    }


def _run_all(
    target: Target, results: dict[str, dict[str, list[float]]], tell: Callable[[str], None], where: str
) -> None:
    def remount() -> None:
        target.unmount()
        _drop_caches()
        target.mount()

    for label, work in _WORKLOADS:
        tell(f"{where}: {label}")
        results[label][target.name].append(work(target.root, remount))


def _row(label: str, measured: dict[str, list[float]], names: list[str], peers: list[str]) -> list[Any]:
    medians = {name: statistics.median(measured[name]) for name in names}
    ratios = [f"{medians['kmsfs'] / medians[peer]:.2f}" for peer in peers]
    return [label, *(f"{medians[name]:.0f}" for name in names), *ratios]


@contextmanager
def _place(folder: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kmsfs-bench-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise UsageError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _drop_caches() -> None:
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")


# --- workloads: each returns MB/s or operations a second ------------------------------------------------------


def _timed(count: float, act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return count / (time.perf_counter() - start)


def _stream_write(root: Path, _remount: Remount) -> float:
    block = os.urandom(_BLOCK)

    def act() -> None:
        with (root / "stream").open("wb", buffering=0) as stream:
            for _ in range(_STREAM_BYTES // _BLOCK):
                stream.write(block)

    return _timed(_STREAM_BYTES / 1e6, act)


def _read_stream(root: Path) -> None:
    buffer = bytearray(_BLOCK)
    with (root / "stream").open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _stream_cold(root: Path, remount: Remount) -> float:
    remount()
    return _timed(_STREAM_BYTES / 1e6, lambda: _read_stream(root))


def _stream_warm(root: Path, _remount: Remount) -> float:
    return _timed(_STREAM_BYTES / 1e6, lambda: _read_stream(root))


def _small_writes(root: Path, _remount: Remount) -> float:
    block = os.urandom(4096)

    def act() -> None:
        with (root / "small").open("wb", buffering=0) as stream:
            for _ in range(8192):
                stream.write(block)

    return _timed(32 << 20 >> 20, act)


def _random_reads(root: Path, remount: Remount) -> float:
    remount()
    order = random.Random(1)  # noqa: S311

    def act() -> None:
        """Read blocks of a large file anywhere in it."""
        descriptor = os.open(root / "stream", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(_RANDOM_OPS):
            os.pread(descriptor, 4096, order.randrange(_STREAM_BYTES // 4096) * 4096)
        os.close(descriptor)

    return _timed(_RANDOM_OPS, act)


def _random_writes(root: Path, _remount: Remount) -> float:
    order = random.Random(2)  # noqa: S311
    block = os.urandom(4096)

    def act() -> None:
        """Write blocks anywhere in a file, every thirty-second one durably."""
        descriptor = os.open(root / "small", os.O_RDWR)
        for number in range(_RANDOM_OPS):
            os.pwrite(descriptor, block, order.randrange(8192) * 4096)
            if number % 32 == 31:
                os.fsync(descriptor)
        os.close(descriptor)

    return _timed(_RANDOM_OPS, act)


def _create(root: Path, _remount: Remount) -> float:
    data = os.urandom(1024)
    (root / "many").mkdir()

    def act() -> None:
        for number in range(_SMALL_FILES):
            with (root / "many" / f"f{number}").open("wb", buffering=0) as stream:
                stream.write(data)

    return _timed(_SMALL_FILES, act)


def _stat_warm(root: Path, _remount: Remount) -> float:
    paths = [os.fspath(root / "many" / f"f{number}") for number in range(_SMALL_FILES)]
    return _timed(_SMALL_FILES, lambda: [os.stat(path) for path in paths])


def _list_stat_cold(root: Path, remount: Remount) -> float:
    remount()

    def act() -> None:
        with os.scandir(root / "many") as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    return _timed(_SMALL_FILES, act)


def _read_files(root: Path) -> None:
    for number in range(_SMALL_FILES):
        with (root / "many" / f"f{number}").open("rb", buffering=0) as stream:
            stream.read(4096)


def _read_cold(root: Path, remount: Remount) -> float:
    remount()
    return _timed(_SMALL_FILES, lambda: _read_files(root))


def _read_warm(root: Path, _remount: Remount) -> float:
    return _timed(_SMALL_FILES, lambda: _read_files(root))


def _rename(root: Path, _remount: Remount) -> float:
    folder = os.fspath(root / "many")

    def act() -> None:
        for number in range(_SMALL_FILES):
            os.rename(f"{folder}/f{number}", f"{folder}/g{number}")

    return _timed(_SMALL_FILES, act)


def _unlink(root: Path, _remount: Remount) -> float:
    folder = os.fspath(root / "many")

    def act() -> None:
        for number in range(_SMALL_FILES):
            os.unlink(f"{folder}/g{number}")

    return _timed(_SMALL_FILES, act)


def _archive() -> tuple[Path, int]:
    """Pack a part of the standard library once, outside what is measured."""
    target = Path(tempfile.gettempdir()) / f"kmsfs-bench-{os.getuid()}.tar"
    source = Path(os.__file__).parent
    names = [
        name
        for name in ("json", "email", "asyncio", "unittest", "logging", "http", "importlib")
        if (source / name).is_dir()
    ]
    if not target.exists():
        with tarfile.open(target, "w") as archive:
            for name in names:
                archive.add(source / name, arcname=name)
    with tarfile.open(target) as archive:
        return target, len(archive.getmembers())


def _untar(root: Path, _remount: Remount) -> float:
    archive, count = _archive()
    (root / "tree").mkdir()
    return _timed(count, lambda: _run(["tar", "-xf", os.fspath(archive), "-C", os.fspath(root / "tree")]))


def _grep_cold(root: Path, remount: Remount) -> float:
    remount()
    _, count = _archive()
    command = ["grep", "-rc", "import", os.fspath(root / "tree")]
    return _timed(count, lambda: subprocess.run(command, capture_output=True, check=False))


def _sqlite(root: Path, _remount: Remount) -> float:
    def act() -> None:
        """Commit small transactions, each durably."""
        database = sqlite3.connect(root / "bench.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
        for number in range(500):
            database.execute("INSERT INTO t(b) VALUES(?)", (str(number) * 10,))
        database.close()

    return _timed(500, act)


def _remove_tree(root: Path, _remount: Remount) -> float:
    _, count = _archive()
    return _timed(count, lambda: shutil.rmtree(root / "tree"))


_WORKLOADS: list[tuple[str, Workload]] = [
    ("stream write MB/s", _stream_write),
    ("stream read cold MB/s", _stream_cold),
    ("stream read warm MB/s", _stream_warm),
    ("4 KiB writes MB/s", _small_writes),
    ("random 4 KiB reads cold /s", _random_reads),
    ("random 4 KiB writes, fsync each 32 /s", _random_writes),
    ("create 1 KiB files /s", _create),
    ("stat warm /s", _stat_warm),
    ("list and stat cold /s", _list_stat_cold),
    ("read 1 KiB files cold /s", _read_cold),
    ("read 1 KiB files warm /s", _read_warm),
    ("rename /s", _rename),
    ("unlink /s", _unlink),
    ("untar files /s", _untar),
    ("grep tree cold files /s", _grep_cold),
    ("SQLite commits /s", _sqlite),
    ("rm tree files /s", _remove_tree),
]
