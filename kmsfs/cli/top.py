"""kmsfs top: what the daemon and the mounts of this machine are doing, as it happens."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kmsfs.cli.output import SETTINGS, call

if TYPE_CHECKING:
    from rich.console import Group

_ROWS = 12
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int, typer.Option(min=0, help="End after so many looks (0: never).")] = 0,
) -> None:
    """Show calls, denials and mounts as they happen, until you end it. For administrators of the daemon. Example: kmsfs top --interval 1

    With --json, one document a look.
    """
    looks = _looks(interval, count)
    if SETTINGS.as_json:
        for look in looks:
            print(json.dumps(look), flush=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        try:
            for look in looks:
                live.update(_drawn(look), refresh=True)
        except KeyboardInterrupt:
            return


def _looks(interval: float, count: int) -> Iterator[dict[str, Any]]:
    from kmsfs.cli.rates import between, read

    status = call("GetStatus")
    before, times = read(call("GetMetrics")["Text"], time.monotonic()), _mount_times()
    made = 0
    while not count or made < count:
        time.sleep(interval)
        now = read(call("GetMetrics")["Text"], time.monotonic())
        later = _mount_times()
        mounts = [
            {
                "mountpoint": point, "pid": pid, "memory_bytes": memory,
                "cpu_percent": 100 * max(0.0, seconds - times.get(point, (pid, 0.0, 0))[1]) / (now.at - before.at),
            }
            for point, (pid, seconds, memory) in sorted(later.items())
        ]  # fmt: skip
        yield {"pid": status["Pid"], "account": status["Account"], **between(before, now), "mounts": mounts}
        before, times, made = now, later, made + 1


def _mount_times() -> dict[str, tuple[int, float, int]]:
    """Return (pid, seconds of processor time, bytes of memory) of the process behind each volume that is mounted here."""
    from kmsfs.mount.mounttable import mounted_volumes

    points = {entry.point for entry in mounted_volumes()}
    found: dict[str, tuple[int, float, int]] = {}
    for folder in Path("/proc").iterdir() if points else ():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"mount" not in words:
                continue
            ticks = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
            pages = (folder / "statm").read_text(encoding="ascii").split()
        except OSError:
            continue
        for point in points & {os.path.abspath(os.fsdecode(word)) for word in words if word}:
            found[point] = (int(folder.name), (int(ticks[11]) + int(ticks[12])) / _TICKS, int(pages[1]) * _PAGE_BYTES)
    return found


def _drawn(look: dict[str, Any]) -> "Group":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(
        f"kmsd {look['pid']}  {look['calls']:.0f} calls/s  {look['errors']:.0f} errors/s  {look['denials']:.0f} denials/s  "
        f"{look['cpu_percent']:.0f} % CPU  {look['memory_bytes'] / (1 << 20):.0f} MiB\n"
        f"{look['keys']:.0f} keys  {look['parameters']:.0f} parameters  {look['secrets']:.0f} secrets  {look['connections']:.0f} connections\n"
    )
    operations = Table("operation", "calls/s", "errors/s", "denials/s", "mean µs", box=None)
    for row in look["operations"][:_ROWS]:
        operations.add_row(
            row["operation"], f"{row['calls']:.1f}", f"{row['errors']:.1f}", f"{row['denials']:.1f}", f"{row['mean_us']:.0f}"
        )
    mounts = Table("mount", "pid", "% CPU", "MiB", box=None)
    for row in look["mounts"]:
        mounts.add_row(row["mountpoint"], str(row["pid"]), f"{row['cpu_percent']:.0f}", f"{row['memory_bytes'] / (1 << 20):.0f}")
    return Group(head, operations, Text(), mounts) if look["mounts"] else Group(head, operations)
