"""OpenTelemetry spans of requests, sent by OTLP over HTTP. Imported only where an endpoint is configured.

A request's span has the wait for a place, any load that this wait was for, and the work at the worker below it. What is
in them is what `swapd usage` keeps: models, routes, times, tokens; never prompts, answers, keys or clients. A thread of
OpenTelemetry's own sends them; its queue is bounded, and what does not fit, or is not taken, is dropped.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from swapd.activity.shapes import Row
from swapd.observe.traces import trace_of

TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 5.0
"""For what is queued at the end; a collector that hangs must not keep the daemon."""
MAX_QUEUED = 2048
SEND_EVERY_S = 2.0
LOADS_KEPT = 4
"""Newest loads of a model that a request's wait may have been for."""
SERVER_ERROR = 500


class OtlpTraces:
    """Implements `swapd.observe.traces.Traces` and `swapd.pool.listener.Listener`."""

    def __init__(self, endpoint: str, version: str) -> None:
        session = requests.Session()
        session.trust_env = False  # Neither a proxy nor a netrc file: the endpoint is what was configured.
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + TRACES_PATH, timeout=EXPORT_TIMEOUT_S, session=session)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "swapd", "service.version": version}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED, schedule_delay_millis=SEND_EVERY_S * 1000)
        )
        self._tracer = self._provider.get_tracer("swapd", version)
        self._propagator = TraceContextTextMapPropagator()
        self._under_way: dict[str, Span] = {}
        #: Those whose row is still to come, by request id, which clients choose and may choose again.
        self._ended: dict[str, deque[Span]] = defaultdict(deque)
        #: When a model's newest loads began and ended, in Unix seconds, and how.
        self._loads: dict[str, deque[tuple[float, float, str]]] = {}

    def began(self, request_id: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        context = self._propagator.extract(trace_of(headers))
        span = self._under_way[request_id] = self._tracer.start_span("request", context, SpanKind.SERVER)
        passed: dict[str, str] = {}
        self._propagator.inject(passed, set_span_in_context(span))
        return passed

    def ended(self, request_id: str, endpoint: str, status: int, *, has_row: bool) -> None:
        span = self._under_way.pop(request_id)
        _describe(span, request_id, endpoint, status)
        if has_row:
            self._ended[request_id].append(span)
        else:
            span.end()

    def kept(self, row: Row) -> None:
        spans = self._ended[row.request_id]
        span = spans.popleft()
        if not spans:
            del self._ended[row.request_id]
        span.set_attribute("gen_ai.request.model", row.model)
        for name, tokens in (
            ("gen_ai.usage.input_tokens", row.prompt_tokens),
            ("gen_ai.usage.output_tokens", row.completion_tokens),
            ("swapd.cached_tokens", row.cached_tokens),
        ):
            if tokens is not None:
                span.set_attribute(name, tokens)
        if span.is_recording():
            self._add_parts(span, row)
        span.end(_nanoseconds(row.ended_at))

    def _add_parts(self, span: Span, row: Row) -> None:
        arrived_at = row.ended_at - row.total_s
        granted_at = row.ended_at if row.waited_s is None else arrived_at + row.waited_s
        queue = self._part("queue", span, arrived_at)
        for began_at, ended_at, outcome in self._loads.get(row.model, ()):
            if began_at < granted_at and ended_at > arrived_at:
                load = self._part("load", queue, began_at)
                load.set_attributes({"gen_ai.request.model": row.model, "swapd.load.outcome": outcome})
                load.end(_nanoseconds(ended_at))
        queue.end(_nanoseconds(granted_at))
        if row.waited_s is not None:
            work = self._part("generate", span, granted_at)
            if row.first_token_s is not None:
                work.add_event("first token", timestamp=_nanoseconds(arrived_at + row.first_token_s))
            work.end(_nanoseconds(row.ended_at))

    def _part(self, name: str, parent: Span, began_at: float) -> Span:
        return self._tracer.start_span(name, set_span_in_context(parent), start_time=_nanoseconds(began_at))

    def close(self) -> None:
        """Send what is queued, for at most `CLOSE_S`. Blocks."""
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    # -- what the pool tells -----------------------------------------------------------------------------------

    def load_ended(self, model_id: str, outcome: str, load_s: float) -> None:
        ended_at = time.time()
        newest = self._loads.setdefault(model_id, deque(maxlen=LOADS_KEPT))
        newest.append((ended_at - load_s, ended_at, outcome))

    def worker_left(self, model_id: str, reason: str, *, evicted: bool) -> None:
        pass

    def tokens_served(self, model_id: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        pass

    def queue_left(self, model_id: str, waited_s: float) -> None:
        pass


def _describe(span: Span, request_id: str, endpoint: str, status: int) -> None:
    span.update_name(endpoint)
    span.set_attributes({"http.route": endpoint, "http.response.status_code": status, "swapd.request_id": request_id})
    if status >= SERVER_ERROR:
        span.set_status(StatusCode.ERROR)


def _nanoseconds(unix_s: float) -> int:
    return round(unix_s * 1e9)
