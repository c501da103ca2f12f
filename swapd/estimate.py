"""What a model would take on each device, and whether it can ever fit: for people, before anything runs.

Owns the split of a footprint into weights, cache and buffers per device. Pure; asks `swapd.core.placement`
where things would go, so that an estimate and the scheduler cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from backends.base import Inspection
from swapd.core import placement
from swapd.core.layout import Layout, parts
from swapd.core.spec import LayerCosts, ModelSpec, Placement, Room, SplitMode


class DeviceEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part. `total_bytes` is the sum of the others."""

    name: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    other_bytes: int
    """In RAM the output buffer and the worker process itself, on a GPU what the driver takes for it."""
    total_bytes: int
    budget_bytes: int


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """One model under these budgets. `fit` is one sentence for people."""

    model: str
    description: str
    n_ctx: int
    slots: int
    devices: tuple[DeviceEstimate, ...]
    total_bytes: int
    fits: bool
    fit: str


def estimate(spec: ModelSpec, inspection: Inspection, room: Room) -> Estimate:
    """Lay the model out under budgets, in bytes by device name: the layout that fits, else the one preferred."""
    assert spec.costs is not None
    chosen = placement.place(spec, room)
    laid_out = chosen or placement.preferred(spec, room)
    devices = _devices(spec.costs, laid_out, room.free_bytes, by_rows=spec.split_mode is SplitMode.ROW)
    return Estimate(
        model=spec.id,
        description=inspection.description,
        n_ctx=inspection.n_ctx,
        slots=inspection.slots,
        devices=devices,
        total_bytes=sum(device.total_bytes for device in devices),
        fits=chosen is not None,
        fit=_fit(laid_out, room.free_bytes) if chosen is not None else placement.misfit(spec, room) or "",
    )


def _fit(laid_out: Placement, budgets: Mapping[str, int]) -> str:
    allowed = placement.describe({name: budgets[name] for name in laid_out.device_bytes})
    return f"fits {laid_out.why}, of a budget of {allowed}"


def _devices(
    costs: LayerCosts, laid_out: Placement, budgets: Mapping[str, int], *, by_rows: bool
) -> tuple[DeviceEstimate, ...]:
    """The placement's bytes again, by what they are for; each byte once, also where devices share a memory."""
    layout = Layout(laid_out.devices, laid_out.tensor_split, laid_out.n_cpu_moe, by_rows)
    return tuple(
        DeviceEstimate(
            name=name,
            weights_bytes=part.weights_bytes,
            kv_bytes=part.kv_bytes,
            compute_bytes=part.compute_bytes,
            other_bytes=part.other_bytes,
            total_bytes=part.total_bytes,
            budget_bytes=budgets.get(name, 0),
        )
        for name, part in parts(costs, layout).items()
    )
