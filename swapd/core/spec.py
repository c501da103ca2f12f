"""The core's own vocabulary for what exists: devices, models, what they cost, where they are put.

Frozen data. `swapd.pool` translates configuration and a backend's footprint into these; nothing here knows
where the figures came from. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

RAM = "RAM"
"""The name of host memory among devices."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A memory that workers share."""

    name: str
    total_bytes: int
    budget_bytes: int
    shares: str | None = None
    """The memory that this one is carved out of (an integrated GPU's is RAM): its bytes count there, too."""
    reserve_bytes: int = 0
    """To be left free on it beside what swapd and others take."""
    metered: bool = False
    """Whether its free memory can be read. It is then read before anything is loaded, and what others hold counts."""
    slow_meter: bool = False
    """Whether reading it is costly: then it is not read while workers merely sit on it, and less often otherwise."""

    @property
    def settles(self) -> bool:
        """Whether memory comes back after its process has gone, and can be seen to.

        RAM is back with the process. What is carved out of another memory comes back as a part of that one, where it
        is charged as well: there is no amount of its own to wait for.
        """
        return self.name != RAM and self.shares is None


@dataclass(frozen=True, slots=True)
class Room:
    """What each device has to give, in bytes, and which devices are carved out of another's memory."""

    free_bytes: Mapping[str, int]
    shares: Mapping[str, str] = field(default_factory=dict)
    """From such a device's name to that of the memory it shares."""

    @classmethod
    def of_budgets(cls, devices: Iterable[DeviceSpec]) -> Room:
        """The room there is while nothing is loaded."""
        listed = list(devices)
        return cls({spec.name: spec.budget_bytes for spec in listed}, shared_memories(listed))

    def gpus(self) -> list[str]:
        return [name for name in self.free_bytes if name != RAM]

    def only(self, gpus: Sequence[str]) -> Room:
        """This room without the other GPUs."""
        return Room({name: size for name, size in self.free_bytes.items() if name in (RAM, *gpus)}, self.shares)


def shared_memories(devices: Iterable[DeviceSpec]) -> dict[str, str]:
    """From each device that is carved out of another's memory to that one."""
    return {spec.name: spec.shares for spec in devices if spec.shares is not None}


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What one worker takes: per layer (the output layer last), and the parts that do not move with layers."""

    layer_weights_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    host_bytes: int
    """Always in RAM, weights apart: logits buffer, copies of caches, the process itself."""
    compute_bytes: int
    """RAM's compute buffer when the CPU computes layers or experts."""
    tied_output_bytes: int = 0
    """What the output layer takes in addition on a GPU: its copy of a token embedding that stays in RAM too."""
    host_weights_bytes: int = 0
    """Weights that are always in RAM: the token embedding."""
    layer_expert_bytes: tuple[int, ...] = ()
    """Of each entry of `layer_weights_bytes`, what `n_cpu_moe` would keep in RAM; empty means nothing."""
    gpu_compute_bytes: int = 0
    """The compute buffer on each GPU that computes; 0 means as large as `compute_bytes`."""
    gpu_host_compute_bytes: int = 0
    """RAM's compute buffer when GPUs compute everything."""
    gpu_pipeline_bytes: int = 0
    """In addition on each GPU, and in RAM, when all layers are on several GPUs that work in turn."""
    gpu_context_bytes: int = 0
    """What the driver takes on each GPU for a process that computes there."""
    gpu_layer_copy_bytes: int = 0
    """In addition on the first GPU used, while layers are in RAM and that GPU computes them, from copies of a part at
    a time; 0 means that the CPU computes them."""
    gpu_expert_copy_bytes: int = 0
    """The same while nothing but experts is in RAM."""
    gpu_kept_copy_bytes: int = 0
    """The same while nothing is but weights that are in RAM always."""

    def __post_init__(self) -> None:
        assert self.layer_weights_bytes, "a model has at least an output layer"
        assert len(self.layer_weights_bytes) == len(self.layer_kv_bytes)
        assert len(self.layer_expert_bytes) in (0, len(self.layer_weights_bytes))

    @property
    def layers(self) -> int:
        """Layers as llama.cpp counts them, the output layer being one."""
        return len(self.layer_weights_bytes)

    @property
    def total_bytes(self) -> int:
        """All of it in RAM."""
        layers = sum(self.layer_weights_bytes) + sum(self.layer_kv_bytes)
        return layers + self.host_weights_bytes + self.host_bytes + self.compute_bytes


