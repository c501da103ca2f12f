"""Memory of engines that place themselves: what the settings declare, else what was measured, else all there is.

Pure. Owns the margin on what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.base import Inspection
from swapd.core.placement import MIB
from swapd.core.spec import RAM, LayerCosts

Fixed = Mapping[str, int | None]
"""Bytes by device; None where they are not known."""

MARGIN_SHARE, MARGIN_BYTES = 1 / 8, 128 * MIB
"""More than what was measured, the larger of the two: the next run may take more than the last."""
ASSUMED_RAM_BYTES = 1024 * MIB
"""For the processes of a program whose settings declare what it takes of GPUs alone, until it was seen."""


def fixed_of(inspection: Inspection, device_names: Iterable[str]) -> Fixed | None:
    """What the settings say; None for an engine whose layers are placed."""
    if not inspection.places_itself:
        return None
    if inspection.declared_bytes:
        return {RAM: ASSUMED_RAM_BYTES, **inspection.declared_bytes}
    names = inspection.devices or sorted(set(device_names) - {RAM})
    return dict.fromkeys([*names, RAM])


def with_measured(fixed: Fixed, declared: Mapping[str, int], measured: Mapping[str, int]) -> Fixed:
    """The same with what its workers were seen to take, where nothing is declared.

    A program that was seen on some GPU has nothing on those where it was not.
    """
    if not measured:
        return fixed
    on_gpus = any(size_bytes for name, size_bytes in measured.items() if name != RAM)
    known: dict[str, int | None] = {}
    for name, size_bytes in fixed.items():
        seen = measured.get(name, 0 if on_gpus and name != RAM else None)
        known[name] = size_bytes if name in declared or seen is None else with_margin(seen)
    return known


def with_margin(seen_bytes: int) -> int:
    return seen_bytes + max(int(seen_bytes * MARGIN_SHARE), MARGIN_BYTES) if seen_bytes else 0


def fixed_costs(fixed: Fixed) -> LayerCosts:
    """What the core counts a model's size by."""
    return LayerCosts((0,), (0,), host_bytes=sum(size_bytes or 0 for size_bytes in fixed.values()), compute_bytes=0)
