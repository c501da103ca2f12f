"""What a tracer hears of requests, and the headers that a trace goes on by. The tracer itself is `swapd.observe.otlp`.

Must never import OpenTelemetry, which is an extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from swapd.activity.shapes import Row

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C Trace Context."""


def trace_of(headers: Mapping[str, str]) -> dict[str, str]:
    """A request's headers that say which trace it belongs to."""
    return {name: headers[name] for name in TRACE_HEADERS if name in headers}


class Traces(Protocol):
    def began(self, request_id: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """A request has come, with these headers. Returns those of its trace that its worker is to get."""

    def ended(self, request_id: str, endpoint: str, status: int, *, has_row: bool) -> None:
        """Its end, before `kept`. Without a row it did not get as far as asking for a place at a worker."""

    def kept(self, row: Row) -> None:
        """All that is known of a request that has ended, its tokens among it if they were counted."""
