"""Run a rotator's steps: in a transient unit where systemd runs and we are root, as a plain process elsewhere."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from kmsfs.errors import RotationFailed, UsageError
from kmsfs.rotation.event import STEPS, RotationEvent

OURS = ("random", "postgresql")
_SYSTEM_FOLDER = Path("/etc/kmsfs/rotators")
_STEP_SECONDS = 600
_OUTPUT_CHARACTERS = 400
_WALLS = (
    "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "NoNewPrivileges=yes",
    "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectControlGroups=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "CapabilityBoundingSet=", "LimitCORE=0", f"RuntimeMaxSec={_STEP_SECONDS}",
)  # fmt: skip


def command_of(rotator: str) -> list[str]:
    """Return the program of a rotator: one of ours, or a file of that name in a folder that only its owner can change.

    Raises:
        UsageError: if there is none, or others could have put it there.
    """
    name = rotator.rpartition(":function:")[2].partition(":")[0]
    if name in OURS:
        return [sys.executable, "-P", "-m", "kmsfs.cli", "rotator", name]
    folders = [_SYSTEM_FOLDER]
    if os.geteuid():
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        folders.insert(0, Path(config) / "kmsfs" / "rotators")
    for folder in folders:
        path = folder / name
        if path.exists():
            _require_own(path)
            return [os.fspath(path)]
    raise UsageError(
        f"there is no rotator {name!r}", hint=f"one of {', '.join(OURS)}, or a program {folders[0] / name}"
    )


def _require_own(path: Path) -> None:
    for part in (path, path.parent):
        facts = part.stat()
        if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
            raise UsageError(f"{part} can be changed by others: it will not be run", hint=f"chmod go-w {part}")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} cannot be executed", hint=f"chmod +x {path}")


def run_steps(rotator: str, secret_id: str, token: str, socket: str) -> None:
    """Run the four steps, each in a process of its own; the first that fails ends it.

    Raises:
        RotationFailed: naming the step and what it said.
        UsageError: if there is no such rotator.
    """
    command = command_of(rotator)
    for step in STEPS:
        event = RotationEvent(step, secret_id, token)
        environment = {**event.environment(), "KMSFS_SOCKET": socket}
        try:
            done = subprocess.run(
                _walled(command, environment), input=event.document(), capture_output=True, text=True, check=False,
                env={**os.environ, **environment}, timeout=_STEP_SECONDS + 10,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RotationFailed(f"{step} of {rotator} could not be run: {error}") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-_OUTPUT_CHARACTERS:]
            raise RotationFailed(
                f"{step} of {rotator} failed with exit code {done.returncode}: {said or 'it said nothing'}",
                hint="the current version is untouched; the rotation is tried again by `kmsfs secret rotate-due`",
            )


def _walled(command: list[str], environment: dict[str, str]) -> list[str]:
    if os.geteuid() or not Path("/run/systemd/system").is_dir() or shutil.which("systemd-run") is None:
        return command
    walls = [f"--property={wall}" for wall in _WALLS]
    # Names alone: values would stand in the unit's properties, for everybody to read.
    passed = [f"--setenv={name}" for name in environment]
    return ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", *walls, *passed, *command]
