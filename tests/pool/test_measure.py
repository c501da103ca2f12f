"""What a worker really takes: readings become corrections, upwards at once and downwards by half."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.layout import Layout, lay
from swapd.core.spec import RAM, LayerCosts, Placement
from swapd.pool.measure import (
    MIB,
    PLAUSIBLE_BYTES,
    SHORT_STEP_BYTES,
    STEP_BYTES,
    Run,
    Surplus,
    after_running_out,
    corrected,
    grown,
    settled,
)

COSTS = LayerCosts(
    (100 * MIB,) * 4,
    (10 * MIB,) * 4,
    host_bytes=80 * MIB,
    compute_bytes=40 * MIB,
    host_weights_bytes=50 * MIB,
    gpu_compute_bytes=30 * MIB,
    gpu_context_bytes=200 * MIB,
)
"""All in RAM: 450 MiB of weights and 160 of the rest. All on a GPU: 440 + 30 + 200 there, 130 in RAM."""


def run(*devices: str, maps: bool = True) -> Run:
    layers = {0: (), 1: (4,), 2: (2, 2)}[len(devices)]
    placement = Placement(lay(COSTS, Layout(devices, layers)), sum(layers), devices, "", tensor_split=layers)
    return Run.of("m", "key", placement, COSTS, by_rows=False, maps=maps)


def served(one: Run) -> Run:
    one.served = True
    return one


def test_mapped_weights_are_counted_with_what_no_file_backs() -> None:
    one = run()
    one.see(RAM, 170 * MIB)
    assert one.seen_bytes == {RAM: 620 * MIB}
    assert one.host_beyond_bytes() == 16 * MIB, "ten, in whole steps"


def test_weights_that_may_be_copies_are_not_counted_twice() -> None:
    one = run(maps=False)
    one.see(RAM, 500 * MIB)
    assert one.seen_bytes == {RAM: 610 * MIB}, "less than was worked out is no news"
    one.see(RAM, 700 * MIB)
    assert one.host_beyond_bytes() == 96 * MIB


def test_the_most_that_was_seen_counts() -> None:
    one = run("CUDA0")
    one.see("CUDA0", 700 * MIB)
    one.see("CUDA0", 690 * MIB)
    assert one.seen_bytes == {"CUDA0": 700 * MIB}


def test_of_several_gpus_the_one_with_the_most_beyond_counts() -> None:
    one = run("CUDA0", "CUDA1")
    one.see("CUDA0", 450 * MIB)
    one.see("CUDA1", 466 * MIB)
    assert one.gpu_beyond_bytes() == 16 * MIB


def test_a_device_it_is_not_on_says_nothing_of_it() -> None:
    one = run("CUDA0")
    one.see("CUDA7", 1)
    assert (one.seen_bytes, one.host_beyond_bytes(), one.gpu_beyond_bytes()) == ({}, None, None)


def test_ram_is_never_corrected_below_what_was_worked_out() -> None:
    one = served(run())
    one.see(RAM, 5 * MIB)
    assert settled(Surplus(), one) == Surplus()


def test_what_was_assumed_for_a_gpus_driver_is_taken_back_by_half_each_time() -> None:
    known = Surplus()
    sizes = []
    for _ in range(5):
        one = served(run("CUDA0"))
        one.see("CUDA0", 510 * MIB)
        assert grown(known, one) == known, "while it runs nothing is taken back"
        known = settled(known, one)
        sizes.append(known.gpu_bytes // MIB)
    assert sizes == [-80, -120, -136, -144, -152]


def test_no_more_is_taken_back_than_was_assumed_for_the_driver() -> None:
    one = served(run("CUDA0"))
    one.see("CUDA0", MIB)
    assert one.gpu_beyond_bytes() == -200 * MIB


def test_nothing_is_taken_back_after_a_run_without_work_or_by_a_difference_in_free_memory() -> None:
    idle = run("CUDA0")
    idle.see("CUDA0", 510 * MIB)
    assert settled(Surplus(), idle) == Surplus()
    guessed = served(run("CUDA0"))
    guessed.free_before["CUDA0"] = 1000 * MIB
    guessed.see_difference("CUDA0", 500 * MIB)
    assert guessed.seen_bytes == {"CUDA0": 500 * MIB}
    assert settled(Surplus(), guessed) == Surplus()


def test_more_counts_at_once_and_less_by_half() -> None:
    one = served(run())
    one.see(RAM, 240 * MIB)
    assert grown(Surplus(), one) == Surplus(host_bytes=80 * MIB)
    assert settled(Surplus(host_bytes=160 * MIB), one) == Surplus(host_bytes=120 * MIB)


def test_what_was_not_seen_stays_as_it_is_known() -> None:
    one = served(run())
    one.see(RAM, 160 * MIB)
    assert settled(Surplus(gpu_bytes=64 * MIB), one) == Surplus(gpu_bytes=64 * MIB)


def test_a_difference_in_free_memory_is_believed_once_and_within_reason() -> None:
    one = run("CUDA0")
    one.free_before["CUDA0"] = 4000 * MIB
    one.see_difference("CUDA0", 3290 * MIB)
    assert one.gpu_beyond_bytes() == 40 * MIB
    one.see_difference("CUDA0", 100 * MIB)
    assert one.gpu_beyond_bytes() == 40 * MIB
    other = run("CUDA0")
    other.free_before["CUDA0"] = 40_000 * MIB
    other.see_difference("CUDA0", 40_000 * MIB - 4 * PLAUSIBLE_BYTES)
    assert other.seen_bytes == {}, "somebody else took that"


def test_a_load_that_ran_out_needed_more_than_was_reserved() -> None:
    assert after_running_out(Surplus(), 100 * MIB) == Surplus(gpu_bytes=SHORT_STEP_BYTES)
    assert after_running_out(Surplus(gpu_bytes=-100 * MIB), 16_000 * MIB) == Surplus(gpu_bytes=1000 * MIB)
    twice = after_running_out(after_running_out(Surplus(), 100 * MIB), 100 * MIB)
    assert twice.gpu_bytes == 2 * SHORT_STEP_BYTES


@pytest.mark.parametrize(
    ("surplus", "ram_mib", "gpu_mib"),
    [(Surplus(), 130, 670), (Surplus(16 * MIB, 8 * MIB), 146, 678), (Surplus(0, -120 * MIB), 130, 550)],
)
def test_costs_with_a_correction_are_laid_out_like_others(surplus: Surplus, ram_mib: int, gpu_mib: int) -> None:
    laid = lay(corrected(COSTS, surplus), Layout(("CUDA0",), (4,)))
    assert laid == {RAM: ram_mib * MIB, "CUDA0": gpu_mib * MIB}


sizes = st.integers(0, 4000 * MIB)


@given(sizes, sizes, sizes, st.booleans(), st.booleans())
def test_a_correction_covers_what_was_seen_and_never_falls_below_the_formula(
    ram: int, gpu: int, known: int, work: bool, maps: bool
) -> None:
    one = run("CUDA0", maps=maps)
    one.served = work
    one.see(RAM, ram)
    one.see("CUDA0", gpu)
    after = grown(Surplus(known, known), one)
    estimate = lay(corrected(COSTS, after), Layout(("CUDA0",), (4,)))
    assert all(estimate[name] >= seen for name, seen in one.seen_bytes.items())
    later = settled(after, one)
    assert 0 <= later.host_bytes <= after.host_bytes
    assert -COSTS.gpu_context_bytes <= later.gpu_bytes <= after.gpu_bytes
    assert later.host_bytes % STEP_BYTES == 0 or later.host_bytes == known
