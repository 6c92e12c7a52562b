"""A collector of traces: OTLP over HTTP on loopback, decoded by OpenTelemetry's own protobuf. Or one that stops reading."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


class Receiver:
    """Keeps every span: a dict of name, service, trace, span, parent, kind, start, end, attributes, events, links, status."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                spans.extend(_decoded(ExportTraceServiceRequest.FromString(body)))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def until(self, enough: Callable[[list[dict[str, Any]]], bool], patience_s: float = 20.0) -> list[dict[str, Any]]:
        """The spans, once there are enough of them."""
        deadline = time.monotonic() + patience_s
        while not enough(self.spans):
            if time.monotonic() > deadline:
                names = [f"{span['service']} {span['name']}" for span in self.spans]
                raise AssertionError(f"expected more spans within {patience_s:g} s, got {len(names)}: {names[-40:]}")
            time.sleep(0.05)
        return list(self.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Silent:
    """A collector that accepts connections and never reads them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._socket.close()


def _decoded(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    found = []
    for resource in request.resource_spans:
        service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
        for scope in resource.scope_spans:
            for span in scope.spans:
                found.append(
                    {
                        "name": span.name, "service": service, "trace": span.trace_id.hex(), "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(), "kind": span.kind, "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano, "events": [event.name for event in span.events],
                        "links": [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        "status": span.status.code,
                        "attributes": {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes},
                    }
                )  # fmt: skip
    return found
