"""What a worker really takes, beside what was worked out: pure sums over meter readings.

A correction is never below the figure that was worked out for RAM, where caches fill up over time and neighbours move
what can be seen. On a GPU it may take back part of what was assumed for the driver, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from backends.base import ProbeResult
from swapd.core.layout import Layout, Parts, parts
from swapd.core.placement import MIB
from swapd.core.spec import RAM, LayerCosts, Placement

STEP_BYTES = 8 * MIB
"""Corrections are multiples of this: what is less is noise."""

SHORT_STEP_BYTES = 64 * MIB
SHORT_SHARE = 1 / 16
"""What a load that ran out of memory is taken to have needed beyond its reservation."""

PLAUSIBLE_SHARE, PLAUSIBLE_BYTES = 1 / 4, 512 * MIB
"""Where a driver does not tell who has what: a difference in free memory is only believed up to so much too much."""


@dataclass(frozen=True, slots=True)
class Surplus:
    """What a model's workers take beyond what is worked out, in RAM and on each GPU that computes."""

    host_bytes: int = 0
    gpu_bytes: int = 0
    """Negative where the driver takes less than was assumed."""


@dataclass(slots=True)
class Run:
    """One worker's placement, and the most that it was seen to take on each device."""

    model_id: str
    launch_key: str
    placement: Placement
    formula: Mapping[str, Parts]
    """As worked out, without any correction."""
    driver_bytes: int
    """Of each GPU's part, what is assumed for the driver."""
    maps_weights: bool
    """Its weights in RAM are pages of the file and nothing else."""
    is_fixed: bool = False
    """Its engine places itself: nothing was worked out, and all that is seen is news."""
    declared: frozenset[str] = frozenset()
    """Devices of which its settings say what it takes. Who has it there need not be a process that can be found."""
    served: bool = False
    ran_out: bool = False
    seen_bytes: dict[str, int] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    """Devices whose driver told of this very process."""
    free_before: dict[str, int] = field(default_factory=dict)
    """What GPUs had free before it was launched, as long as nobody else came or went since."""

    @classmethod
    def of(
        cls,
        model_id: str,
        launch_key: str,
        placement: Placement,
        costs: LayerCosts,
        *,
        by_rows: bool,
        maps: bool,
        is_fixed: bool = False,
    ) -> Run:
        if is_fixed:
            formula = {name: Parts(other_bytes=size_bytes) for name, size_bytes in placement.device_bytes.items()}
            return cls(model_id, launch_key, placement, formula, 0, maps_weights=False, is_fixed=True)
        layout = Layout(placement.devices, placement.tensor_split, placement.n_cpu_moe, by_rows)
        return cls(model_id, launch_key, placement, parts(costs, layout), costs.gpu_context_bytes, maps)

    def see(self, device: str, held_bytes: int, *, exact: bool = True) -> None:
        """A meter says that the worker has so much of a device."""
        if device not in self.formula:
            return
        if exact:
            self.exact.add(device)
        used = self.used_bytes(device, held_bytes)
        self.seen_bytes[device] = max(used, self.seen_bytes.get(device, 0))

    def used_bytes(self, device: str, held_bytes: int) -> int:
        """What that comes to. In RAM the kernel tells of what no file backs; mapped weights are counted with it.

        Weights that are copied for faster kernels are in both, and cannot be told apart from outside.
        """
        part = self.formula[device]
        if self.is_fixed:
            return _in_steps(held_bytes)
        if device != RAM:
            return held_bytes
        if self.maps_weights:
            return held_bytes + part.weights_bytes
        return max(held_bytes, part.total_bytes)

    def see_difference(self, device: str, free_bytes: int) -> None:
        """The driver tells only how much is free, now that the worker has loaded."""
        before = self.free_before.pop(device, None)
        if before is None or device not in self.formula:
            return
        used, worked_out = before - free_bytes, self.formula[device].total_bytes
        if 0 < used <= worked_out * (1 + PLAUSIBLE_SHARE) + PLAUSIBLE_BYTES:
            self.see(device, used, exact=False)

    def host_beyond_bytes(self) -> int | None:
        """What was seen in RAM beyond what was worked out, in whole steps; None if nothing was seen."""
        beyond = self._beyond(RAM)
        return None if beyond is None else max(0, beyond)

    def gpu_beyond_bytes(self) -> int | None:
        """The same of the GPU with the most; no less than all that was assumed for the driver."""
        beyond = [size for device in self.placement.devices if (size := self._beyond(device)) is not None]
        return max(-self.driver_bytes, *beyond) if beyond else None

    def probed_beyond_bytes(self, probed: Mapping[str, int]) -> int:
        """What an engine counts on the GPU with the most beyond what was worked out, the driver's part apart."""
        beyond = [
            probed[device] - (self.formula[device].total_bytes - self.driver_bytes)
            for device in self.placement.devices
            if device in probed
        ]
        return _in_steps(max(beyond, default=0))

    def most_bytes(self, before_bytes: Mapping[str, int]) -> dict[str, int]:
        """What to keep of what was seen, after what earlier runs were seen to take.

        Where nothing else tells what it takes, the most of all runs counts, until one runs out of memory with that.
        """
        if not self.is_fixed:
            return dict(self.seen_bytes or before_bytes)
        if self.ran_out:
            return {}
        names = self.seen_bytes | dict(before_bytes)
        return {name: max(self.seen_bytes.get(name, 0), before_bytes.get(name, 0)) for name in names}

    def _beyond(self, device: str) -> int | None:
        seen = None if self.is_fixed else self.seen_bytes.get(device)
        return None if seen is None else _in_steps(seen - self.formula[device].total_bytes)


