"""Prometheus's text of what is counted (prometheus.io, "Exposition formats"). No name of a key, secret or person is in it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kmsd.keys.registry import KeyRegistry
from kmsd.metrics.counts import OK, CallCounts


class _Counted(Collector):
    def __init__(
        self, counts: CallCounts, registry: KeyRegistry, started: float, sizes: dict[str, Callable[[], int]]
    ) -> None:
        self._counts = counts
        self._registry = registry
        self._started = started
        self._sizes = sizes

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers of this moment, for the library."""
        calls = CounterMetricFamily("kmsd_calls", "Calls by operation and error code.", labels=("operation", "code"))
        seconds = CounterMetricFamily("kmsd_call_seconds", "Time spent in calls.", labels=("operation",), unit="seconds")
        spent: defaultdict[str, float] = defaultdict(float)
        for operation, code, count, total in self._counts.items():
            calls.add_metric((operation, "ok" if code == OK else code), count)
            spent[operation] += total
        for operation, total in sorted(spent.items()):
            seconds.add_metric((operation,), total)
        yield from (calls, seconds)
        keys = GaugeMetricFamily("kmsd_keys", "KMS keys by state.", labels=("state",))
        for state, number in sorted(Counter(key.state.value for key in self._registry.keys.values()).items()):
            keys.add_metric((state,), number)
        yield keys
        grants = sum(len(key.grants) for key in self._registry.keys.values())
        yield GaugeMetricFamily("kmsd_grants", "Grants on all keys.", value=grants)
        for name, size in self._sizes.items():
            yield GaugeMetricFamily(f"kmsd_{name}", f"Number of {name.replace('_', ' ')}.", value=size())
        yield GaugeMetricFamily("kmsd_start_time_seconds", "When the daemon started, in Unix time.", value=self._started)


def collectors(
    counts: CallCounts, registry: KeyRegistry, started: float, sizes: dict[str, Callable[[], int]]
) -> CollectorRegistry:
    """Return what collects all numbers of a daemon that `started` then; `sizes` are those that its rooms tell, by name."""
    made = CollectorRegistry()
    made.register(_Counted(counts, registry, started, sizes))
    ProcessCollector(namespace="kmsd", registry=made)
    return made


def text_of(collected: CollectorRegistry) -> str:
    """Return the numbers of this moment."""
    return generate_latest(collected).decode()


def application_of(collected: CollectorRegistry) -> Any:
    """Return the ASGI application that answers `GET /metrics`."""
    return make_asgi_app(collected)
