"""What the ledger is made of: one record per device, model, worker, spare, and what goes with them.

Owns their fields and what follows from one record alone. What holds between records is `swapd.core.ledger`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from swapd.core.demand import Demand
from swapd.core.lifecycle import Cause, SleeperCause, SleeperState, WorkerState, after, after_sleeping
from swapd.core.pages import Pages
from swapd.core.requests import Request, Shares
from swapd.core.spec import DeviceSpec, ModelSpec, Placement, Room

WATCH_EVERY_S = 2.0
"""How often a device is asked for its free memory while a model waits for room; an older sample loads nothing."""

SAMPLE_PATIENCE_S = 3.0
"""How long a load waits for a device to answer."""

SLOW_METER = 5
"""How many times as long both are with a device whose meter is costly."""

MAX_CRASHES = 5
"""Of one model's workers that are remembered."""

LOADING_STATES = frozenset({WorkerState.LAUNCHING, WorkerState.LOADING})
SERVING_STATES = frozenset({WorkerState.READY, WorkerState.DRAINING})
LEAVING_STATES = frozenset({WorkerState.DRAINING, WorkerState.STOPPING})


@dataclass(frozen=True, slots=True)
class Departure:
    """Why a worker leaves. `for_model` names the model it makes room for, if it does."""

    reason: str
    for_model: str | None = None
    deadline_s: float | None = None
    """When its running requests are cut; None waits for them."""

    @property
    def is_eviction(self) -> bool:
        return self.for_model is not None


@dataclass(slots=True, eq=False)
class Worker:
    """One process, from the moment its memory is reserved until it is reaped."""

    id: int
    spec: ModelSpec
    placement: Placement
    portable: bool
    state: WorkerState
    launched_at_s: float
    last_progress_s: float
    ready_at_s: float | None = None
    idle_since_s: float = 0.0
    departure: Departure | None = None
    #: Of its bytes in RAM those that it shares with other workers of the same files.
    pages: Pages | None = None
    #: Requests it runs, in the order of their grants. Never more than `spec.slots`.
    running: dict[str, Request] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        return self.spec.id

    def move(self, cause: Cause) -> None:
        self.state = after(self.state, cause)


@dataclass(slots=True, eq=False)
class Sleeper:
    """A process that keeps a little of its memory, to be its model's worker again sooner than another could load."""

    id: int
    """That of the worker which fell asleep."""
    spec: ModelSpec
    placement: Placement
    """Of the worker that fell asleep, and while it wakes of the one that it becomes."""
    held_bytes: Mapping[str, int]
    """What it keeps while it sleeps, by device."""
    since_s: float
    state: SleeperState = SleeperState.FALLING
    worker_id: int | None = None
    """The worker that it still is, or is again."""

    @property
    def model_id(self) -> str:
        return self.spec.id

    def move(self, cause: SleeperCause) -> None:
        self.state = after_sleeping(self.state, cause)

    def placed_bytes(self, device: str) -> int:
        return self.placement.device_bytes.get(device, 0)

    def charged_bytes(self, device: str) -> int:
        """What counts beside its worker; all that it keeps where there is none."""
        held_bytes = self.held_bytes.get(device, 0)
        return held_bytes if self.worker_id is None else max(0, held_bytes - self.placed_bytes(device))

    def leaving_bytes(self, device: str) -> int:
        """How much more, or less, is on its way back than its worker's bytes, if that one leaves."""
        match self.state:
            case SleeperState.FALLING:
                return -min(self.held_bytes.get(device, 0), self.placed_bytes(device))
            case SleeperState.WAKING | SleeperState.LEAVING:
                return self.charged_bytes(device)
        return 0


@dataclass(frozen=True, slots=True)
class Settling:
    """Bytes of a worker that has gone, still charged until the device is seen to have them back."""

    device: str
    size_bytes: int
    free_before_bytes: int | None
    """Free memory as last seen before the process went; None if it was never seen."""
    until_s: float


@dataclass(frozen=True, slots=True)
class Eviction:
    at_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A person's wish to load or unload, and since when."""

    id: str
    asked_at_s: float


