"""The benchmarks with several models: the room is for as many as meant, the trace is what it says, failures count."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import contention, swap
from benchmarks.client import Stream
from benchmarks.fleet import Entry, Fleet
from benchmarks.servers import MODEL

from backends.llama_cpp.backend import LlamaCppBackend
from backends.llama_cpp.settings import LlamaCppSettings

LOAD = contention.Load(seconds=2000.0)


@pytest.mark.parametrize("room", [1, 2])
def test_a_budget_has_room_for_so_many_models_and_a_spare_and_for_no_more(room: int) -> None:
    fleet = Fleet(tuple(Entry(name, MODEL, 2048) for name in "abc"), room, n_parallel=2, threads=1)
    keys = {**fleet.keys(fleet.models[0]), "path": MODEL}
    size = LlamaCppBackend().inspect(LlamaCppSettings(**keys)).footprint.total_bytes  # type: ignore[arg-type]
    assert room * size + LlamaCppBackend.spare_bytes < fleet.budget_bytes() < (room + 1) * size


def test_a_trace_is_seeded_in_order_and_as_dense_and_as_popular_as_asked_for() -> None:
    trace = contention.arrivals(random.Random(1), 3, rate=2.0, load=LOAD)
    assert trace == contention.arrivals(random.Random(1), 3, rate=2.0, load=LOAD)
    assert [one.at_s for one in trace] == sorted(one.at_s for one in trace)
    assert len(trace) / LOAD.seconds == pytest.approx(2.0, rel=0.15)
    counts = Counter(one.model for one in trace)
    assert [counts[model] / len(trace) for model in range(3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.06)
    assert {one.client for one in trace} == set(range(LOAD.clients))


def test_waits_are_of_whole_answers_and_all_others_have_failed(capsys: pytest.CaptureFixture[str]) -> None:
    whole = Stream(10.0, 200, (10.5, 11.0), "text", 48, LOAD.output_tokens, "length", None, done=True)
    streams = [replace(whole, event_times_s=(10.0 + wait,)) for wait in (0.1, 0.2, 0.3, 0.4, 5.0)]
    short = replace(whole, completion_tokens=3, error="the worker is gone", done=False)
    found = contention.summary([*streams, short, Stream(1.0, 503)], LOAD, "swapd")
    waits = {"p50": pytest.approx(0.3), "p95": pytest.approx(5.0), "worst": pytest.approx(5.0)}
    assert found == {**waits, "failures": 2, "requests": 7}
    said = capsys.readouterr().err
    assert "swapd: 1 failed: the worker is gone" in said
    assert "swapd: 1 failed: status 503" in said


def test_the_parts_of_a_swap_are_read_from_the_log(tmp_path: Path) -> None:
    lines: list[object] = [
        {"event": "worker stopped", "stop_s": 0.01},
        {"event": "worker ready", "start_s": 0.02, "load_s": 0.1, "warm_up_s": 0.05},
        {"event": "worker stopped", "stop_s": 0.03},
    ]
    log = tmp_path / "swapd.log"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "no JSON\n")
    assert {figure.what: figure.swapd for figure in swap.steps(log)} == {
        "of which: stop and reap the other": (10.0, 30.0),
        "of which: until the worker's libraries are in": (20.0,),
        "of which: load": (100.0,),
        "of which: warm-up": (50.0,),
    }
