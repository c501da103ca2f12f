"""The shape of `GET /swapd/v1/status`: one snapshot of everything the daemon knows, as typed structs.

Owns names that clients depend on: fields may be added, never renamed. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Outcome = Literal["finished", "failed", "cancelled"]
"""How a request ended: its client left (`cancelled`), or it was refused or broke (`failed`)."""


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    total_bytes: int
    budget_bytes: int
    reserved_bytes: int
    free_bytes: int
    """What the device itself reports free, also to others."""
    description: str = ""
    others_bytes: int = 0
    """What other programs hold of it, as far as its driver tells."""
    paused: bool = False
    """Handed over to others: nothing is placed on it until it is resumed."""
    lost: bool = False
    """Not found when the machine's devices were last looked for: what needs it waits until it is back."""
    spare_bytes: int = 0
    """Of what is reserved, that of processes that wait for the next load. No load has to wait for these bytes."""
    shares: str | None = None
    """The memory it is carved out of, on which its bytes count, too."""


class FootprintStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's memory by device. The estimate is the formula, corrected by what was probed and measured."""

    estimated_bytes: dict[str, int] = {}
    """What is reserved for it, or would be."""
    measured_bytes: dict[str, int] = {}
    """The most that it, or the last one like it, was seen to take."""
    formula_bytes: dict[str, int] = {}
    """Worked out from the file and the settings alone, for the same placement."""
    probed_bytes: dict[str, int] = {}
    """By llama.cpp's own account, for the placement it was last asked for."""
    correction_bytes: dict[str, int] = {}
    """What the next worker's estimate has beyond the formula, for what was probed and measured; not where nothing."""


class EvictionStatus(msgspec.Struct, frozen=True, kw_only=True):
    ago_s: float
    why: str


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    pid: int | None
    state: str
    running: int
    reserved_bytes: dict[str, int]
    placement: str
    shared_bytes: int = 0
    """Of what is reserved in RAM, pages of the model's file that other workers map as well; they count once."""
    progress: float | None = None
    """Of the load, 0 to 1, while it runs."""
    portable: bool = False
    """True when the worker runs without special CPU instructions, after a crash with them."""


class VirtualStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a virtual model chooses from."""

    strategy: str
    targets: tuple[str, ...]
    resolves_to: str | None
    """The model that a request would go to now; None while the profile in force disables all."""


class ProfileStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One profile of `GET /swapd/v1/profiles`."""

    name: str
    active: bool
    description: str = ""
    disable: tuple[str, ...] = ()
    pins: dict[str, str | None] = {}
    idle_unload_s: float | None = None


class Profiles(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it."""

    active: str | None
    profiles: tuple[ProfileStatus, ...]


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a model as a client chooses by."""

    id: str
    aliases: tuple[str, ...]
    state: str
    n_ctx: int = 0
    """Tokens; 0 if the model's file could not be read."""
    input_modalities: tuple[str, ...] = ("text",)
    capabilities: tuple[str, ...] = ()
    """By the names of `backends.base.Capabilities`; none if the model's file could not be read."""
    name: str = ""
    """For people; empty where only the id is known."""
    description: str = ""
    metadata: Mapping[str, Any] = {}
    """As the model list has it."""
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    size_bytes: int = 0
    """Of its files."""
    modified_at: float = 0.0
    """Of the newest of them: Unix time, seconds."""
    digest: str = ""
    """64 hexadecimal digits that change with the files and the settings of its workers."""
    reserved_bytes: int = 0
    """For its workers that serve."""
    reserved_gpu_bytes: int = 0
    """Of that, on GPUs."""
    unload_in_s: float | None = None
    """Seconds until its last worker leaves if nothing more is asked; None if it stays, or has none."""
    virtual: VirtualStatus | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    state: str
    aliases: tuple[str, ...] = ()
    backend: str
    description: str = ""
    n_ctx: int = 0
    slots: int = 0
    """Of each worker."""
    replicas: int = 1
    """Workers it may have at once."""
    input_modalities: tuple[str, ...] = ("text",)
    pin: bool = False
    running: int
    waiting: int
    loads: int
    load_s: float | None
    last_used_s: float | None
    """Seconds since the last request ended or started; None before the first."""
    footprint: FootprintStatus
    last_eviction: EvictionStatus | None
    error: str | None
    """Why it cannot be served now: a bad file, too little memory, or the last load's failure."""
    waits: str | None = None
    """What keeps it from a worker that it wants, as 'waits for …'; None when it has one or wants none."""
    retry_in_s: float | None = None
    """Seconds until a failing load is tried again."""
    expected_wait_s: float | None = None
    """How long a request of a new client would wait if it came now and were the last; None where that is a guess."""
    workers: tuple[WorkerStatus, ...] = ()


class Unloaded(msgspec.Struct, frozen=True, kw_only=True):
    """The models that `POST /swapd/v1/unload` has sent away, as they are afterwards."""

    models: tuple[ModelStatus, ...]


class ConfigStatus(msgspec.Struct, frozen=True, kw_only=True):
    path: str | None
    loaded_ago_s: float
    error: str | None
    profile: str | None = None
    """The one in force."""


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Since the start; accepted = waiting + running + finished + failed + cancelled."""

    accepted: int
    waiting: int
    running: int
    finished: int
    failed: int
    cancelled: int


class RequestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One request in flight."""

    id: str
    model: str
    client: str
    priority: int
    state: Literal["waiting", "running"]
    waited_s: float
    """In the queue, until now or until it was granted."""
    position: int | None = None
    """Of a waiting one in its model's queue: 1 is the next."""
    expected_wait_s: float | None = None
    """Of a waiting one, from now on; None where that is a guess."""
    running_s: float | None = None
    """Of a running one."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    devices: tuple[DeviceStatus, ...]
    models: tuple[ModelStatus, ...]
    config: ConfigStatus
    requests: RequestCounts
    in_flight: Sequence[RequestStatus] = ()
    """At most so many waiting and so many running ones; `requests` has the numbers of all."""
    version: str


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `GET /swapd/v1/events`: what the scheduler did, and why, as a sentence."""

    at: float
    """Unix time, seconds."""
    kind: str
    model: str | None
    message: str


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `GET /swapd/v1/requests`: what a request that has ended was like, and nothing of what it said."""

    id: str
    """Its X-Request-Id."""
    arrived_at: float
    """Unix time, seconds."""
    model: str
    client: str
    """A hash: the same for the same client while the daemon runs."""
    priority: int
    outcome: Outcome
    waited_s: float | None
    """For its place at a worker; None when it was given none."""
    service_s: float | None
    """From then to its end."""
    prompt_tokens: int | None
    """Those taken from a cache among them; None when its worker has not counted them."""
    cached_tokens: int | None
    completion_tokens: int | None
