"""Fixtures: a realm and its daemon over a real socket, mounted volumes, and a guard against leftovers."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from hypothesis import HealthCheck, settings

from kmsd.config import Config
from kmsd.realm import initialise
from kmsd.root.keyring import SealType
from kmsfs.client.session import ClientSession
from kmsfs.mount.mounttable import mounted_source
from support.databases import new_database
from support.peers import let_others_in

settings.register_profile(
    "ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("ci")

HAS_FUSE = os.path.exists("/dev/fuse") and os.access("/dev/fuse", os.R_OK | os.W_OK)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("fuse") and not HAS_FUSE:
            item.add_marker(pytest.mark.skip(reason="no usable /dev/fuse"))
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory):
    """Freshness records and logs of the mounts under test lie apart."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state-home"))


SHARED_SERVER = os.environ.get("KMSFS_TEST_POSTGRES", "")
"""A PostgreSQL server, as `postgresql://user@host:port`: where it is given, every realm under test has its state there."""


class DaemonProcess:
    """A kmsd over a state folder of its own."""

    def __init__(self, folder: Path, *serve_options: str, private: bool = True, source=("--source", "keyfile")):
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "kmsd.sock"
        self.options = ["--private"] if private else []
        self.options += serve_options
        self.process = None
        self.source = source
        self.prefix = []
        """Words before the command, such as those that run it in a namespace."""

    def init(self, *options):
        if SHARED_SERVER:
            options = (*options, "--database", new_database(SHARED_SERVER))
        if not self.prefix and self.source == ("--source", "keyfile") and options[:1] in ((), ("--account",)) and not self.state.exists():
            return self._init_here(*options[1:])
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "kmsd", "init", "--state", str(self.state), *self.source, *options, "--json"],
            capture_output=True, text=True,
        )

    def _init_here(self, account=None):
        """As `kmsd init`, without the process, whose start is most of what it takes."""
        before = os.umask(0o077)
        try:
            made = initialise(Config(self.state, self.socket), SealType.KEYFILE, None, account)
        finally:
            os.umask(before)
        document = {"state": str(self.state), "audit_verification_key": made.audit_verification_key, "recovery_code": made.recovery_code}
        return subprocess.CompletedProcess((), 0, json.dumps(document), "")

    def start(self, *options, wait=True):
        command = [sys.executable, "-m", "kmsd", "serve", "--state", str(self.state), "--socket", str(self.socket)]
        self.process = subprocess.Popen([*self.prefix, *command, *self.options, *options], stderr=subprocess.PIPE, text=True)
        if wait:
            deadline = time.monotonic() + 20
            while not self.answers():
                if self.process.poll() is not None:
                    raise RuntimeError(self.process.stderr.read())
                assert time.monotonic() < deadline, "kmsd does not start"
                time.sleep(0.02)
        return self

    def answers(self):
        try:
            self.session().call("GetStatus", {})
        except Exception:
            return False
        return True

    def session(self, **options):
        return ClientSession(socket=str(self.socket), autostart=False, **options)

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)
        if self.process:
            self.process.stderr.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    made = DaemonProcess(tmp_path_factory.mktemp("kmsd"))
    assert made.init().returncode == 0
    made.start()
    yield made
    made.stop()


@pytest.fixture
def call(daemon):
    session = daemon.session()
    yield lambda operation, **parameters: session.call(operation, parameters)
    session.close()


@pytest.fixture
def fresh_daemon(tmp_path):
    made = DaemonProcess(tmp_path)
    result = made.init()
    assert result.returncode == 0, result.stderr
    made.init_output = result.stdout
    yield made
    made.stop(signal.SIGKILL)


@pytest.fixture
def make_daemon(tmp_path_factory):
    made = []

    def make(*serve_options):
        daemon = DaemonProcess(tmp_path_factory.mktemp("kmsd"), *serve_options)
        assert daemon.init().returncode == 0
        made.append(daemon)
        return daemon.start()

    yield make
    for daemon in made:
        daemon.stop(signal.SIGKILL)


class MountProcess:
    """A `kmsfs mount --foreground`."""

    program = ("-m", "kmsfs.cli")

    def __init__(self, socket, cipher: Path, plain: Path, *options: str):
        self.cipher = cipher
        self.plain = plain
        self.socket = str(socket)
        self.options = options
        self.process = None
        self.log = ""
        self.environment = {}
        """What its environment has besides, such as another state folder."""

    def start(self, *, wait=True):
        environment = {**os.environ, "KMSFS_SOCKET": self.socket, **self.environment}
        command = [sys.executable, *self.program, "mount", "--foreground", str(self.cipher), str(self.plain)]
        # A file and no pipe: a pipe that nobody reads holds up the mount when it is full.
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*command, *self.options], env=environment, stderr=self.said)
        if wait:
            deadline = time.monotonic() + 30
            while not os.path.ismount(self.plain):
                if self.process.poll() is not None:
                    self._close()
                    raise RuntimeError(self.log)
                assert time.monotonic() < deadline, "does not mount"
                time.sleep(0.02)
        return self

    def stop(self):
        if os.path.ismount(self.plain):
            subprocess.run(["umount", str(self.plain)], check=False)
        if self.process and self.process.poll() is None:
            self.process.wait(60)
        self._close()

    def kill(self):
        self.process.kill()
        self.process.wait(20)
        subprocess.run(["umount", "-l", str(self.plain)], check=False)
        self._close()

    def _close(self):
        if self.process and not self.said.closed:
            self.said.seek(0)
            self.log = self.said.read()
            self.said.close()

    def again(self):
        self.stop()
        return self.start()


@pytest.fixture
def shared(make_mount, tmp_path):
    """A mount that every user may enter."""
    let_others_in(tmp_path)
    process = make_mount("--allow-other").start()
    process.plain.chmod(0o755)
    return process


@pytest.fixture
def make_mount(daemon, tmp_path):
    made = []

    def make(*options, name="v", on=None):
        cipher, plain = tmp_path / f"{name}.cipher", tmp_path / f"{name}.plain"
        cipher.mkdir(exist_ok=True)
        plain.mkdir(exist_ok=True)
        process = MountProcess((on or daemon).socket, cipher, plain, *options)
        made.append(process)
        return process

    yield make
    for process in made:
        try:
            if process.process and process.process.poll() is None:
                process.stop()
            process._close()
            # Shown where the test failed.
            print(process.log)
        finally:
            if os.path.ismount(process.plain):
                subprocess.run(["umount", "-l", str(process.plain)], check=False)


@pytest.fixture(autouse=True, scope="session")
def no_leftovers(tmp_path_factory):
    yield
    here = str(tmp_path_factory.getbasetemp())
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        left = [line.split()[4] for line in table if "fuse.kmsfs" in line and here in line]
    assert not left, f"tests left mounts behind: {left}"
    assert mounted_source(Path("/nonexistent")) is None


@pytest.fixture(autouse=True, scope="module")
def turn_at_the_machine(request, tmp_path_factory):
    """Where two processes run the tests side by side: modules marked `alone` have the machine for themselves.

    A systemd of its own keeps the mounts busy that are there when its namespace begins, and restarts all that it sees; and what
    all mounts ask of the kernel together cannot be told apart.
    """
    alone = request.node.get_closest_marker("alone") is not None
    base = tmp_path_factory.getbasetemp()
    place = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (place / "machine.lock").open("a") as lock, (place / "gate.lock").open("a") as gate:
        # Through the gate first: locks that are shared would go on being taken, and who wants to be alone wait for the end of all tests.
        fcntl.flock(gate, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
