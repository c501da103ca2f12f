"""What each device takes when a model's layers are laid out in one way. Pure sums by llama.cpp's rules.

Source: llama.cpp, llama_model::load_tensors: layer i is on a GPU iff i >= max(L + 1 - n_gpu_layers, 0), on the one
whose share of the cumulative tensor_split it falls into; the token embedding is always in RAM, and when it serves as
the output too, the output's device has a copy. Must never choose between ways.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from swapd.core.spec import RAM, LayerCosts


@dataclass(frozen=True, slots=True)
class Layout:
    """The last layers of a model on GPUs, in order; the rest, and the experts of the first blocks, in RAM."""

    devices: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    """On each of `devices`, at least one."""
    n_cpu_moe: int = 0
    by_rows: bool = False
    """Matrices are cut into rows over all devices (split_mode row); the cache still goes by layers."""

    def __post_init__(self) -> None:
        assert len(self.devices) == len(self.layers)
        assert all(count > 0 for count in self.layers)

    @property
    def n_gpu_layers(self) -> int:
        return sum(self.layers)


def gpu_compute_bytes(costs: LayerCosts, n_gpu_layers: int, gpus: int, n_cpu_moe: int, *, by_rows: bool) -> int:
    """The compute buffers on each GPU. Several that hold all layers work in turn, with copies of the inputs.

    Source: llama_context's constructor, pipeline_parallel: not with rows, nor with experts in RAM.
    """
    size_bytes = costs.gpu_compute_bytes or costs.compute_bytes
    works_in_turn = gpus > 1 and n_gpu_layers == costs.layers and n_cpu_moe == 0 and not by_rows
    return size_bytes + (costs.gpu_pipeline_bytes if works_in_turn else 0)


def gpu_copy_bytes(costs: LayerCosts, n_gpu_layers: int, n_cpu_moe: int) -> int:
    """What the first GPU takes for copies of what lies in RAM, where it computes that too.

    Source: ggml-backend.cpp, op_offload: of the backends in their order the first that can takes the operation.
    """
    if n_gpu_layers < costs.layers:
        return costs.gpu_layer_copy_bytes
    return costs.gpu_expert_copy_bytes if any(costs.layer_expert_bytes[:n_cpu_moe]) else costs.gpu_kept_copy_bytes


@dataclass(frozen=True, slots=True)
class Parts:
    """One device's bytes by what they are for."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    other_bytes: int = 0
    """In RAM the process and its buffers, on a GPU what the driver takes for it."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.other_bytes


def parts(costs: LayerCosts, layout: Layout) -> dict[str, Parts]:
    """Each device's bytes. RAM is always among them."""
    first = costs.layers - layout.n_gpu_layers
    assert first >= 0, "more layers on GPUs than the model has"
    moved = gpu_weights(costs, layout.n_cpu_moe)
    experts_in_ram = sum(costs.layer_weights_bytes[first:]) - sum(moved[first:])
    if first < costs.layers:
        moved[-1] += costs.tied_output_bytes
    copied_bytes = gpu_copy_bytes(costs, layout.n_gpu_layers, layout.n_cpu_moe)
    computes = (first > 0 or experts_in_ram > 0) and not (layout.devices and copied_bytes)
    compute_bytes = gpu_compute_bytes(
        costs, layout.n_gpu_layers, len(layout.devices), layout.n_cpu_moe, by_rows=layout.by_rows
    )
    copies_bytes = compute_bytes - (costs.gpu_compute_bytes or costs.compute_bytes)
    found = {
        RAM: Parts(
            costs.host_weights_bytes + sum(costs.layer_weights_bytes[:first]) + experts_in_ram,
            sum(costs.layer_kv_bytes[:first]),
            (costs.compute_bytes if computes else costs.gpu_host_compute_bytes) + copies_bytes,
            costs.host_bytes,
        )
    }
    for device, count in zip(layout.devices, layout.layers, strict=True):
        own_copies = copied_bytes if device == layout.devices[0] else 0
        layers = slice(first, first + count)
        weights_bytes = sum(moved[layers])
        if layout.by_rows:
            weights_bytes = -(-sum(moved[costs.layers - layout.n_gpu_layers :]) * count // layout.n_gpu_layers)
        found[device] = Parts(
            weights_bytes,
            sum(costs.layer_kv_bytes[layers]),
            compute_bytes + own_copies,
            costs.gpu_context_bytes,
        )
        first += count
    return found


def gpu_weights(costs: LayerCosts, n_cpu_moe: int) -> list[int]:
    """Each layer's weights less the experts that stay in RAM."""
    experts = costs.layer_expert_bytes
    return [
        size_bytes - (experts[layer] if layer < n_cpu_moe and experts else 0)
        for layer, size_bytes in enumerate(costs.layer_weights_bytes)
    ]


def charges(found: Mapping[str, Parts], shares: Mapping[str, str]) -> dict[str, int]:
    """Bytes to reserve on each device: those of one that shares another's memory count on that one, too."""
    sizes = {name: part.total_bytes for name, part in found.items()}
    for name, memory in shares.items():
        if name in found:
            sizes[memory] = sizes.get(memory, 0) + found[name].total_bytes
    return sizes


def lay(costs: LayerCosts, layout: Layout, shares: Mapping[str, str] | None = None) -> dict[str, int]:
    """Bytes to reserve on each device."""
    return charges(parts(costs, layout), shares or {})


def layers_by_split(tensor_split: Sequence[float], n_gpu_layers: int) -> tuple[int, ...]:
    """How many of the layers on GPUs each share of a tensor_split gets; some may get none."""
    bounds = list(accumulate(tensor_split))
    counts = [0] * len(bounds)
    for layer in range(n_gpu_layers):
        counts[min(bisect_right(bounds, layer * bounds[-1] / n_gpu_layers), len(bounds) - 1)] += 1
    return tuple(counts)
