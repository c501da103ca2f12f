"""Spans as a collector gets them."""

from __future__ import annotations

import sys
import time

import pytest
from support.collector import attributes, collector

from swapd import daemon
from swapd.activity.shapes import Row
from swapd.errors import StartupError
from swapd.observe import otlp
from swapd.observe.otlp import OtlpTraces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
ROUTE = "/v1/chat/completions"


def row(request_id: str = "r1", **fields: object) -> Row:
    known: dict[str, object] = {
        "ended_at": time.time(),
        "model": "qwen",
        "client": "key-of-somebody",
        "endpoint": ROUTE,
        "status": 200,
        "total_s": 4.0,
        "waited_s": 3.0,
        "first_token_s": 3.5,
        "prompt_tokens": 7,
        "cached_tokens": 2,
        "completion_tokens": 5,
    }
    return Row(request_id=request_id, **{**known, **fields})  # type: ignore[arg-type]


def test_a_request_is_a_span_with_its_wait_the_load_in_it_and_its_work() -> None:
    with collector() as collected:
        traces = OtlpTraces(collected.url, "1.2.3")
        passed = traces.began("r1", SAMPLED)
        traces.load_ended("other", "ready", 1.0)
        traces.load_ended("qwen", "ready", 2.0)
        traces.ended("r1", ROUTE, 200, has_row=True)
        ended = row()
        traces.kept(ended)
        traces.close()
        assert collected.paths == {"/v1/traces"}
        assert (collected.resource["service.name"], collected.resource["service.version"]) == ("swapd", "1.2.3")
        request, queue, load, work = map(collected.named, (ROUTE, "queue", "load", "generate"))
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == PARENT
    assert passed == {"traceparent": f"00-{TRACE}-{request.span_id.hex()}-01", "tracestate": "a=b"}
    assert [one.parent_span_id for one in (queue, load, work)] == [request.span_id, queue.span_id, request.span_id]
    assert attributes(request) == {
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "swapd.request_id": "r1",
        "gen_ai.request.model": "qwen",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "swapd.cached_tokens": 2,
    }
    assert attributes(load) == {"gen_ai.request.model": "qwen", "swapd.load.outcome": "ready"}
    assert (work.start_time_unix_nano - queue.start_time_unix_nano) / 1e9 == pytest.approx(3.0)
    assert queue.end_time_unix_nano == work.start_time_unix_nano
    assert work.end_time_unix_nano == request.end_time_unix_nano == round(ended.ended_at * 1e9)
    (first,) = work.events
    assert first.name == "first token"
    assert (first.time_unix_nano - queue.start_time_unix_nano) / 1e9 == pytest.approx(3.5)
    assert b"key-of-somebody" not in b"".join(collected.bodies)


def test_a_refused_request_ends_at_once_and_one_that_failed_says_so() -> None:
    with collector() as collected:
        traces = OtlpTraces(collected.url, "1")
        traces.began("r1", {})
        traces.ended("r1", "/v1/models", 401, has_row=False)
        traces.began("r2", {})
        traces.ended("r2", ROUTE, 503, has_row=True)
        traces.kept(row("r2", status=503, waited_s=None, first_token_s=None, prompt_tokens=None))
        traces.close()
        refused, failed = collected.named("/v1/models"), collected.named(ROUTE)
        assert {span.name for span in collected.spans} == {"/v1/models", ROUTE, "queue"}
    assert attributes(refused)["http.response.status_code"] == 401
    assert refused.status.code == 0
    assert failed.status.code == 2
    assert "gen_ai.usage.input_tokens" not in attributes(failed)


def test_a_client_that_has_decided_against_recording_is_obeyed_and_its_trace_goes_on() -> None:
    with collector() as collected:
        traces = OtlpTraces(collected.url, "1")
        passed = traces.began("r1", {"traceparent": f"00-{TRACE}-{PARENT}-00"})
        traces.ended("r1", ROUTE, 200, has_row=True)
        traces.kept(row())
        traces.close()
        assert collected.spans == []
    assert passed["traceparent"].startswith(f"00-{TRACE}-")
    assert passed["traceparent"].endswith("-00")


def test_an_id_that_is_used_again_before_the_first_ones_tokens_are_counted_is_two_spans() -> None:
    with collector() as collected:
        traces = OtlpTraces(collected.url, "1")
        for parent in ("1" * 16, "2" * 16):
            traces.began("same", {"traceparent": f"00-{TRACE}-{parent}-01"})
            traces.ended("same", ROUTE, 200, has_row=True)
        traces.kept(row("same", prompt_tokens=1))
        traces.kept(row("same", prompt_tokens=2))
        traces.close()
        tokens = {
            span.parent_span_id.hex(): attributes(span)["gen_ai.usage.input_tokens"]
            for span in collected.spans
            if span.name == ROUTE
        }
    assert tokens == {"1" * 16: 1, "2" * 16: 2}


def test_a_collector_that_is_not_there_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_S", 0.2)
    with collector() as gone:
        pass
    traces = OtlpTraces(gone.url, "1")
    began_s = time.monotonic()
    for number in range(3 * otlp.MAX_QUEUED):
        traces.began(f"r{number}", {})
        traces.ended(f"r{number}", ROUTE, 200, has_row=False)
    traces.close()
    assert time.monotonic() - began_s < 5


def test_without_the_extra_the_daemon_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swapd.observe.otlp", None)
    assert daemon._traces(None) is None
    with pytest.raises(StartupError, match=r"server.otlp_endpoint needs OpenTelemetry.*pip install 'swapd\[otel\]'"):
        daemon._traces("http://127.0.0.1:4318")
