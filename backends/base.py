"""The contract between the daemon and an engine: what to run, what it needs, what it can do.

Owns the vocabulary both sides share. Must never start a process, open a device or import an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import msgspec

from backends.address import UrlAddress, WorkerAddress

FIRST_TOKEN_TIMEOUT_S = 600.0
"""Long prompts on slow machines take minutes, and a whole answer begins with its end."""


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
    layer_expert_bytes: tuple[int, ...] = ()
    """Of each entry of `layer_weights_bytes`, the experts, which `n_cpu_moe` would keep in RAM; empty means none."""
    gpu_compute_bytes: int = 0
    """The compute buffer on each GPU that computes; 0 means as large as `compute_bytes`, which is then RAM's."""
    gpu_host_compute_bytes: int = 0
    """RAM's compute buffer when GPUs compute everything: the graph's inputs, the attention mask above all."""
    gpu_pipeline_bytes: int = 0
    """In addition on each GPU, and in RAM, when all layers are on several GPUs that work in turn."""
    gpu_context_bytes: int = 0
    """What the driver takes on each GPU for a process that uses it: its context and the kernels' code."""
    gpu_layer_copy_bytes: int = 0
    """In addition on the first GPU, while layers are in RAM and the engine computes them on that GPU, copying a part
    at a time. 0 means that it computes them in RAM."""
    gpu_expert_copy_bytes: int = 0
    """The same while nothing but experts is in RAM."""
    gpu_kept_copy_bytes: int = 0
    """The same while nothing is but weights that the settings keep there."""

    def __post_init__(self) -> None:
        assert len(self.layer_weights_bytes) == len(self.layer_kv_bytes)
        assert len(self.layer_expert_bytes) in (0, len(self.layer_weights_bytes))

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
    tools: bool = False
    """Chats may offer tools."""
    vision: bool = False
    """Chats may hold images."""
    audio: bool = False
    """Chats may hold sound."""
    thinking: bool = False
    """Answers may begin with reasoning."""
    insert: bool = False
    """It fills gaps in a text: `/infill`."""
    transcriptions: bool = False
    """`/v1/audio/transcriptions` and `/v1/audio/translations`."""
    speech: bool = False
    """`/v1/audio/speech`."""
    images: bool = False
    """`/v1/images/generations`, `/v1/images/edits` and `/v1/images/variations`."""


@dataclass(frozen=True, slots=True)
class Post:
    """One request to a worker's own server, which answers 200 once it is done."""

    path: str
    body: Mapping[str, object] | None = None
    """Sent as JSON."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """How a worker is put to sleep and woken: by one request after another."""

    to_sleep: tuple[Post, ...]
    to_wake: tuple[Post, ...]
    kept_bytes: Mapping[str, int]
    """All that it holds on each device while it sleeps."""
    timeout_s: float
    """For either, with all its requests; after that it is ended."""


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
    parameters: int = 0
    """How many weights the model has; 0 is not known."""
    quantization: str = ""
    """How they are stored, by llama.cpp's name, such as Q4_K_M; empty is not known."""
    n_ctx_train: int = 0
    """Tokens the model was trained for, which is the most it is served with; 0 is not known."""
    tensor_split: tuple[float, ...] = ()
    """Shares the settings demand of `devices`, or of all GPUs in the engine's order; empty leaves them to placement."""
    split_mode: str = "layer"
    """How the model may be laid over several GPUs: none, layer or row."""
    main_gpu: int | None = None
    """The GPU the settings name, counted among those allowed; None leaves it to placement."""
    n_cpu_moe: int | None = 0
    """Blocks, from the first, whose experts the settings keep in RAM; None leaves it to placement."""
    maps_weights: bool = False
    """Weights in RAM are pages of the mapped file, none of them copied for faster kernels."""
    elsewhere: bool = False
    """It is served by a server elsewhere, which the backend describes as a `Peer`: nothing is started or held here."""
    reports_usage: bool = True
    """Workers tell of their progress and of tokens on the control channel. Else both are seen in their answers."""
    first_token_timeout_s: float = FIRST_TOKEN_TIMEOUT_S
    """Of workers that do not report: how long they may be silent while a request's answer has not begun."""
    places_itself: bool = False
    """The engine takes memory by its own rules: `declared_bytes` stands for the footprint, which has nothing."""
    declared_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of an engine that places itself: what it takes on each device. Empty: that is not known, and it may use all of
    `devices`, or all GPUs, and RAM."""
    sleep: Sleep | None = None
    """Of an engine that can sleep in place of ending. Its `declared_bytes` name every GPU that it uses."""
    wants_port: bool = False
    """Its worker listens on the order's `port`."""
    shares_weights: bool = False
    """So they are, and which tensors are in RAM follows from the files and the placement alone: workers of the same
    files and placement share their pages."""


