"""What has happened: the only things that `step` is told. Frozen, past tense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from swapd.core.spec import DeviceSpec, ModelSpec


class ExitKind(Enum):
    """What a worker's end says about the next one."""

    FAILED = "failed"
    """Exited or was killed for a reason that may pass."""
    INVALID_MODEL = "invalid_model"
    """The worker found that the file can never be loaded."""
    OUT_OF_MEMORY = "out_of_memory"
    """An allocation failed, or the kernel killed it for want of memory."""
    UNDERESTIMATED = "underestimated"
    """It was not started: a probe found that it would take more than was reserved. Its model's costs are corrected."""
    CPU_FAULT = "cpu_fault"
    """SIGSEGV or SIGILL before it was ready: perhaps an instruction this CPU only claims to have."""


@dataclass(frozen=True, slots=True)
class RequestArrived:
    request_id: str
    model_id: str
    client: str
    priority: int = 0
    prompt_tokens: int = 0
    """Estimated."""
    answer_limit: int | None = None
    """Tokens that its answer has at most, where that is said."""
    weight: float = 1.0
    """How many tokens count as one where clients share: a client of weight 2 gets twice as much."""
    keep_alive_s: float | None = None
    """How long the model is to stay when it is idle, from now on: see `KeepAliveAsked`. None leaves that as it is."""
    may_load: bool = True
    """False refuses it at once unless a worker of the model is ready."""


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client left, at whatever stage."""

    request_id: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    request_id: str
    ok: bool


@dataclass(frozen=True, slots=True)
class TokensServed:
    """What one request cost. May come after its request has ended."""

    model_id: str
    client: str
    tokens: int
    """Of the prompt, as far as they had to be computed, and of the answer."""
    request_id: str | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """Its process exists and loads."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class WorkerProgressed:
    """A load moved on, micro-batches were finished, or a part of an answer came."""

    worker_id: int
    began: str | None = None
    """The running request whose answer has begun with it, if one has and that is how progress is seen."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    worker_id: int


@dataclass(frozen=True, slots=True)
class WorkerAsleep:
    """As it was asked to, it sleeps: its memory but for what it keeps is given back, and it is no worker any more. No
    WorkerExited follows."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class SleeperExited:
    """A sleeper's process is reaped, by whatever cause. None follows for one that was told to wake."""

    sleeper_id: int
    detail: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """Its process is reaped, or could not be started. Exactly one follows every Launch, unless a WorkerAsleep does."""

    worker_id: int
    kind: ExitKind
    detail: str
    device: str | None = None
    """Where memory ran out, if it is known."""


@dataclass(frozen=True, slots=True)
class SpareExited:
    """A spare ended by itself, or could not be started. `number` is that of its StartSpare."""

    kind: str
    number: int
    detail: str


@dataclass(frozen=True, slots=True)
class SparesChanged:
    """Which kinds of spares there are to be now, with the bytes of RAM that each takes."""

    size_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MemorySampled:
    device: str
    free_bytes: int
    held_bytes: Mapping[int, int] | None = None
    """What each worker has of that which is not free, by its id; None where the device does not tell."""


@dataclass(frozen=True, slots=True)
class ModelsChanged:
    """The whole list as it is now, in the file's order."""

    models: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """The whole list as it is now. A device that workers use may shrink but not vanish."""

    devices: tuple[DeviceSpec, ...]


@dataclass(frozen=True, slots=True)
class DevicesFound:
    """The machine's devices were looked for again: those of the list that are there, by name."""

    present: frozenset[str]
    slept_s: float = 0.0
    """How long the machine has slept just before, if it has."""


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """A person wants this model loaded. Answered by `Answer` with the same `ask_id`."""

    ask_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    """A person wants this model's workers gone. Answered by `Answer` with the same `ask_id`."""

    ask_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class KeepAliveAsked:
    """A client wants the model to stay for so long whenever it is idle, in place of its own `idle_unload_s`, until its
    workers are gone. The last wish counts; infinity is for ever, 0 until it runs nothing."""

    model_id: str
    keep_alive_s: float


@dataclass(frozen=True, slots=True)
class PauseAsked:
    """A person wants a device for something else. Answered by `Answer` once nothing of swapd's is on it."""

    ask_id: str
    device: str


@dataclass(frozen=True, slots=True)
class ResumeAsked:
    """A person gives a device back. Answered at once."""

    ask_id: str
    device: str


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """Drain everything; nothing new is accepted."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last SetTimer has come."""


Event = (
    RequestArrived
    | RequestCancelled
    | RequestFinished
    | TokensServed
    | WorkerStarted
    | WorkerProgressed
    | WorkerReady
    | WorkerExited
    | WorkerAsleep
    | SleeperExited
    | SpareExited
    | SparesChanged
    | MemorySampled
    | ModelsChanged
    | DevicesChanged
    | DevicesFound
    | LoadAsked
    | UnloadAsked
    | KeepAliveAsked
    | PauseAsked
    | ResumeAsked
    | ShutdownAsked
    | TimerFired
)
