"""Takes the spans that other processes export: OTLP over HTTP, on a free port of this machine."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cloud_support import wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

EXPORTS = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "200"}
"""Environment of a process that exports here, five times a second."""


class Collector:
    """A context manager; `endpoint` is where to send spans."""

    def __init__(self):
        self._spans = []
        spans = self._spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in sent.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, trace_id, names):
        """Return the spans of a trace, by name, once there is one of each of `names`."""

        def found():
            spans = {span.name: span for span in list(self._spans) if span.trace_id.hex() == trace_id}
            return spans if names <= spans.keys() else None

        return wait_until(found)
