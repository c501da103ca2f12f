"""What a trace may be, and what is worked out where it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.simulation import MIB, model

from swapd.core.spec import LayerCosts, ModelSpec
from swapd.simulate.trace import MAX_LINE_BYTES, VERSION, Header, ModelFacts, Request, Trace, TraceError, encode, read
from swapd.simulate.work import ASSUMED_SERVICE_S, jobs, load_times, with_size

HEADER = encode(Header(models={"a": ModelFacts(size_bytes=800 * MIB, load_s=2.5, slots=2)}))


def test_what_is_written_is_read() -> None:
    request = Request(at_s=0.0, model="a", client="x", priority=2, prompt_tokens=7, output_tokens=3, service_s=1.5)
    trace = read([HEADER, encode(request)])
    assert trace.requests == (request,)
    assert trace.models["a"].load_s == 2.5


def test_the_example_in_the_documentation_is_a_trace() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulate.md").read_bytes()
    trace = read(text.partition(b"```json\n")[2].partition(b"```")[0].splitlines())
    assert [request.model for request in trace.requests] == ["qwen3-8b", "qwen3-8b"]


def test_requests_are_put_in_the_order_of_arrival_from_zero_on() -> None:
    lines = [HEADER, *(encode(Request(at_s=at_s, model="a")) for at_s in (5.0, -2.0, 1.0))]
    assert [request.at_s for request in read(lines).requests] == [0.0, 3.0, 7.0]


def test_a_later_header_says_what_was_learned_meanwhile() -> None:
    later = encode(Header(models={"a": ModelFacts(load_s=4.0), "b": ModelFacts(load_s=1.0)}))
    trace = read([HEADER, encode(Request(at_s=0.0, model="a")), later])
    assert (trace.models["a"].load_s, trace.models["b"].load_s) == (4.0, 1.0)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "line 1: the trace is empty"),
        ([b'{"kind":"request","at_s":0,"model":"a"}'], "line 1: a trace begins with a header"),
        ([b'{"kind":"trace","version":2}'], f"line 1: version 2 of the format; this swapd reads {VERSION}"),
        ([HEADER, b"not json"], "line 2: "),
        ([HEADER, b'{"kind":"request","at_s":0}'], "line 2: Object missing required field `model`"),
        ([HEADER, b'{"kind":"request","at_s":0,"model":"a","prompt":"hello"}'], "unknown field `prompt`"),
        ([HEADER, b'{"kind":"request","at_s":0,"model":"a","service_s":-1}'], "line 2: Expected `float` >= 0"),
        ([HEADER, b" " * MAX_LINE_BYTES + b'{"kind":"request","at_s":0,"model":"a"}'], "line 2: longer than"),
    ],
)
def test_a_line_that_is_no_part_of_a_trace_is_named(lines: list[bytes], said: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(lines)
    assert said in str(caught.value)


def test_a_missing_service_time_follows_the_pace_of_the_models_other_requests() -> None:
    known = Request(at_s=0.0, model="a", prompt_tokens=200, output_tokens=90, service_s=2.0)
    unknown = Request(at_s=1.0, model="a", prompt_tokens=400, output_tokens=180)
    work = jobs(Trace((known, unknown), {}), [model("a", 100)])
    assert [job.service_s for job in work] == [2.0, 4.0]
    assert work[1].tokens == 580


def test_without_tokens_the_usual_time_of_the_model_is_taken_and_without_that_the_traces() -> None:
    known = Request(at_s=0.0, model="a", service_s=2.0)
    work = jobs(Trace((known, Request(at_s=1.0, model="a"), Request(at_s=2.0, model="b")), {}), [])
    assert [job.service_s for job in work] == [2.0, 2.0, 2.0]
    assert jobs(Trace((Request(at_s=1.0, model="a"),), {}), [])[0].service_s == ASSUMED_SERVICE_S


def test_a_request_without_a_priority_has_its_models() -> None:
    work = jobs(
        Trace((Request(at_s=0.0, model="a"), Request(at_s=0.0, model="a", priority=1)), {}), [model("a", 9, priority=5)]
    )
    assert [job.priority for job in work] == [5, 1]


def test_load_times_are_a_daemons_else_the_traces_else_as_learned_else_guessed_from_the_size() -> None:
    models = [model("a", 2000), model("b", 2000), model("c", 2000), model("d", 2000, learned_load_s=6.0)]
    facts = {"a": ModelFacts(load_s=7.0), "b": ModelFacts(load_s=8.0), "c": ModelFacts()}
    times = load_times(models, facts, {"a": 9.0})
    assert [(times[name].load_s, times[name].source) for name in "ab"] == [(9.0, "daemon"), (8.0, "trace")]
    assert (times["d"].load_s, times["d"].source) == (6.0, "learned")
    assert times["c"].source == "size"
    assert 1.0 < times["c"].load_s < 3.0


def test_a_model_whose_file_is_not_there_has_the_size_that_the_trace_says() -> None:
    absent = ModelSpec("a", "1", 1, None, verdict="no such file")
    spec = with_size(absent, ModelFacts(size_bytes=3200 * MIB, slots=4))
    assert isinstance(spec.costs, LayerCosts)
    assert spec.costs.total_bytes == 3200 * MIB
    assert (spec.slots, spec.verdict) == (4, None)
    assert with_size(absent, None) is absent
    assert with_size(absent, ModelFacts(load_s=1.0)) is absent
