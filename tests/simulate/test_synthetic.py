"""Made-up traffic is what was ordered, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from swapd.simulate.synthetic import DAY_S, Traffic, TrafficError, synthesize, traffic
from swapd.simulate.work import jobs

MODELS = ["first", "second", "third"]


def test_an_order_without_settings_has_the_defaults() -> None:
    assert traffic("zipf") == Traffic()


def test_settings_are_numbers_and_a_time() -> None:
    ordered = traffic("zipf:clients=3,rate=0.5,for=10m,skew=0,burst=2.5,diurnal=0.8,output_tokens=40,tokens_per_s=9")
    assert (ordered.clients, ordered.rate, ordered.duration_s, ordered.skew) == (3, 0.5, 600.0, 0.0)
    assert (ordered.burst, ordered.diurnal, ordered.output_tokens, ordered.tokens_per_s) == (2.5, 0.8, 40, 9.0)


@pytest.mark.parametrize(
    "order",
    [
        "uniform", "zipf:clients", "zipf:colour=1", "zipf:clients=0", "zipf:clients=2,clients=3", "zipf:for=10",
        "zipf:rate=nan", "zipf:rate=inf", "zipf:diurnal=1.5", "zipf:rate=9999,for=100h", "zipf:clients=1.5",
        "zipf:duration_s=3",
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_had_is_refused_with_an_example(order: str) -> None:
    with pytest.raises(TrafficError) as caught:
        traffic(order)
    assert "zipf:clients=12" in str(caught.value) or "at most" in str(caught.value)


def test_the_same_seed_is_the_same_trace_and_another_is_another() -> None:
    ordered = traffic("zipf:burst=3")
    assert synthesize(ordered, MODELS, 1) == synthesize(ordered, MODELS, 1)
    assert synthesize(ordered, MODELS, 1) != synthesize(ordered, MODELS, 2)


def test_models_are_asked_for_by_zipfs_law_at_the_ordered_rate() -> None:
    trace = synthesize(traffic("zipf:rate=2,for=2h,skew=1"), MODELS, 7)
    counts = Counter(request.model for request in trace.requests)
    total = sum(counts.values())
    # 1 : 1/2 : 1/3 of 14,400 requests, within four standard deviations.
    assert abs(total - 14_400) < 4 * 120
    for name, share in zip(MODELS, (6 / 11, 3 / 11, 2 / 11), strict=True):
        assert abs(counts[name] / total - share) < 0.017


def test_bursts_leave_the_rate_and_come_from_one_client_to_one_model() -> None:
    trace = synthesize(traffic("zipf:rate=2,for=2h,burst=8,clients=1000"), MODELS, 7)
    assert abs(len(trace.requests) - 14_400) < 2_000
    pairs = Counter((request.client, request.model) for request in trace.requests)
    assert len(trace.requests) / len(pairs) > 5


def test_nights_are_quiet_and_days_are_not() -> None:
    trace = synthesize(traffic("zipf:rate=0.1,for=24h,diurnal=1"), MODELS, 7)
    by_quarter = Counter(int(request.at_s // (DAY_S / 4)) for request in trace.requests)
    assert by_quarter[1] > 3 * by_quarter[0]
    assert by_quarter[2] > 3 * by_quarter[3]


def test_the_answers_are_written_at_the_ordered_pace() -> None:
    trace = synthesize(traffic("zipf:tokens_per_s=10,prompt_tokens=1,output_tokens=100"), MODELS, 7)
    for request, job in zip(trace.requests, jobs(trace, []), strict=True):
        assert request.output_tokens is not None
        assert job.service_s == pytest.approx(request.output_tokens / 10, rel=0.1, abs=0.1)
