"""Two readings of the daemon's counters, and what happened between them."""

from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_OK, _DENIED = "ok", "AccessDeniedException"


@dataclass(slots=True)
class Reading:
    """The counters at one time, in seconds of a clock that only goes on."""

    at: float
    calls: dict[tuple[str, str], float] = field(default_factory=dict)
    """Calls by operation and error code, or `ok`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent by operation."""
    gauges: dict[str, float] = field(default_factory=dict)
    """Single numbers, by the metric's name; those of several labels added up."""


def read(text: str, at: float) -> Reading:
    """Return a reading of Prometheus's text.

    Raises:
        ValueError: if it is none.
    """
    found = Reading(at)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "kmsd_calls_total":
                found.calls[labels["operation"], labels["code"]] = sample.value
            elif sample.name == "kmsd_call_seconds_total":
                found.seconds[labels["operation"]] = sample.value
            else:
                found.gauges[sample.name] = found.gauges.get(sample.name, 0.0) + sample.value
    return found


def between(before: Reading, now: Reading) -> dict[str, Any]:
    """Return rates a second: of all calls, of errors and denials, and of each operation with its mean time in microseconds.

    A daemon that was started anew in between counts from nothing.
    """
    passed = max(now.at - before.at, 1e-9)
    restarted = sum(now.calls.values()) < sum(before.calls.values())
    old = Reading(before.at) if restarted else before
    operations: dict[str, dict[str, float]] = {}
    totals = {"calls": 0.0, "errors": 0.0, "denials": 0.0}
    for (name, code), count in now.calls.items():
        made = count - old.calls.get((name, code), 0.0)
        if made <= 0:
            continue
        row = operations.setdefault(name, {"calls": 0.0, "errors": 0.0, "denials": 0.0})
        for what, counts in (("calls", True), ("errors", code != _OK), ("denials", code == _DENIED)):
            if counts:
                row[what] += made
                totals[what] += made
    rows = [
        {
            "operation": name, **{what: count / passed for what, count in row.items()},
            "mean_us": 1e6 * max(0.0, now.seconds.get(name, 0.0) - old.seconds.get(name, 0.0)) / row["calls"],
        }
        for name, row in operations.items()
    ]  # fmt: skip
    cpu = now.gauges.get("kmsd_process_cpu_seconds_total", 0.0) - old.gauges.get("kmsd_process_cpu_seconds_total", 0.0)
    return {
        **{what: count / passed for what, count in totals.items()},
        "cpu_percent": 100 * max(0.0, cpu) / passed,
        "memory_bytes": now.gauges.get("kmsd_process_resident_memory_bytes", 0.0),
        "keys": now.gauges.get("kmsd_keys", 0.0), "parameters": now.gauges.get("kmsd_parameters", 0.0),
        "secrets": now.gauges.get("kmsd_secrets", 0.0), "connections": now.gauges.get("kmsd_connections", 0.0),
        "operations": sorted(rows, key=lambda row: (-row["calls"], row["operation"])),
    }  # fmt: skip
