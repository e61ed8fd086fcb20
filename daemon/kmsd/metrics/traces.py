"""Calls as OpenTelemetry spans, for a collector on this machine (OTLP over HTTP, opentelemetry.io/docs/specs/otlp).

A span says who did what with which key, and how it ended: what the audit log says, without encryption contexts and parameters.
"""

import hashlib
import threading
import time
from typing import Any

from kmsd.dispatch.call import Call
from kmsfs import __version__
from kmsfs.errors import KmsfsError, UsageError

_QUEUE_MAX = 8192
"""Spans that wait for the collector; what comes past that is dropped, never waited for."""
_ANSWER_SECONDS = 2.0
_CLOSING_SECONDS = 2.0


class CallTraces:
    """Sends a span of each call, from a thread. What a service does in a caller's name is a child of the caller's call."""

    def __init__(self, endpoint: tuple[str, int]) -> None:
        """Send to the collector at a loopback address and port.

        Raises:
            UsageError: if the libraries are not installed.
        """
        try:
            import opentelemetry.trace as api
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise UsageError("traces need OpenTelemetry's SDK", hint="pip install 'kmsfs[traces]'") from error
        host, port = endpoint
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/traces"
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_ANSWER_SECONDS), max_queue_size=_QUEUE_MAX)
        self._resource = Resource.create({"service.name": "kmsd", "service.version": __version__})
        self._api: Any = api
        self._span = ReadableSpan

    def note(self, call: Call, error: KmsfsError | None, seconds: float) -> None:
        """Make a span of a call that has just ended, after so many seconds."""
        api = self._api
        end = time.time_ns()
        # All calls under one id are one trace: what was recorded first knows its parent before that is.
        digest = hashlib.sha256(call.call_id.encode()).digest()
        trace, outer = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
        inner = int.from_bytes(hashlib.sha256(digest + end.to_bytes(8, "big") + call.operation.name.encode()).digest()[:8], "big")
        sampled = api.TraceFlags(api.TraceFlags.SAMPLED)
        root = api.SpanContext(trace, outer, is_remote=False, trace_flags=sampled)
        below = api.SpanContext(trace, inner, is_remote=False, trace_flags=sampled)
        attributes: dict[str, str] = {
            "rpc.system": "kmsd", "rpc.service": call.operation.service, "rpc.method": call.operation.name,
            "enduser.id": call.caller.principal, "kmsfs.request_id": call.call_id,
        }  # fmt: skip
        if call.key is not None:
            attributes["kmsfs.key"] = call.key.arn
        if call.via is not None:
            attributes["kmsfs.via"] = call.via
        if error is not None:
            attributes["error.type"] = error.code
        status = api.Status(api.StatusCode.ERROR, error.code) if error is not None else api.Status(api.StatusCode.UNSET)
        self._processor.on_end(
            self._span(
                call.operation.action, root if call.via is None else below, None if call.via is None else root,
                self._resource, attributes, kind=api.SpanKind.SERVER if call.via is None else api.SpanKind.INTERNAL,
                status=status, start_time=end - int(max(seconds, 0.0) * 1e9), end_time=end,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Send what waits, for a moment at most: the SDK itself would wait half a minute for a collector that is not there."""
        closing = threading.Thread(target=self._processor.shutdown, name="kmsd-traces-end", daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)
