"""The contract between the daemon and an engine: what to run, what it needs, what it can do.

Owns the vocabulary both sides share. Must never start a process, open a device or import an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import msgspec


class InvalidModelError(Exception):
    """The model's file or settings can never be served as they are; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one worker takes, before anyone has decided where it goes. All figures are bytes.

    `layer_weights_bytes` and `layer_kv_bytes` have one entry per block, in order, and a last one for the
    output layer (llama.cpp's layer index `block_count`). The rest does not move with the layers.
    """

    layer_weights_bytes: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    host_weights_bytes: int
    """Weights that stay in RAM wherever the layers go: the token embedding."""
    compute_bytes: int
    """The scheduler's compute buffer on each device that computes."""
    output_bytes: int
    """Host buffer for logits or embeddings."""
    process_bytes: int
    """RAM of the worker process itself: interpreter, libraries, buffers of its own."""
    cache_ram_bytes: int = 0
    """RAM for copies of finished and preempted sequences' caches: a bound, filled as it is needed."""
    tied_output_bytes: int = 0
    """What the output layer takes in addition on any device but RAM: its copy of a token embedding that serves as
    output too. In RAM the two are one tensor, which `host_weights_bytes` counts; the sums below are for RAM."""

    def __post_init__(self) -> None:
        assert len(self.layer_weights_bytes) == len(self.layer_kv_bytes)

    @property
    def weights_bytes(self) -> int:
        return sum(self.layer_weights_bytes) + self.host_weights_bytes

    @property
    def kv_bytes(self) -> int:
        return sum(self.layer_kv_bytes)

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.host_bytes

    @property
    def host_bytes(self) -> int:
        """What is in RAM whatever is offloaded, weights apart."""
        return self.output_bytes + self.cache_ram_bytes + self.process_bytes


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a worker of this model answers to."""

    chat: bool = True
    completions: bool = True
    embeddings: bool = False
    rerank: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a model before it runs: read from its file and settings alone."""

    footprint: Footprint
    slots: int
    """Requests a worker runs at once."""
    capabilities: Capabilities
    n_ctx: int
    """Usable context in tokens: the settings' n_ctx, bounded by what the model was trained for."""
    n_gpu_layers: int | None = None
    """Layers the settings demand on GPUs; None leaves it to placement."""
    devices: tuple[str, ...] = ()
    """Devices the settings allow, by llama.cpp's names; empty means any."""
    architecture: str = ""
    description: str = ""
    """A short human line: architecture, parameters, quantization."""


@dataclass(frozen=True, slots=True)
class Offload:
    """Where placement put a worker: layer counts and devices, in llama.cpp's terms."""

    n_gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What the daemon asks a backend to describe a process for."""

    model_id: str
    socket_path: Path
    """The worker listens here. Its directory exists and is private to the daemon's user."""
    control_fd: int
    """Inherited by the worker: see `backends.control`."""
    offload: Offload
    portable: bool = False
    """Leave out code paths that need special CPU instructions: the retry after SIGSEGV or SIGILL."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The model's own `env` settings, already checked."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A process to start: an argument list (never a shell line) and a whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


Size = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes"})]
"""Bytes; people write 512MiB."""
Duration = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "seconds"})]
"""Seconds; people write 250ms."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a backend's own model keys. Subclasses declare each key with its type and default."""


class Backend(Protocol):
    """One kind of engine. Instances hold no state."""

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    has_portable_mode: ClassVar[bool]

    def inspect(self, settings: Any) -> Inspection:
        """Read what the settings point at. Blocking file reads only. Raises `InvalidModelError`."""
        ...

    def files(self, settings: Any) -> tuple[Path, ...]:
        """The files whose change makes an inspection stale (all shards of a split model)."""
        ...

    def launch(self, settings: Any, order: LaunchOrder) -> LaunchSpec:
        """Describe the worker process. Pure but for reading the daemon's own environment."""
        ...


def decode_path(kind: type, value: object) -> object:
    """msgspec's `dec_hook` for settings: a `Path` from its string."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


def encode_path(value: object) -> object:
    """msgspec's `enc_hook` for settings: a `Path` as its string."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")
