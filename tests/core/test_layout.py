"""What each device takes: llama.cpp's rule for layers, as its own arithmetic has it, and no byte lost or doubled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.layout import Layout, Parts, lay, layers_by_split, parts
from swapd.core.spec import LayerCosts

COSTS = LayerCosts((10, 20, 30, 400), (1, 2, 3, 0), host_bytes=5_000, compute_bytes=70_000)
"""Three layers and the output layer; each part shows in its own digits."""
EXPERTS = LayerCosts((10, 20, 30, 400), (1, 2, 3, 0), 5_000, 70_000, layer_expert_bytes=(7, 17, 27, 0))


def on_one(count: int, n_cpu_moe: int = 0) -> Layout:
    return Layout(("CUDA0",), (count,), n_cpu_moe) if count else Layout()


@pytest.mark.parametrize(
    ("n_gpu_layers", "expected"),
    [
        (0, {"RAM": 75_466}),
        (1, {"RAM": 75_066, "CUDA0": 70_400}),
        (2, {"RAM": 75_033, "CUDA0": 70_433}),
        (3, {"RAM": 75_011, "CUDA0": 70_455}),
        (4, {"RAM": 5_000, "CUDA0": 70_466}),
    ],
)
def test_the_last_layers_go_to_the_gpu_and_the_output_counts_as_one(
    n_gpu_layers: int, expected: dict[str, int]
) -> None:
    assert lay(COSTS, on_one(n_gpu_layers)) == expected


def test_on_the_cpu_everything_is_in_ram() -> None:
    assert lay(COSTS, Layout()) == {"RAM": COSTS.total_bytes}


def test_layers_on_several_gpus_follow_one_another_and_each_computes() -> None:
    split = Layout(("CUDA0", "CUDA1"), (2, 1))
    assert lay(COSTS, split) == {"RAM": 75_011, "CUDA0": 70_055, "CUDA1": 70_400}


def test_experts_of_the_first_blocks_stay_in_ram_and_keep_the_cpu_computing() -> None:
    assert lay(EXPERTS, on_one(4)) == {"RAM": 5_000, "CUDA0": 70_466}
    assert lay(EXPERTS, on_one(4, n_cpu_moe=2)) == {"RAM": 75_024, "CUDA0": 70_442}


def test_experts_of_layers_that_are_in_ram_anyway_are_counted_once() -> None:
    assert lay(EXPERTS, on_one(2, n_cpu_moe=2)) == lay(COSTS, on_one(2))
    assert lay(EXPERTS, on_one(2, n_cpu_moe=3)) == {"RAM": 75_060, "CUDA0": 70_406}


def test_the_device_of_the_output_has_a_copy_of_a_tied_embedding() -> None:
    tied = LayerCosts((10, 20), (1, 0), 5_000, 0, tied_output_bytes=300, host_weights_bytes=300)
    assert lay(tied, Layout()) == {"RAM": 5_331}
    assert lay(tied, Layout(("CUDA0", "CUDA1"), (1, 1))) == {"RAM": 5_300, "CUDA0": 11, "CUDA1": 320}


def test_a_gpu_has_a_compute_buffer_and_a_context_of_its_own_size() -> None:
    costs = LayerCosts((10, 20), (0, 0), 0, 100, gpu_compute_bytes=7, gpu_host_compute_bytes=2, gpu_context_bytes=500)
    assert parts(costs, Layout(("CUDA0", "CUDA1"), (1, 1))) == {
        "RAM": Parts(0, 0, 2, 0),
        "CUDA0": Parts(10, 0, 7, 500),
        "CUDA1": Parts(20, 0, 7, 500),
    }
    assert parts(costs, on_one(1))["RAM"] == Parts(10, 0, 100, 0)


def test_gpus_that_work_in_turn_keep_copies_of_the_inputs() -> None:
    costs = LayerCosts((10, 20), (0, 0), 0, 100, gpu_compute_bytes=7, gpu_pipeline_bytes=3, layer_expert_bytes=(9, 0))
    both = ("CUDA0", "CUDA1")

    def compute_bytes(layout: Layout) -> list[int]:
        return [part.compute_bytes for part in parts(costs, layout).values()]

    assert compute_bytes(Layout(both, (1, 1))) == [3, 10, 10]
    assert compute_bytes(Layout(both, (1, 1), by_rows=True)) == [0, 7, 7]
    assert compute_bytes(Layout(both, (1, 1), n_cpu_moe=1)) == [100, 7, 7]
    assert compute_bytes(on_one(2)) == [0, 7]


def test_rows_are_shared_by_the_split_and_the_cache_goes_by_layers() -> None:
    rows = Layout(("CUDA0", "CUDA1"), (3, 1), by_rows=True)
    assert lay(COSTS, rows) == {"RAM": 5_000, "CUDA0": 70_000 + 345 + 6, "CUDA1": 70_000 + 115}


def test_the_bytes_of_an_integrated_gpu_are_reserved_in_ram_too() -> None:
    assert lay(COSTS, on_one(4), {"CUDA0": "RAM"}) == {"CUDA0": 70_466, "RAM": 75_466}
    assert lay(COSTS, Layout(), {"CUDA0": "RAM"}) == {"RAM": 75_466}


sizes = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20)


@given(sizes, st.integers(0, 10**9), st.integers(0, 10**9), st.lists(st.integers(1, 9), max_size=4), st.integers(0, 20))
def test_no_byte_is_lost_or_counted_twice(
    layers: list[tuple[int, int]], host_bytes: int, compute_bytes: int, counts: list[int], n_cpu_moe: int
) -> None:
    weights, kv = zip(*layers, strict=True)
    while sum(counts) > len(layers):
        counts.pop()
    layout = Layout(tuple(f"CUDA{number}" for number in range(len(counts))), tuple(counts), n_cpu_moe)
    costs = LayerCosts(weights, kv, host_bytes, compute_bytes, layer_expert_bytes=tuple(size // 2 for size in weights))
    laid = parts(costs, layout)
    assert sum(part.weights_bytes for part in laid.values()) == sum(weights)
    assert sum(part.kv_bytes for part in laid.values()) == sum(kv)
    assert sum(part.other_bytes for part in laid.values()) == host_bytes
    assert [part.compute_bytes for name, part in laid.items() if name != "RAM"] == [compute_bytes] * len(counts)


def llama_cpp_devices(n_layer: int, n_gpu_layers: int, tensor_split: list[float]) -> list[int | None]:
    """The device of each layer, the output layer last: llama_model::load_tensors in its own single precision."""
    splits = np.zeros(len(tensor_split), np.float32)
    split_sum = np.float32(0)
    for device, share in enumerate(tensor_split):
        split_sum += np.float32(share)
        splits[device] = split_sum
    splits /= split_sum
    first, act = max(n_layer + 1 - n_gpu_layers, 0), min(n_gpu_layers, n_layer + 1)
    return [
        int(np.searchsorted(splits, np.float32(layer - first) / np.float32(act), side="right"))
        if first <= layer < first + act
        else None
        for layer in range(n_layer + 1)
    ]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any), st.integers(0, 40))
def test_layer_counts_as_tensor_split_make_llama_cpp_do_exactly_what_was_reserved(
    counts: list[int], on_cpu: int
) -> None:
    devices = llama_cpp_devices(on_cpu + sum(counts) - 1, sum(counts), [float(count) for count in counts])
    assert devices.count(None) == on_cpu
    assert [devices.count(number) for number in range(len(counts))] == counts


@given(st.lists(st.integers(0, 16), min_size=1, max_size=6).filter(any), st.integers(1, 120))
def test_a_split_by_hand_is_counted_as_llama_cpp_counts_it(tensor_split: list[int], n_gpu_layers: int) -> None:
    devices = llama_cpp_devices(n_gpu_layers - 1, n_gpu_layers, [float(share) for share in tensor_split])
    ours = layers_by_split(tensor_split, n_gpu_layers)
    assert sum(ours) == n_gpu_layers
    # Where a bound falls on a layer to the last bit, the two precisions may differ by that layer.
    assert all(abs(ours[number] - devices.count(number)) <= 1 for number in range(len(tensor_split)))


COPYING = LayerCosts(
    (10, 20, 30),
    (1, 1, 0),
    0,
    100,
    gpu_compute_bytes=7,
    gpu_host_compute_bytes=2,
    layer_expert_bytes=(4, 4, 0),
    gpu_layer_copy_bytes=9,
    gpu_expert_copy_bytes=5,
    gpu_kept_copy_bytes=1,
)


def test_what_lies_in_ram_is_computed_on_the_first_gpu_from_copies() -> None:
    found = parts(COPYING, Layout(("CUDA0", "CUDA1"), (1, 1)))
    assert {name: part.compute_bytes for name, part in found.items()} == {"RAM": 2, "CUDA0": 16, "CUDA1": 7}


def test_copies_of_experts_or_of_what_is_kept_in_ram_take_less() -> None:
    experts = parts(COPYING, Layout(("CUDA0",), (3,), n_cpu_moe=1))
    assert (experts["CUDA0"].compute_bytes, experts["RAM"].compute_bytes) == (12, 2)
    assert parts(COPYING, Layout(("CUDA0",), (3,)))["CUDA0"].compute_bytes == 8


def test_without_a_gpu_or_without_copies_ram_computes_what_it_holds() -> None:
    assert parts(COPYING, Layout())["RAM"].compute_bytes == 100
    small = replace(COPYING, gpu_layer_copy_bytes=0)
    assert parts(small, Layout(("CUDA0",), (2,)))["RAM"].compute_bytes == 100
