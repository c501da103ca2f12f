"""Where bytes go: llama.cpp's rule for layers, and the sums that are shown to people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.placement import MIB, describe, fits, lay, misfit, options, place, shortage
from swapd.core.spec import LayerCosts, ModelSpec

COSTS = LayerCosts((10, 20, 30, 400), (1, 2, 3, 0), host_bytes=5_000, compute_bytes=70_000)
"""Three layers and the output layer; each part shows in its own digits."""


def spec(costs: LayerCosts = COSTS, **settings: object) -> ModelSpec:
    return ModelSpec("m", "1", 2, costs, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_gpu_layers", "expected"),
    [
        (0, {"RAM": 75_466}),
        (1, {"RAM": 75_066, "CUDA0": 70_400}),
        (2, {"RAM": 75_033, "CUDA0": 70_433}),
        (3, {"RAM": 75_011, "CUDA0": 70_455}),
        (4, {"RAM": 5_000, "CUDA0": 70_466}),
        (99, {"RAM": 5_000, "CUDA0": 70_466}),
    ],
)
def test_the_last_layers_go_to_the_gpu_and_the_output_counts_as_one(
    n_gpu_layers: int, expected: dict[str, int]
) -> None:
    assert lay(COSTS, "CUDA0", n_gpu_layers) == expected


def test_on_the_cpu_everything_is_in_ram() -> None:
    assert lay(COSTS, None, 0) == {"RAM": COSTS.total_bytes}


sizes = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20)


@given(sizes, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 25))
def test_no_byte_is_lost_or_counted_twice(
    layers: list[tuple[int, int]], host_bytes: int, compute_bytes: int, n_gpu_layers: int
) -> None:
    weights, kv = zip(*layers, strict=True)
    costs = LayerCosts(weights, kv, host_bytes, compute_bytes)
    laid = lay(costs, "CUDA0", n_gpu_layers)
    split = 0 < n_gpu_layers < len(layers)
    assert sum(laid.values()) == costs.total_bytes + (compute_bytes if split else 0)


def test_auto_puts_all_layers_on_each_gpu_that_is_allowed() -> None:
    names = ["CUDA0", "CUDA1", "RAM"]
    assert [way.devices for way in options(spec(), names)] == [("CUDA0",), ("CUDA1",)]
    assert [way.devices for way in options(spec(devices=("CUDA1",)), names)] == [("CUDA1",)]
    assert {way.n_gpu_layers for way in options(spec(), names)} == {4}


def test_no_gpu_layers_or_no_gpu_means_the_cpu() -> None:
    assert [way.devices for way in options(spec(n_gpu_layers=0), ["CUDA0", "RAM"])] == [()]
    assert [way.devices for way in options(spec(), ["RAM"])] == [()]


def test_a_way_says_in_words_what_goes_where() -> None:
    costs = LayerCosts((300 * MIB, 200 * MIB), (0, 0), host_bytes=100 * MIB, compute_bytes=0)
    (way,) = options(spec(costs, n_gpu_layers=1), ["CUDA0", "RAM"])
    assert way.why == "the last 1 of 2 layers on CUDA0, CUDA0 200 MiB and RAM 400 MiB"


def test_the_fullest_device_that_still_holds_it_is_taken() -> None:
    ways = options(spec(), ["CUDA0", "CUDA1", "CUDA2", "RAM"])
    free = {"CUDA0": 500_000, "CUDA1": 80_000, "CUDA2": 70_000, "RAM": 10_000}
    chosen = place(ways, free)
    assert chosen is not None
    assert chosen.devices == ("CUDA1",)


def test_a_gpu_is_no_use_when_the_ram_beside_it_is_short() -> None:
    assert place(options(spec(), ["CUDA0", "RAM"]), {"CUDA0": 500_000, "RAM": 4_999}) is None


def test_a_size_that_fits_exactly_fits() -> None:
    assert fits({"RAM": 100}, {"RAM": 100})
    assert not fits({"RAM": 101}, {"RAM": 100})
    assert not fits({"CUDA7": 1}, {"RAM": 100})


def test_the_shortage_lists_only_devices_that_are_short() -> None:
    assert shortage({"CUDA0": 100, "RAM": 50}, {"CUDA0": 30, "RAM": 50}) == {"CUDA0": 70}
    assert shortage({"CUDA0": 100}, {"CUDA0": -20}) == {"CUDA0": 120}


def test_sizes_are_rounded_up_and_grouped() -> None:
    assert describe({"RAM": 1, "CUDA0": 5_120 * MIB}) == "CUDA0 5,120 MiB and RAM 1 MiB"
    assert describe({}) == "nothing"


def test_a_model_that_fits_somewhere_is_no_misfit() -> None:
    assert misfit(spec(), {"CUDA0": 10, "CUDA1": 80_000, "RAM": 10_000}) is None


def test_a_misfit_shows_the_sum_of_every_way_per_device() -> None:
    costs = LayerCosts((3000 * MIB,), (1000 * MIB,), host_bytes=100 * MIB, compute_bytes=50 * MIB)
    budgets = {"CUDA0": 2000 * MIB, "CUDA1": 4000 * MIB, "RAM": 8000 * MIB}
    assert misfit(spec(costs), budgets) == (
        "model 'm' can never fit: "
        "CUDA0 needs 4,050 MiB of a budget of 2,000 MiB, RAM needs 100 MiB of a budget of 8,000 MiB; or "
        "CUDA1 needs 4,050 MiB of a budget of 4,000 MiB, RAM needs 100 MiB of a budget of 8,000 MiB. "
        "Lower its n_ctx or n_gpu_layers, quantize its cache (type_k, type_v), or raise memory.budget."
    )
