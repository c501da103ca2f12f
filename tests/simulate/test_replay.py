"""Policies replayed: each does what its name says, on the same machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from support.simulation import MIB, gpu, metered, model, ram

from swapd.core.spec import DeviceSpec, ModelSpec
from swapd.simulate.baselines import BASELINES, FirstInFirstOut, LeastRecentlyUsed, OneAtATime
from swapd.simulate.replay import START_S, STOP_S, core, replay
from swapd.simulate.report import Figures, Tally, percentile
from swapd.simulate.shell import Decide
from swapd.simulate.synthetic import synthesize, traffic
from swapd.simulate.work import Job, jobs

EVERYONE: dict[str, type | None] = {"swapd": None} | {one.name: one for one in BASELINES}
LOAD_S = 2.0
ROOM_FOR_TWO = [ram(1000)]


def policy(name: str) -> Decide:
    made = EVERYONE[name]
    return core() if made is None else made()


def models(names: str = "abc", **settings: object) -> list[ModelSpec]:
    return [model(name, 400, **settings) for name in names]  # type: ignore[arg-type]


def asked(*wishes: tuple[float, str, float]) -> list[Job]:
    """Jobs by arrival, model and service time."""
    return [
        Job(str(number), at_s, name, f"client-{number}", 0, service_s, 10)
        for number, (at_s, name, service_s) in enumerate(sorted(wishes, key=lambda wish: wish[0]))
    ]


def run(
    decide: Decide, work: list[Job], specs: list[ModelSpec], devices: Sequence[DeviceSpec] = ROOM_FOR_TWO
) -> Figures:
    return replay("it", decide, devices, specs, work, {spec.id: LOAD_S for spec in specs})


@pytest.mark.parametrize("name", EVERYONE)
def test_a_single_request_waits_for_its_load(name: str) -> None:
    figures = run(policy(name), asked((0.0, "a", 1.0)), models())
    assert figures.wait_worst_s == pytest.approx(LOAD_S, abs=0.01)
    assert (figures.served, figures.loads, figures.evictions, figures.tokens) == (1, 1, 0, 10)
    assert figures.ended_s == pytest.approx(LOAD_S + 1.0, abs=0.01)


@pytest.mark.parametrize("name", EVERYONE)
@pytest.mark.parametrize("seed", range(5))
def test_every_request_ends_and_no_budget_is_exceeded(name: str, seed: int) -> None:
    rng = random.Random(seed)
    on_gpu = seed % 2 == 1
    devices = [gpu("CUDA0", 900), metered("CUDA1", 700, reserve_mib=50), metered("RAM", 4000)] if on_gpu else [ram(900)]
    specs = [
        model(name_, rng.choice([200, 400, 600]), gpu=on_gpu, slots=rng.randint(1, 3), queue_timeout_s=60.0,
              max_waiting=20)
        for name_ in "abcde"
    ]  # fmt: skip
    trace = synthesize(traffic("zipf:rate=0.5,for=10m,burst=3"), "abcde", seed)
    work = jobs(trace, specs)
    figures = run(policy(name), work, specs, devices)
    assert figures.requests == len(work) == figures.served + sum(figures.refused.values())
    assert set(figures.refused) <= {"queue_full", "queue_timeout"}
    assert all(use.mean_bytes <= use.peak_bytes <= use.budget_bytes for use in figures.devices)
    assert max(use.peak_bytes for use in figures.devices) > 0


@pytest.mark.parametrize("name", EVERYONE)
def test_models_that_cannot_be_served_are_refused_by_kind(name: str) -> None:
    broken = ModelSpec("bad", "1", 1, None, verdict="no such file")
    specs = [*models(), model("huge", 5000), broken]
    figures = run(policy(name), asked((0, "huge", 1), (0, "bad", 1), (0, "nowhere", 1), (0, "a", 1)), specs)
    assert figures.refused == {"does_not_fit": 1, "invalid_model": 1, "unknown_model": 1}
    assert figures.served == 1


@pytest.mark.parametrize("name", EVERYONE)
def test_a_full_queue_and_a_long_wait_are_refusals(name: str) -> None:
    specs = models("a", slots=1, max_waiting=2, queue_timeout_s=5.0)
    figures = run(policy(name), asked(*[(0.0, "a", 4.0)] * 4), specs)
    assert figures.refused == {"queue_full": 2, "queue_timeout": 1}
    assert figures.served == 1
    assert figures.wait_worst_s == pytest.approx(5.0)


@pytest.mark.parametrize("name", EVERYONE)
def test_long_loads_and_long_requests_are_not_taken_for_stuck(name: str) -> None:
    specs = models("a", load_timeout_s=1.0, stall_timeout_s=3.0)
    figures = run(policy(name), asked((0.0, "a", 50.0), (1.0, "a", 0.5), (20.0, "a", 0.5)), specs)
    assert (figures.served, figures.loads) == (3, 1)


def test_the_least_recently_used_idle_model_leaves() -> None:
    # a and b fit together; b was used last when c comes, and is still there afterwards.
    work = asked((0, "a", 1), (10, "b", 1), (20, "c", 1), (40, "b", 1), (60, "a", 1))
    figures = run(LeastRecentlyUsed(), work, models())
    assert (figures.loads, figures.evictions) == (4, 2)


def test_least_recently_used_never_makes_a_busy_model_leave() -> None:
    specs = models(slots=1, queue_timeout_s=30.0)
    busy = [(float(second), name, 1.0) for second in range(60) for name in "ab"]
    figures = run(LeastRecentlyUsed(), asked(*busy, (5.0, "c", 1.0)), specs)
    assert figures.refused == {"queue_timeout": 1}
    assert run(core(), asked(*busy, (5.0, "c", 1.0)), models(slots=1, max_wait_s=5.0)).refused == {}


def test_first_in_first_out_lets_nobody_pass_the_head() -> None:
    # c needs the room of one that is busy for 30 s; a's second request could be served meanwhile.
    work = asked((0, "a", 30), (0, "b", 30), (5, "c", 1), (6, "a", 1))
    assert run(LeastRecentlyUsed(), work, models()).wait_p50_s == pytest.approx(LOAD_S, abs=0.01)
    fifo = run(FirstInFirstOut(), work, models())
    # Two served after their loads (b's began after a's: the head was waited for), the other two after 30 s.
    assert fifo.wait_p95_s > 25.0
    assert fifo.served == 4


def test_one_at_a_time_swaps_for_each_request_in_order_of_arrival() -> None:
    work = asked(*[(0.001 * number, "ab"[number % 2], 1.0) for number in range(6)])
    figures = run(OneAtATime(), work, models())
    assert (figures.loads, figures.evictions) == (6, 5)
    assert figures.wait_worst_s == pytest.approx(6 * LOAD_S + 5 * (1.0 + STOP_S), abs=0.1)
    assert max(use.peak_bytes for use in figures.devices) < 500 * MIB
    assert run(core(), work, models()).loads == 2


def test_pinned_models_are_there_from_the_start_and_stay() -> None:
    specs = [model("p", 400, pin=True), *models("ab")]
    work = asked((10, "p", 1), (20, "a", 1), (30, "b", 1), (40, "p", 1))
    for decide in (core(), LeastRecentlyUsed(), FirstInFirstOut()):
        figures = run(decide, work, specs)
        assert (figures.loads, figures.evictions) == (3, 1)


def test_budget_use_is_a_mean_over_time() -> None:
    tally = Tally([ram(1000)])
    tally.hold({"RAM": 600}, 0.0)
    tally.hold({"RAM": -600}, 5.0)
    (use,) = tally.figures("it", 0, 10.0).devices
    assert (use.mean_bytes, use.peak_bytes) == (300, 600)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert percentile([], 0.5) == 0.0


def test_the_machine_is_no_slower_to_start_than_to_load() -> None:
    assert replay("it", core(), [ram(1000)], models("a"), asked((0, "a", 1)), {"a": START_S / 2}).served == 1
