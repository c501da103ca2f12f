"""What a model would take on each device, and whether it can ever fit: for people, before anything runs.

Owns the split of a footprint into weights, cache and buffers per device. Pure; asks `swapd.core.placement`
where things would go, so that an estimate and the scheduler cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from backends.base import Footprint, Inspection
from swapd.core import placement
from swapd.core.spec import RAM, ModelSpec, Placement


class DeviceEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part. `total_bytes` is the sum of the others."""

    name: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    other_bytes: int
    """RAM only: the output buffer and the worker process itself."""
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


def estimate(spec: ModelSpec, inspection: Inspection, budgets: Mapping[str, int]) -> Estimate:
    """Lay the model out under budgets in bytes by device name: the layout that fits, else the one preferred."""
    candidates = placement.options(spec, list(budgets))
    chosen = placement.place(candidates, budgets)
    laid_out = chosen or candidates[0]
    return Estimate(
        model=spec.id,
        description=inspection.description,
        n_ctx=inspection.n_ctx,
        slots=inspection.slots,
        devices=_devices(inspection.footprint, laid_out, budgets),
        total_bytes=sum(laid_out.device_bytes.values()),
        fits=chosen is not None,
        fit=_fit(laid_out, budgets) if chosen is not None else placement.misfit(spec, budgets) or "",
    )


def _fit(laid_out: Placement, budgets: Mapping[str, int]) -> str:
    allowed = placement.describe({name: budgets[name] for name in laid_out.device_bytes})
    return f"fits {laid_out.why}, of a budget of {allowed}"


def _devices(footprint: Footprint, laid_out: Placement, budgets: Mapping[str, int]) -> tuple[DeviceEstimate, ...]:
    """The placement's bytes again, by what they are for. The last layers are the ones on a GPU."""
    on_ram = len(footprint.layer_weights_bytes) - laid_out.n_gpu_layers
    parts = []
    for name, device_bytes in laid_out.device_bytes.items():
        layers = slice(None, on_ram) if name == RAM else slice(on_ram, None)
        weights_bytes = sum(footprint.layer_weights_bytes[layers])
        kv_bytes = sum(footprint.layer_kv_bytes[layers])
        compute_bytes = footprint.compute_bytes if name != RAM or on_ram else 0
        other_bytes = 0
        if name == RAM:
            weights_bytes += footprint.host_weights_bytes
            other_bytes = footprint.host_bytes
        else:
            weights_bytes += footprint.tied_output_bytes
        assert weights_bytes + kv_bytes + compute_bytes + other_bytes == device_bytes, name
        parts.append(
            DeviceEstimate(
                name=name,
                weights_bytes=weights_bytes,
                kv_bytes=kv_bytes,
                compute_bytes=compute_bytes,
                other_bytes=other_bytes,
                total_bytes=device_bytes,
                budget_bytes=budgets.get(name, 0),
            )
        )
    return tuple(parts)