class SplitMode(Enum):
    """How a model is laid over several GPUs, by llama.cpp's names."""

    NONE = "none"
    LAYER = "layer"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker goes: bytes per device, and the offload settings that put them there."""

    device_bytes: Mapping[str, int]
    """What is charged. The bytes of a device that shares another's memory are in both entries."""
    n_gpu_layers: int
    devices: tuple[str, ...]
    """GPUs used, in llama.cpp's order; empty on the CPU."""
    why: str
    """One sentence for people."""
    tensor_split: tuple[int, ...] = ()
    """Layers on each of `devices`."""
    n_cpu_moe: int = 0
    """Blocks, from the first, whose experts stay in RAM."""
    main_gpu: int = 0
    """An index into `devices`."""
    left_bytes: int = 0
    """Of what the settings would have on GPUs, the part that is in RAM for want of room."""
    whole: tuple[str, ...] = ()
    """Devices that it is to have to itself, because it is not known what it takes of them."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as the scheduler sees it."""

    id: str
    launch_key: str
    """Changes exactly when a running worker no longer matches the settings or the file."""
    slots: int
    """Requests that one worker runs at once."""
    costs: LayerCosts | None
    """None when the file could not be read; `verdict` then says why."""
    verdict: str | None = None
    """Why this model can never be served as it is."""
    fixed: Mapping[str, int | None] | None = None
    """Of an engine that places itself: bytes on each device it uses; None of a device where that is not known. `costs`
    is then no more than their sum. None: its layers go where placement has them."""
    asleep_bytes: Mapping[str, int] | None = None
    """What its worker keeps on each device while it sleeps in place of leaving; None of one that cannot."""
    n_gpu_layers: int | None = None
    """What the settings demand; None leaves it to placement."""
    devices: tuple[str, ...] = ()
    """GPUs the settings allow; empty allows all."""
    tensor_split: tuple[float, ...] = ()
    """Shares that the settings demand of `devices`, or of all GPUs; empty leaves them to placement."""
    split_mode: SplitMode = SplitMode.LAYER
    main_gpu: int | None = None
    """The index of the GPU that the settings name, among those allowed; None leaves it to placement."""
    n_cpu_moe: int | None = None
    """What the settings demand; None leaves it to placement."""
    has_portable_mode: bool = False
    replicas: int = 1
    """Workers it may have at once. All but the first come and go with the load."""
    elsewhere: bool = False
    """A server elsewhere serves it: nothing of it is in this machine's memory, and nobody gains by its leaving."""
    spare: str | None = None
    """The kind of spare process that a worker of it may be made of; None has it started afresh."""
    pin: bool = False
    priority: int = 0
    max_waiting: int = 256
    max_waiting_tokens: int = 1_000_000
    max_per_client: int | None = None
    """Requests of one client, running or waiting, over all models; None sets no limit."""
    queue_timeout_s: float = 600.0
    max_wait_s: float = 60.0
    turn_s: float = 10.0
    idle_unload_s: float | None = None
    load_timeout_s: float = 300.0
    stall_timeout_s: float = 120.0
    first_token_timeout_s: float | None = None
    """Of workers whose progress is seen in their answers alone: how long they may be silent while a request's answer
    has not begun. None for those that report their own."""
    drain_s: float = 30.0
    mapped_files: str | None = None
    """Names the files of which all its weights in RAM are pages; None when they are memory of the worker's own."""
    learned_load_s: float | None = None
    """What its loads took before the daemon was started; None if that is not known."""

    def __post_init__(self) -> None:
        assert (self.costs is None) == (self.verdict is not None), self.id
        assert self.slots >= 1
        assert self.replicas >= 1

    def __hash__(self) -> int:
        # What tells specs apart nearly always; the costs have hundreds of figures.
        return hash((self.id, self.launch_key))
