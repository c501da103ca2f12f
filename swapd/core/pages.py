"""Weights in RAM that are pages of mapped files: workers of the same files share them, and they count once. Pure sums.

Two workers share pages when their files are the same and the same tensors of them are in RAM. Anything else, two
different splits of one file among them, is counted apart, which is never too little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from swapd.core.layout import Layout, parts
from swapd.core.spec import RAM, ModelSpec, Placement, SplitMode


@dataclass(frozen=True, slots=True)
class Pages:
    """The weights in RAM of one way to lay out a model. Equal ones are the same pages."""

    files: str
    """`ModelSpec.mapped_files`."""
    first_gpu_layer: int
    n_cpu_moe: int
    size_bytes: int


class Holder(Protocol):
    """A worker, as far as its memory goes."""

    placement: Placement
    pages: Pages | None


def pages_of(spec: ModelSpec, placement: Placement) -> Pages | None:
    """The pages that a worker put there would map; None if its weights are its own, or none are in RAM."""
    costs = spec.costs
    if spec.mapped_files is None or costs is None:
        return None
    by_rows = spec.split_mode is SplitMode.ROW
    layout = Layout(placement.devices, placement.tensor_split, placement.n_cpu_moe, by_rows)
    size_bytes = parts(costs, layout)[RAM].weights_bytes
    first = costs.layers - placement.n_gpu_layers
    return Pages(spec.mapped_files, first, placement.n_cpu_moe, size_bytes) if size_bytes else None


def held_bytes(holders: Iterable[Holder], device: str) -> int:
    """What these workers take of a device together."""
    total, counted = 0, set()
    for holder in holders:
        total += holder.placement.device_bytes.get(device, 0)
        if device != RAM or holder.pages is None:
            continue
        if holder.pages in counted:
            total -= holder.pages.size_bytes
        counted.add(holder.pages)
    return total


def needed_bytes(spec: ModelSpec, placement: Placement, mapped: Collection[Pages]) -> Mapping[str, int]:
    """What one more worker takes of each device beside those that have these pages mapped."""
    pages = pages_of(spec, placement)
    if pages is None or pages not in mapped:
        return placement.device_bytes
    return {**placement.device_bytes, RAM: placement.device_bytes[RAM] - pages.size_bytes}
