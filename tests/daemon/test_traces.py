"""Spans at a collector: what each call says, and that a collector that is not there is nobody's trouble."""

import http.server
import threading
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kmsfs.errors import KmsfsError


@pytest.fixture
def collector():
    spans = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                assert ("service.name", "kmsd") in {(each.key, each.value.string_value) for each in resource.resource.attributes}
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.spans = spans
    yield server
    server.shutdown()
    server.server_close()


def attributes(span):
    return {each.key: each.value.string_value for each in span.attributes}


def test_calls_are_spans(fresh_daemon, collector):
    session = fresh_daemon.start("--traces", f"127.0.0.1:{collector.server_port}").session()
    key = session.call("CreateKey", {})["KeyMetadata"]
    session.call("Encrypt", {"KeyId": key["KeyId"], "Plaintext": b"secret plaintext", "EncryptionContext": {"who": "patient 7"}})
    session.call("PutParameter", {"Name": "/a", "Value": "hunter2", "Type": "SecureString"})
    with pytest.raises(KmsfsError):
        session.call("DescribeKey", {"KeyId": "alias/absent"})
    session.close()
    fresh_daemon.stop()
    spans = collector.spans
    by_name = {span.name: span for span in spans}
    mine = next(span for span in spans if span.name == "kms:Encrypt" and "kmsfs.via" not in attributes(span))
    assert attributes(mine)["kmsfs.key"] == key["Arn"] and attributes(mine)["enduser.id"].endswith("uid/0")
    assert 0 < mine.end_time_unix_nano - mine.start_time_unix_nano < 1e9 and abs(mine.end_time_unix_nano - time.time_ns()) < 60e9
    # What Parameter Store asked of KMS is below the caller's call, in one trace.
    put = by_name["ssm:PutParameter"]
    inner = [span for span in spans if attributes(span).get("kmsfs.via")]
    assert inner and all(span.trace_id == put.trace_id and span.parent_span_id == put.span_id for span in inner)
    assert len({span.span_id for span in spans}) == len(spans)
    failed = [span for span in spans if span.status.code == 2]
    assert {attributes(span)["error.type"] for span in failed} >= {"NotFoundException"}
    everything = b"".join(span.SerializeToString() for span in spans)
    assert b"hunter2" not in everything and b"patient" not in everything and b"plaintext" not in everything


def test_a_collector_that_is_not_there_holds_nobody_up(fresh_daemon):
    session = fresh_daemon.start("--traces", "127.0.0.1:1").session()
    began = time.monotonic()
    for _ in range(2000):
        session.call("GetStatus", {})
    assert time.monotonic() - began < 10
    session.close()
    began = time.monotonic()
    fresh_daemon.stop()
    assert time.monotonic() - began < 15


def test_traces_stay_on_the_machine(fresh_daemon):
    with pytest.raises(RuntimeError, match="loopback"):
        fresh_daemon.start("--traces", "10.0.0.1:4318")