@dataclass(frozen=True, slots=True)
class Offload:
    """Where placement put a worker, in llama.cpp's terms. The worker does exactly this, whatever its settings say."""

    n_gpu_layers: int = 0
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    """Shares of `devices`, such as the number of layers on each."""
    n_cpu_moe: int = 0
    main_gpu: int = 0
    """An index into `devices`."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What the daemon asks a backend to describe a process for."""

    model_id: str
    socket_path: Path
    """The worker listens here, unless its `LaunchSpec` says where else. Its directory exists and is private to the
    daemon's user."""
    control_fd: int
    """Inherited by the worker: see `backends.control`."""
    offload: Offload
    portable: bool = False
    """Leave out code paths that need special CPU instructions: the retry after SIGSEGV or SIGILL."""
    proven: bool = False
    """A worker of this file and these settings has been ready before: it need not be shown again that one can be."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The model's own `env` settings, already checked."""
    port: int = 0
    """A free port of 127.0.0.1, for a worker that cannot listen on a Unix socket. 0: none was asked for."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A process to start: an argument list (never a shell line) and a whole environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: WorkerAddress | None = None
    """Where the worker listens; None is the order's `socket_path`."""
    end_s: float = 0.0
    """How long the process may take to end what it has started, once its control channel is closed. It must not be
    killed before: what it has started would live on. 0: there is nothing but its process group."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server elsewhere that stands for a worker."""

    address: UrlAddress
    health_path: str | None
    """What a GET says about its health, as a path below the address's; None: that it takes connections is enough."""
    connect_timeout_s: float


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What an engine would allocate on one device, by its own account. `name` is llama.cpp's; host memory is RAM."""

    name: str
    model_bytes: int
    context_bytes: int
    """The KV cache and recurrent states."""
    compute_bytes: int


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A probe's answer for one model, its settings and one way to offload it."""

    devices: tuple[DeviceMemory, ...]
    output_bytes: int
    """The host buffer for logits or embeddings, which is in RAM and in none of `devices`."""
    source: str
    """How the figures were got, for people."""


@dataclass(frozen=True, slots=True)
class ProbedDevice:
    """A device as the engine lists it. `kind` is cpu, gpu, igpu or accel; 0 bytes mean that it does not say."""

    name: str
    description: str
    kind: str
    total_bytes: int
    free_bytes: int
    pci: str = ""
    """Its address on the PCI bus as the kernel writes it, 0000:03:00.0; empty where the engine does not say."""


class ProbeError(Exception):
    """A probe's process did not answer; the message says why. The formulas' figures are what there is then."""


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
    spare_bytes: ClassVar[int]
    """RAM of a process that `spare` describes; 0 means that there are none."""

    def inspect(self, settings: Any) -> Inspection:
        """Read what the settings point at. Blocking file reads only. Raises `InvalidModelError`."""
        ...

    def files(self, settings: Any) -> tuple[Path, ...]:
        """The files whose change makes an inspection stale (all shards of a split model)."""
        ...

    def launch(self, settings: Any, order: LaunchOrder) -> LaunchSpec:
        """Describe the worker process. Pure but for reading the daemon's own environment."""
        ...

    def peer(self, settings: Any) -> Peer:
        """Describe the server elsewhere. Reads its key. Only asked, in place of `launch`, of models whose inspections
        say `elsewhere`. Raises `InvalidModelError`."""
        ...

    def spare(self, control_fd: int) -> LaunchSpec:
        """A worker without a model, started ahead of the load that it is for. It opens no device.

        It reads one line from its standard input, the JSON array of the argument list that `launch` gives for this
        `control_fd`, and then is that worker; at end of file without one it ends. No order but those without `env`
        comes to it. Only asked of backends with `spare_bytes`.
        """
        ...

    def engine_version(self) -> str:
        """Names the engine as it is installed now: a spare that was started with another one is stale. Looks at files
        only. Only asked of backends with `spare_bytes`."""
        ...

    def probe(self, settings: Any, offload: Offload, env: Mapping[str, str]) -> LaunchSpec | None:
        """A short-lived process that prints what this worker would allocate, without allocating it; None if there is
        none. It may open GPUs: it is a job with a reservation of its own. `env` is the model's."""
        ...

    def probe_key(self, settings: Any, offload: Offload, env: Mapping[str, str]) -> str | None:
        """Names a probe's result: the same files, settings and engine give the same key. Looks at the files' status
        only; None when one is missing or nothing can be probed."""
        ...

    def read_probe(self, output: bytes) -> ProbeResult:
        """What a process described by `probe` has printed. Pure. Raises `ProbeError`."""
        ...

    def device_probe(self, env: Mapping[str, str]) -> LaunchSpec | None:
        """A short-lived process that prints the engine's devices. It opens every GPU; None if there is none."""
        ...

    def read_devices(self, output: bytes) -> tuple[ProbedDevice, ...]:
        """What a process described by `device_probe` has printed. Pure. Raises `ProbeError`."""
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