@dataclass(slots=True, eq=False)
class Model:
    """One entry of the list: its queue and what was learned of it."""

    spec: ModelSpec
    known_since_s: float
    #: Waiting requests in order of arrival.
    waiting: dict[str, Request] = field(default_factory=dict)
    load_asks: list[Ask] = field(default_factory=list)
    unload_asks: list[Ask] = field(default_factory=list)
    #: A pinned model that a person unloaded stays away until it is asked for again.
    pin_lifted: bool = False
    #: What a client last wished in place of the spec's `idle_unload_s`, for as long as it has workers.
    keep_alive_s: float | None = None
    #: Where its next worker will go, once those who make room have left. Others may not take that room.
    claim: Placement | None = None
    #: Where its last load ran out of memory: the most that the next one may take there.
    ceilings: dict[str, int] = field(default_factory=dict)
    #: Why it can never be served, learned from a worker. The file's own verdict is in the spec.
    verdict: str | None = None
    failures: int = 0
    #: Workers from this one on were launched after its last failure.
    first_since_failure: int = 0
    #: When its workers last died or hung while they served.
    crashed_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_CRASHES))
    retry_at_s: float | None = None
    last_error: str | None = None
    portable: bool = False
    shares: Shares = field(default_factory=Shares)
    #: When each client's last request ended.
    last_seen_s: dict[str, float] = field(default_factory=dict)
    last_used_s: float | None = None
    loads: int = 0
    load_s: float | None = None
    #: A running mean over its loads.
    usual_load_s: float | None = None
    #: The same of the times that it was woken.
    usual_wake_s: float | None = None
    #: Times in a row that it did not fall asleep or wake as it was asked to.
    sleep_failures: int = 0
    demand: Demand = field(default_factory=Demand)
    service_s: float | None = None
    last_eviction: Eviction | None = None
    #: Why it never fits, with what that was worked out from.
    misfit: tuple[Hashable, str | None] | None = None
    #: The best it could have if every other left, with what that was worked out from.
    best: tuple[Hashable, Placement | None] | None = None

    @property
    def id(self) -> str:
        return self.spec.id

    def within(self, room: Room) -> Room:
        """Of a room, what this model may take under its ceilings."""
        free = {name: min(size, self.ceilings.get(name, size)) for name, size in room.free_bytes.items()}
        return Room(free, room.shares)


@dataclass(slots=True, eq=False)
class Device:
    spec: DeviceSpec
    #: As last read, and when that was.
    free_bytes: int | None = None
    sampled_at_s: float | None = None
    #: When it was last asked, and since when it has not answered.
    asked_at_s: float | None = None
    silent_since_s: float | None = None
    #: What is neither free nor swapd's: the desktop, a game, another server.
    others_bytes: int = 0
    #: Handed over to somebody: nothing is placed on it, and who is on it leaves.
    paused: bool = False
    pause_asks: list[Ask] = field(default_factory=list)
    #: Not found when the devices were last looked for: nothing is placed on it, and what needs it waits.
    lost: bool = False
    #: What was charged when the budget was cut below it; shrinks as workers leave, and never grows.
    tolerated_bytes: int = 0

    def is_fresh(self, now_s: float) -> bool:
        """Whether its sample is good enough to load something by. One that does not answer is not waited for."""
        if not self.spec.metered or self.is_closed:
            return True
        if self.silent_since_s is not None and now_s - self.silent_since_s >= SAMPLE_PATIENCE_S * self.slowness:
            return True
        return self.sampled_at_s is not None and now_s - self.sampled_at_s <= WATCH_EVERY_S * self.slowness

    @property
    def slowness(self) -> int:
        return SLOW_METER if self.spec.slow_meter else 1

    @property
    def within_others_bytes(self) -> int:
        """The budget, or what others and the reserve leave of the device if that is less."""
        left_bytes = self.spec.total_bytes - self.spec.reserve_bytes - self.others_bytes
        return min(self.spec.budget_bytes, left_bytes) if self.spec.metered else self.spec.budget_bytes

    @property
    def limit_bytes(self) -> int:
        """What swapd may take of it now."""
        return 0 if self.is_closed else self.within_others_bytes

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be placed on it, however much there is."""
        return self.paused or self.lost


@dataclass(slots=True)
class Spare:
    """A process of one kind that was started without a model and waits for the next load; or none, for now."""

    size_bytes: int
    missing_since_s: float
    is_up: bool = False
    number: int = 0
    #: Ends by itself since a load last took one.
    failures: int = 0
    retry_at_s: float = 0.0


@dataclass(slots=True)
class Counters:
    accepted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