def probed_bytes(result: ProbeResult) -> dict[str, int]:
    """A probe's answer by device, without what a process and a driver take beside."""
    sizes = {one.name: one.model_bytes + one.context_bytes + one.compute_bytes for one in result.devices}
    return sizes | {RAM: sizes.get(RAM, 0) + result.output_bytes}


def grown(known: Surplus, run: Run) -> Surplus:
    """What is known while a run goes on: more counts at once, less does not."""
    host, gpu = run.host_beyond_bytes(), run.gpu_beyond_bytes()
    return Surplus(
        known.host_bytes if host is None else max(known.host_bytes, host),
        known.gpu_bytes if gpu is None else max(known.gpu_bytes, gpu),
    )


def settled(known: Surplus, run: Run) -> Surplus:
    """What is known after a run: less counts by half, if it has served and the drivers told of it by name."""
    more = grown(known, run)
    if not run.served:
        return more
    host, gpu = run.host_beyond_bytes(), run.gpu_beyond_bytes()
    return Surplus(
        more.host_bytes if host is None else _toward(more.host_bytes, host),
        more.gpu_bytes if gpu is None or not set(run.placement.devices) <= run.exact else _toward(more.gpu_bytes, gpu),
    )


def _toward(known_bytes: int, seen_bytes: int) -> int:
    return min(known_bytes, _in_steps((known_bytes + seen_bytes) // 2))


def _in_steps(size_bytes: int) -> int:
    return -(-size_bytes // STEP_BYTES) * STEP_BYTES


def after_running_out(known: Surplus, reserved_bytes: int) -> Surplus:
    """What is known after a load ran out on a GPU that had what was reserved for it."""
    return replace(known, gpu_bytes=max(0, known.gpu_bytes) + max(SHORT_STEP_BYTES, int(reserved_bytes * SHORT_SHARE)))


def corrected(costs: LayerCosts, surplus: Surplus) -> LayerCosts:
    """Costs with what was learned."""
    return replace(
        costs,
        host_bytes=costs.host_bytes + surplus.host_bytes,
        gpu_context_bytes=max(0, costs.gpu_context_bytes + surplus.gpu_bytes),
    )
