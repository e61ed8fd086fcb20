"""A key daemon with a state of its own, for benchmarks."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmsfs.client.locate import answers
from kmsfs.client.session import ClientSession
from kmsfs.errors import DaemonUnreachable, StorageError

_START_SECONDS = 300.0
_NO_LIMITS = [
    *(word for name in ("cryptographic", "asymmetric", "parameters", "management") for word in ("--quota", f"{name}=1e9")),
    "--limit", "standard-parameters=10000000",
]  # fmt: skip


class BenchRealm:
    """A key daemon with a state of its own."""

    def __init__(self, folder: Path, *options: str, made_by: Sequence[str | Path] = ("init",), code: str = "") -> None:
        """Make one in a folder; `options` are those of `kmsd serve`, `made_by` is the command that makes it, told `code`."""
        self._options = options
        self.socket = folder / "kmsd.sock"
        self.state = folder / "state"
        self._process: subprocess.Popen[bytes] | None = None
        self.talk: ClientSession
        done = subprocess.run(
            _kmsd(*made_by, "--json", "--state", self.state), input=code, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StorageError(f"no realm could be made in {folder}: {done.stderr.strip()}")
        self.made: dict[str, str] = json.loads(done.stdout)
        """What is shown of it once."""

    def start(self) -> float:
        """Start it; return how long it took until it answered, in seconds.

        Raises:
            DaemonUnreachable: if it does not.
        """
        began = time.perf_counter()
        command = _kmsd("serve", "--private", "--state", self.state, "--socket", self.socket, *_NO_LIMITS, *self._options)
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
            end_process(self._process)

    def call(self, name: str, **parameters: Any) -> Any:
        """Call an operation."""
        return self.talk.call(name, parameters)

    @property
    def pid(self) -> int:
        """Its process; 0 if it does not run."""
        return 0 if self._process is None else self._process.pid

    @property
    def resident_mb(self) -> int:
        """Its memory, in MiB."""
        return resident_mb(self._process)


@contextmanager
def bench_realm(folder: Path, *options: str) -> Iterator[BenchRealm]:
    """Make a realm in a folder, serve it, and take it away again."""
    with tempfile.TemporaryDirectory(prefix="kmsfs-bench-", dir=folder) as place:
        realm = BenchRealm(Path(place), *options)
        realm.start()
        try:
            yield realm
        finally:
            realm.stop()


def _kmsd(*words: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "kmsd", *(os.fspath(word) for word in words)]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and wait until it has."""
    process.send_signal(signal.SIGTERM)
    process.wait()


def resident_mb(process: subprocess.Popen[bytes] | None) -> int:
    """Return the memory of a process in MiB; 0 of none."""
    if process is None:
        return 0
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in seconds (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
