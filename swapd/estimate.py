"""What a model would take on each device, what the engine says itself, and how far the budgets reach: for people.

Owns the split of a footprint into weights, cache and buffers per device, and the search for the largest context. Pure;
asks `swapd.core.placement` where things would go, so that an estimate and the scheduler cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec

from backends.base import DeviceMemory, Inspection, ProbeResult
from swapd.core import placement
from swapd.core.layout import Layout, parts
from swapd.core.spec import LayerCosts, ModelSpec, Placement, Room, SplitMode

N_CTX_STEP = 256
"""Contexts are looked for in these steps, in which engines allocate them."""


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine itself says it would allocate on one device."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    total_bytes: int
    """With what it does not count: `DeviceEstimate.other_bytes`."""


class DeviceEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part: what the formulas say, what was learned beside it, and their sum `total_bytes`."""

    name: str
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    other_bytes: int = 0
    """In RAM the output buffer and the worker process itself, on a GPU what the driver takes for it."""
    correction_bytes: int = 0
    """Added for what the model's workers were seen to take; negative where a driver takes less than was assumed."""
    total_bytes: int = 0
    budget_bytes: int = 0
    engine: EngineFigures | None = None
    measured_bytes: int | None = None
    """The most that the last worker was seen to take; None if none was seen."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How far the budgets reach, everything else as the settings have it. 0 means not at all, None not known."""

    n_ctx: int | None = None
    """The largest context with which the model can be placed."""
    n_ctx_on_gpus: int | None = None
    """The largest one with every layer on GPUs, and experts too unless the settings keep them in RAM."""
    n_gpu_layers: int | None = None
    """Layers that fit on GPUs with the context as it is; None without GPUs."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """One model under these budgets. `fit` is one sentence for people."""

    model: str
    description: str
    n_ctx: int
    n_ctx_train: int
    slots: int
    layers: int
    n_gpu_layers: int
    devices: tuple[DeviceEstimate, ...]
    total_bytes: int
    fits: bool
    fit: str
    limits: Limits = Limits()
    engine: str = ""
    """Where the engine's own figures are from, or why there are none; empty when it was not asked."""


def estimate(
    spec: ModelSpec, inspection: Inspection, room: Room, formula: LayerCosts | None = None
) -> tuple[Estimate, Placement]:
    """Lay the model out under budgets, in bytes by device name: the layout that fits, else the one preferred.

    `formula` is what the costs were before what was learned corrected them; None if nothing did.
    """
    assert spec.costs is not None
    chosen = placement.place(spec, room)
    laid_out = chosen or placement.preferred(spec, room)
    devices = _devices(spec, formula or spec.costs, laid_out, room.free_bytes)
    made = Estimate(
        model=spec.id,
        description=inspection.description,
        n_ctx=inspection.n_ctx,
        n_ctx_train=inspection.n_ctx_train,
        slots=inspection.slots,
        layers=spec.costs.layers,
        n_gpu_layers=laid_out.n_gpu_layers,
        devices=devices,
        total_bytes=sum(device.total_bytes for device in devices),
        fits=chosen is not None,
        fit=_fit(laid_out, room.free_bytes) if chosen is not None else placement.misfit(spec, room) or "",
    )
    return made, laid_out


def with_engine(one: Estimate, found: ProbeResult) -> Estimate:
    """The estimate with the engine's own figures beside the formulas'."""
    by_name = {device.name: device for device in found.devices}
    devices = [_beside(device, by_name.pop(device.name, None)) for device in one.devices]
    for name, more in by_name.items():
        if more.model_bytes + more.context_bytes + more.compute_bytes:
            devices.append(_beside(DeviceEstimate(name=name), more))
    return msgspec.structs.replace(one, devices=tuple(devices), engine=found.source)


def with_measured(one: Estimate, measured_bytes: Mapping[str, int]) -> Estimate:
    """The estimate with what the model's last worker was seen to take, wherever that was."""
    left = dict(measured_bytes)
    devices = [msgspec.structs.replace(device, measured_bytes=left.pop(device.name, None)) for device in one.devices]
    devices += [DeviceEstimate(name=name, measured_bytes=size_bytes) for name, size_bytes in left.items()]
    return msgspec.structs.replace(one, devices=tuple(devices))


def _beside(device: DeviceEstimate, found: DeviceMemory | None) -> DeviceEstimate:
    if found is None:
        return device
    figures = EngineFigures(
        weights_bytes=found.model_bytes,
        kv_bytes=found.context_bytes,
        compute_bytes=found.compute_bytes,
        total_bytes=found.model_bytes + found.context_bytes + found.compute_bytes + device.other_bytes,
    )
    return msgspec.structs.replace(device, engine=figures)


def limits(spec: ModelSpec, room: Room, spec_with: Callable[[int], ModelSpec | None], most_n_ctx: int) -> Limits:
    """How far the budgets reach. `spec_with` gives the model with another context, None if it cannot have it.

    Looks at some twenty contexts. Takes it that a model which fits with a context fits with every smaller one.
    """

    def largest(good: Callable[[ModelSpec], bool]) -> int:
        low, high = 0, most_n_ctx // N_CTX_STEP
        while low < high:
            middle = (low + high + 1) // 2
            found = spec_with(middle * N_CTX_STEP)
            if found is not None and good(found):
                low = middle
            else:
                high = middle - 1
        return low * N_CTX_STEP

    n_ctx = largest(lambda found: placement.place(found, room) is not None)
    if not placement.usable_gpus(spec, room):
        return Limits(n_ctx=n_ctx)
    freed = placement.place(replace(spec, n_gpu_layers=None), room)
    return Limits(
        n_ctx=n_ctx,
        n_ctx_on_gpus=largest(lambda found: _is_whole_on_gpus(found, room)),
        n_gpu_layers=freed.n_gpu_layers if freed is not None else 0,
    )


def _is_whole_on_gpus(spec: ModelSpec, room: Room) -> bool:
    assert spec.costs is not None
    found = placement.place(replace(spec, n_gpu_layers=spec.costs.layers, n_cpu_moe=spec.n_cpu_moe or 0), room)
    return found is not None


def _fit(laid_out: Placement, budgets: Mapping[str, int]) -> str:
    allowed = placement.describe({name: budgets[name] for name in laid_out.device_bytes})
    return f"fits {laid_out.why}, of a budget of {allowed}"


def _devices(
    spec: ModelSpec, formula: LayerCosts, laid_out: Placement, budgets: Mapping[str, int]
) -> tuple[DeviceEstimate, ...]:
    """The placement's bytes again, by what they are for; each byte once, also where devices share a memory."""
    assert spec.costs is not None
    if spec.fixed is not None:
        return tuple(
            DeviceEstimate(name=name, other_bytes=size_bytes, total_bytes=size_bytes, budget_bytes=budgets.get(name, 0))
            for name, size_bytes in laid_out.device_bytes.items()
        )
    by_rows = spec.split_mode is SplitMode.ROW
    layout = Layout(laid_out.devices, laid_out.tensor_split, laid_out.n_cpu_moe, by_rows)
    corrected = parts(spec.costs, layout)
    return tuple(
        DeviceEstimate(
            name=name,
            weights_bytes=part.weights_bytes,
            kv_bytes=part.kv_bytes,
            compute_bytes=part.compute_bytes,
            other_bytes=part.other_bytes,
            correction_bytes=corrected[name].total_bytes - part.total_bytes,
            total_bytes=corrected[name].total_bytes,
            budget_bytes=budgets.get(name, 0),
        )
        for name, part in parts(formula, layout).items()
    )
