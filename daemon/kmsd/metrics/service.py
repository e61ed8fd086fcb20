"""GetMetrics, and the same over HTTP. Prometheus's library is loaded when somebody asks."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kmsd.dispatch.call import Call
from kmsd.keys.registry import KeyRegistry
from kmsd.metrics.counts import CallCounts
from kmsfs.api.shapes import admin as shapes
from kmsfs.errors import AccessDenied

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class MetricsService:
    """GetMetrics, and the same as an ASGI application."""

    def __init__(
        self, counts: CallCounts, registry: KeyRegistry, started: float, sizes: dict[str, Callable[[], int]]
    ) -> None:
        self._registry = registry
        self._counted = (counts, registry, started, sizes)

    @cached_property
    def _collectors(self) -> "CollectorRegistry":
        from kmsd.metrics.exposition import collectors

        return collectors(*self._counted)

    def get_metrics(self, call: Call) -> shapes.GetMetricsResponse:
        """GetMetrics: for administrators and the root of the managing account.

        Raises:
            AccessDenied: for others, whom the numbers would tell what their neighbours do.
        """
        if not call.caller.root or call.caller.account != self._registry.account:
            raise AccessDenied("Only an administrator of the daemon may read its metrics.")
        from kmsd.metrics.exposition import text_of

        return shapes.GetMetricsResponse(text=text_of(self._collectors))

    def application(self) -> Any:
        """Return the ASGI application that answers `GET /metrics`."""
        from kmsd.metrics.exposition import application_of

        return application_of(self._collectors)
