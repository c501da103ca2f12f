"""A collector of OpenTelemetry spans: OTLP over HTTP, its protobuf decoded by OpenTelemetry's own definitions."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    resource: dict[str, object] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, path: str, body: bytes) -> None:
        sent = ExportTraceServiceRequest.FromString(body)
        with self.news:
            self.paths.add(path)
            self.bodies.append(body)
            for group in sent.resource_spans:
                self.resource = attributes(group.resource)
                self.spans += [span for scope in group.scope_spans for span in scope.spans]
            self.news.notify_all()

    def named(self, name: str) -> Span:
        """The span of this name, now or later."""
        with self.news:
            assert self.news.wait_for(lambda: any(span.name == name for span in self.spans), 20), name
        (found,) = [span for span in self.spans if span.name == name]
        return found


def attributes(of: object) -> dict[str, object]:
    """The attributes of a span or a resource."""
    return {one.key: _value(one.value) for one in of.attributes}  # type: ignore[attr-defined]


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind is not None else None


@contextmanager
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield found
        finally:
            server.shutdown()
            serving.join()
