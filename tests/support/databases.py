"""PostgreSQL servers of Debian's, in folders of their own, and databases in them."""

import glob
import os
import shutil
import socket
import subprocess
import time
import uuid

import psycopg


def new_database(server: str) -> str:
    """Make a database and return its URL."""
    name = f"kmsd_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


class PostgresServer:
    """A server that listens on an address of its own; a crash is `kill`, and it is what it was after `start`."""

    def __init__(self, folder, address="127.0.0.1"):
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        assert programs, "these tests need Debian's postgresql, which CI installs"
        self.programs, self.folder, self.address = programs[-1], folder, address
        self.data = folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for above in (folder, *folder.parents):
            if above.stat().st_uid == os.getuid():
                above.chmod(above.stat().st_mode | 0o111)
        shutil.chown(folder, "postgres", "postgres") if os.geteuid() == 0 else None
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        self.prefix = []

    @property
    def url(self):
        return f"postgresql://postgres@{self.address}:{self.port}"

    def run(self, program, *arguments, **options):
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        command = [*self.prefix, *as_user, f"{self.programs}/{program}", *map(str, arguments)]
        return subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)

    def make(self):
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--no-sync")
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n")
        return self

    def start(self, *settings):
        options = [f"-p {self.port}", f"-k {self.folder}", f"-c listen_addresses={self.address}", "-c max_connections=300",
                   *(f"-c {setting}" for setting in settings)]
        self.run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w", "-o", " ".join(options), "start")
        return self

    def kill(self):
        """As a crash of the machine would end it, but for what the kernel still writes."""
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def stop(self):
        if (self.data / "postmaster.pid").exists():
            self.kill()

    def execute(self, statement):
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            return connection.execute(statement)

    def replica(self, folder):
        """Return a standby of this server, not yet started."""
        other = PostgresServer(folder, self.address)
        other.run("pg_basebackup", "-h", self.address, "-p", self.port, "-U", "postgres", "-D", other.data, "-R", "-X", "stream", "--no-sync")
        return other


def wait_for(what, seconds=20.0):
    """Wait until `what()` is true, and return it."""
    ends = time.monotonic() + seconds
    while True:
        try:
            found = what()
        except Exception:
            found = None
        if found:
            return found
        assert time.monotonic() < ends, "this did not happen in time"
        time.sleep(0.01)
