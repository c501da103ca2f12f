"""What the shell must do: the only things that `step` returns. Frozen, imperative.

Everything they say is already recorded in the ledger when they are returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from swapd.core.spec import Placement


class RefusalKind(Enum):
    NOT_LOADED = "not_loaded"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_DEVICE = "unknown_device"
    INVALID_MODEL = "invalid_model"
    DOES_NOT_FIT = "does_not_fit"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    CLIENT_LIMIT = "client_limit"
    LOAD_FAILED = "load_failed"
    LOAD_TIMEOUT = "load_timeout"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request or an ask gets no. `message` is whole: what, which model, the limit, the remedy."""

    kind: RefusalKind
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use a slot of the worker until it finishes."""

    request_id: str
    worker_id: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Reject:
    request_id: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of what a person asked for; `refusal` is None when it was done."""

    ask_id: str
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a worker. Its bytes are already reserved."""

    worker_id: int
    model_id: str
    placement: Placement
    portable: bool
    proven: bool = False
    """A worker of the model as it is now has been ready before."""
    from_spare: bool = False
    """The spare of the model's kind becomes the worker; if it has just died, a new process is started all the same."""
    sleeper: int | None = None
    """The sleeper that is to wake and be the worker; if it has just died, so has the worker."""


@dataclass(frozen=True, slots=True)
class StartSpare:
    """Start a process without a model, which the next load takes."""

    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class StopSpare:
    """End the spare of this kind, without a SpareExited."""

    kind: str


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Read a model's files into the page cache: it has a claim on memory that others leave."""

    model_id: str
    placement: Placement


@dataclass(frozen=True, slots=True)
class StopReadAhead:
    """The claim is gone: the model is being loaded, or nobody wants it any more."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Terminate a worker, kill it after `grace_s`, reap it."""

    worker_id: int
    grace_s: float
    sleep: bool = False
    """Have it sleep instead, and report WorkerAsleep; terminate it if it does not."""


@dataclass(frozen=True, slots=True)
class StopSleeper:
    """Terminate a process that sleeps, or is about to, and report its end: SleeperExited, or WorkerExited."""

    sleeper_id: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Read how much memory of the device is free and report it by MemorySampled, if it can be read."""

    device: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Report TimerFired at this time; replaces the timer set before. None takes it away."""

    at_s: float | None


@dataclass(frozen=True, slots=True)
class Tell:
    """A sentence for the log and the event stream: what was done, and why."""

    kind: str
    model_id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class ReportLoad:
    """Count one load attempt that ended: ready, woken, failed, out_of_memory, crashed, stuck or stopped."""

    model_id: str
    outcome: str
    load_s: float


@dataclass(frozen=True, slots=True)
class ReportDeparture:
    """Count one worker that has gone. `evicted`: it left to make room."""

    model_id: str
    reason: str
    evicted: bool


Effect = (
    Grant
    | Reject
    | Answer
    | Launch
    | StartSpare
    | StopSpare
    | ReadAhead
    | StopReadAhead
    | Stop
    | StopSleeper
    | Sample
    | SetTimer
    | Tell
    | ReportLoad
    | ReportDeparture
)
