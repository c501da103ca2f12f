"""What the benchmarks make of their samples."""

from __future__ import annotations

import pytest
from benchmarks.figures import Figure, at_least, at_most, document, figures_of, geometric_mean, percentile
from benchmarks.long_text import speeds
from benchmarks.throughput import SCENARIOS, parse


def test_samples_are_compared_pair_by_pair_and_the_median_counts() -> None:
    figure = Figure(
        scenario="plain",
        what="N=1",
        unit="tok/s",
        swapd=(11.0, 20.0, 24.0),
        llama_server=(10.0, 10.0, 30.0),
        target=at_least(1.0),
    )
    assert figure.comparisons == (1.1, 2.0, 0.8)
    assert (figure.compared, figure.met) == (1.1, True)
    assert "ratio 1.100 [0.800-2.000]  (at least 1: met)" in str(figure)
    assert document(figure)["compared_median"] == 1.1


def test_without_a_server_beside_it_nothing_is_said_about_a_ratio() -> None:
    (figure,) = figures_of("prefix", "s", [[{"cold": 2.0}]], {"cold": "first"}, {"cold": at_most(0.3)})
    assert (figure.llama_server, figure.compared, figure.met) == ((), None, None)
    assert "met" not in str(figure)


def test_differences_and_samples_by_themselves_have_targets_too() -> None:
    samples = [[{"Rss": 250.0}], [{"Rss": 180.0}]]
    (apart,) = figures_of("memory", "MiB", samples, {"Rss": "x"}, {"Rss": at_most(60)}, "difference")
    assert (apart.compared, apart.met) == (70.0, False)
    assert "NOT MET" in str(apart)
    (alone,) = figures_of("pressure", "", [[{"a": 1.0}], [{"a": 0.0}]], {"a": "x"}, {"a": at_least(1)}, "itself")
    assert alone.met
    assert "ratio" not in str(alone)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 9.0], 99) == 9.0
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_the_speed_of_a_long_text_is_that_of_its_windows() -> None:
    times, at_s = [], 0.0
    for event in range(1001):
        times.append(at_s)
        at_s += 0.01 if event < 500 else 0.02
    found = speeds(times, 100)
    assert found == pytest.approx({"first": 100, "middle": 100 / 1.5, "last": 50, "kept": 0.5}, rel=0.02)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_count_of_a_scenario_can_be_set(name: str) -> None:
    parameters = SCENARIOS[name].parameters()
    given = parse([name, "--alternations", "2"])
    assert {key: value for key, value in vars(given).items() if hasattr(parameters, key)}
    assert (given.scenarios, given.alternations) == ([name], 2)


def test_all_runs_every_scenario() -> None:
    assert parse(["all"]).scenarios == list(SCENARIOS)
    assert parse(["plain", "--streams", "1,3"]).streams == (1, 3)
