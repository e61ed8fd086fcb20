"""kmsfs doctor: what on this machine weakens what kmsfs promises, and how to mend it."""

import os
import time
from pathlib import Path

import typer

from kmsfs.cli.output import session, show
from kmsfs.doctor.daemon import examine_daemon
from kmsfs.doctor.finding import Finding, Level
from kmsfs.doctor.machine import examine_machine
from kmsfs.errors import ExitCode

_MARKS = {Level.OK: "ok", Level.ADVICE: "advice", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


def doctor() -> None:
    """Examine this machine and the key daemon: swap, cores, FUSE, root key, backups, keys, grants. Changes nothing.

    Exit code 23: there are warnings or problems.
    """
    found = [*examine_machine(Path("/"), uid=os.geteuid()), *examine_daemon(session(), time.time())]
    show([finding.document() for finding in found], lambda: _print(found))
    if max(finding.level for finding in found) >= Level.WARNING:
        raise typer.Exit(ExitCode.WARNINGS_FOUND)


def _print(found: list[Finding]) -> None:
    for finding in found:
        print(f"{_MARKS[finding.level]:<8}  {finding.subject:<10}  {finding.found}")
        if finding.why:
            print(f"{'':<22}why: {finding.why}")
        if finding.mend:
            print(f"{'':<22}mend: {finding.mend}")
