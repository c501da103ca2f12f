"""The core's own vocabulary for what exists: devices, models, what they cost, where they are put.

Frozen data. `swapd.pool` translates configuration and a backend's footprint into these; nothing here knows
where the figures came from. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RAM = "RAM"
"""The name of host memory among devices."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A memory that workers share. Every device but `RAM` gives memory back late, after a process has gone."""

    name: str
    total_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What one worker takes: per layer (the output layer last), and the parts that do not move with layers."""

    layer_weights_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    host_bytes: int
    """Always in RAM: token embedding, logits buffer, the process itself."""
    compute_bytes: int
    """Once on each device that computes."""
    tied_output_bytes: int = 0
    """What the output layer takes in addition on a GPU: its copy of a token embedding that stays in RAM too."""

    def __post_init__(self) -> None:
        assert self.layer_weights_bytes, "a model has at least an output layer"
        assert len(self.layer_weights_bytes) == len(self.layer_kv_bytes)

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_weights_bytes) + sum(self.layer_kv_bytes) + self.host_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker goes: bytes per device, and the offload settings that put them there."""

    device_bytes: Mapping[str, int]
    n_gpu_layers: int
    devices: tuple[str, ...]
    """GPUs used, in llama.cpp's order; empty on the CPU."""
    why: str
    """One sentence for people."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as the scheduler sees it."""

    id: str
    launch_key: str
    """Changes exactly when a running worker no longer matches the settings or the file."""
    slots: int
    costs: LayerCosts | None
    """None when the file could not be read; `verdict` then says why."""
    verdict: str | None = None
    """Why this model can never be served as it is."""
    n_gpu_layers: int | None = None
    """What the settings demand; None leaves it to placement."""
    devices: tuple[str, ...] = ()
    """GPUs the settings allow; empty allows all."""
    has_portable_mode: bool = False
    pin: bool = False
    priority: int = 0
    max_waiting: int = 256
    queue_timeout_s: float = 600.0
    max_wait_s: float = 60.0
    turn_s: float = 10.0
    idle_unload_s: float | None = None
    load_timeout_s: float = 300.0
    stall_timeout_s: float = 120.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        assert (self.costs is None) == (self.verdict is not None), self.id
        assert self.slots >= 1
