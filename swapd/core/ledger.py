"""Who holds which bytes on which device, who waits, who is served. One writer: `swapd.core.scheduler.step`.

Owns the records and their invariants (`check`). Holds no policy: it never decides who should leave or load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from swapd.core.demand import Demand
from swapd.core.lifecycle import Cause, WorkerState, after
from swapd.core.pages import Pages, held_bytes, pages_of
from swapd.core.requests import Request, Shares
from swapd.core.spec import RAM, DeviceSpec, ModelSpec, Placement, Room, shared_memories

WATCH_EVERY_S = 2.0
"""How often a device is asked for its free memory while a model waits for room; an older sample loads nothing."""

SAMPLE_PATIENCE_S = 3.0
"""How long a load waits for a device to answer."""

SLOW_METER = 5
"""How many times as long both are with a device whose meter is costly."""

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
    #: Where its next worker will go, once those who make room have left. Others may not take that room.
    claim: Placement | None = None
    #: Where its last load ran out of memory: the most that the next one may take there.
    ceilings: dict[str, int] = field(default_factory=dict)
    #: Why it can never be served, learned from a worker. The file's own verdict is in the spec.
    verdict: str | None = None
    failures: int = 0
    #: Workers from this one on were launched after its last failure.
    first_since_failure: int = 0
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
    demand: Demand = field(default_factory=Demand)
    service_s: float | None = None
    last_eviction: Eviction | None = None
    #: Why it never fits, with what that was worked out from.
    misfit: tuple[Hashable, str | None] | None = None

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
    #: What was charged when the budget was cut below it; shrinks as workers leave, and never grows.
    tolerated_bytes: int = 0

    def is_fresh(self, now_s: float) -> bool:
        """Whether its sample is good enough to load something by. One that does not answer is not waited for."""
        if not self.spec.metered or self.paused:
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
        return 0 if self.paused else self.within_others_bytes


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


@dataclass(slots=True)
class Ledger:
    """Everything the scheduler knows."""

    devices: dict[str, Device] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    #: Every worker that is not gone, oldest first. Its model may have been removed from the list.
    workers: dict[int, Worker] = field(default_factory=dict)
    #: The same by model.
    by_model: dict[str, dict[int, Worker]] = field(default_factory=dict)
    settling: list[Settling] = field(default_factory=list)
    #: By kind, those that there are to be.
    spares: dict[str, Spare] = field(default_factory=dict)
    #: Models whose files are being read ahead.
    reading: set[str] = field(default_factory=set)
    #: Running requests only; waiting ones are in their model's queue.
    running: dict[str, Request] = field(default_factory=dict)
    #: Waiting requests by id, for cancels that name no model.
    waiting: dict[str, Request] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    closing: bool = False
    timer_at_s: float | None = None
    #: Whether some model wanted a worker, or one drained, when everything was last looked at.
    is_short: bool = False
    now_s: float = 0.0
    next_worker_id: int = 1
    spare_starts: int = 0

    def workers_of(self, model_id: str) -> Iterator[Worker]:
        return iter(self.by_model.get(model_id, {}).values())

    def staying(self, model_id: str) -> list[Worker]:
        """The model's workers that have not been told to leave, the one it would miss most first."""
        found = [worker for worker in self.workers_of(model_id) if worker.state not in LEAVING_STATES]
        return sorted(found, key=lambda one: (one.state is not WorkerState.READY, -len(one.running), one.id))

    def is_surplus(self, worker: Worker) -> bool:
        """Whether it is one of several and its model would miss another one more."""
        if worker.spec.replicas == 1 or worker.state in LEAVING_STATES:
            return False
        return self.staying(worker.model_id)[0] is not worker

    def is_pinned(self, worker: Worker) -> bool:
        """Whether it may not be sent away for others. Of a pinned model's workers that is one."""
        return worker.spec.pin and not self.is_surplus(worker)

    def charged_bytes(self, device: str) -> int:
        """Bytes reserved on a device, by workers and by those who left but whose memory is not yet back.

        Pages of a file that several workers map count once, and as long as one of them does.
        """
        return held_bytes(self.workers.values(), device) + sum(
            entry.size_bytes for entry in self.settling if entry.device == device
        )

    def free_bytes(self, device: str) -> int:
        """What may still be placed on a device; negative when its budget was cut or others have taken more."""
        return self.devices[device].limit_bytes - self.charged_bytes(device)

    @property
    def spare_bytes(self) -> int:
        """RAM that spares have. No load counts with it: they get what is left over, and yield."""
        return sum(spare.size_bytes for spare in self.spares.values() if spare.is_up)

    def room(self, free_bytes: Mapping[str, int]) -> Room:
        """These bytes, on the devices as they are."""
        return Room(free_bytes, shared_memories(device.spec for device in self.devices.values()))

    def budget_room(self, model: Model) -> Room:
        """What this model could ever have: the budgets, less what pinned workers of others hold for good."""
        return self._without_pinned(model, {name: device.spec.budget_bytes for name, device in self.devices.items()})

    @property
    def limits(self) -> Hashable:
        """What `budget_room` goes by: it is the same for a model as long as this is."""
        pinned = (worker.id for worker in self._pinned())
        return (*(device.spec for device in self.devices.values()), *pinned)

    def open_room(self, model: Model) -> Room:
        """What this model could have if every other left that may be asked to, and paused devices were given back."""
        return self._without_pinned(model, {name: one.within_others_bytes for name, one in self.devices.items()})

    def _without_pinned(self, model: Model, sizes: dict[str, int]) -> Room:
        pinned = [worker for worker in self._pinned() if worker.model_id != model.id]
        for name in sizes:
            sizes[name] -= held_bytes(pinned, name)
        files = model.spec.mapped_files
        if files is not None and RAM in sizes:
            # It would map the same pages, if it is laid out as they are.
            same = {worker.pages for worker in pinned if worker.pages is not None and worker.pages.files == files}
            sizes[RAM] += sum(pages.size_bytes for pages in same)
        return self.room(sizes)

    def _pinned(self) -> Iterator[Worker]:
        pinned = (one for one in self.workers.values() if one.spec.pin and one.state not in LEAVING_STATES)
        return (worker for worker in pinned if self.is_pinned(worker))

    def mapped(self) -> set[Pages]:
        """Pages that stay mapped: the next worker of the same files has them already."""
        mapping = ((one.pages, one.state) for one in self.workers.values())
        return {pages for pages, state in mapping if pages is not None and state not in LEAVING_STATES}

    def mappers(self, pages: Pages | None) -> int:
        """How many workers that stay map these pages."""
        if pages is None:
            return 0
        return sum(worker.pages == pages for worker in self.workers.values() if worker.state not in LEAVING_STATES)

    def leaving_bytes(self, device: str) -> int:
        """Charged bytes that are on their way back without any further decision."""
        staying = (worker for worker in self.workers.values() if worker.state not in LEAVING_STATES)
        held = held_bytes(self.workers.values(), device) - held_bytes(staying, device)
        return held + sum(entry.size_bytes for entry in self.settling if entry.device == device)

    def enqueue(self, request: Request) -> None:
        model = self.models[request.model_id]
        model.waiting[request.id] = self.waiting[request.id] = request
        model.shares.enter(request)

    def dequeue(self, request_id: str) -> None:
        """Take out a waiting request that is not granted."""
        request = self.waiting[request_id]
        self._take_out(request).shares.leave(request)

    def _take_out(self, request: Request) -> Model:
        model = self.models[request.model_id]
        del self.waiting[request.id], model.waiting[request.id]
        return model

    def grant(self, request: Request, worker: Worker, now_s: float) -> None:
        assert worker.state is WorkerState.READY
        assert len(worker.running) < worker.spec.slots
        self._take_out(request).shares.start(request)
        request.worker_id, request.granted_at_s = worker.id, now_s
        worker.running[request.id] = self.running[request.id] = request

    def release(self, request: Request, now_s: float, *, refund: bool = False) -> None:
        """Give back a running request's slot, and with `refund` what its client was charged for it."""
        assert request.worker_id is not None
        del self.running[request.id]
        worker = self.workers[request.worker_id]
        del worker.running[request.id]
        if not worker.running:
            worker.idle_since_s = now_s
        model = self.models.get(request.model_id)
        if model is not None:
            model.last_used_s = now_s
            # The model may have been removed and listed again meanwhile.
            if model.shares.active.get(request.client) is request.account:
                model.shares.end(request, refund=refund)

    def add_worker(self, spec: ModelSpec, placement: Placement, *, portable: bool, now_s: float) -> Worker:
        """Reserve a placement's bytes for a new worker of the model."""
        worker = Worker(
            id=self.next_worker_id,
            spec=spec,
            placement=placement,
            portable=portable,
            state=WorkerState.LAUNCHING,
            launched_at_s=now_s,
            last_progress_s=now_s,
            idle_since_s=now_s,
            pages=pages_of(spec, placement),
        )
        self.next_worker_id += 1
        self.workers[worker.id] = self.by_model.setdefault(spec.id, {})[worker.id] = worker
        return worker

    def remove_worker(self, worker: Worker) -> None:
        """Take a reaped worker out; its bytes are no longer charged to it."""
        assert not worker.running
        worker.move(Cause.EXITED)
        del self.workers[worker.id]
        siblings = self.by_model[worker.model_id]
        del siblings[worker.id]
        if not siblings:
            del self.by_model[worker.model_id]

    def note_release(self) -> None:
        """Charges went down: a budget that was cut tolerates no more than what is left."""
        for name, device in self.devices.items():
            device.tolerated_bytes = min(device.tolerated_bytes, self.charged_bytes(name))

    def check(self) -> None:
        """Assert every invariant. A breach is a defect of swapd, never an operating error."""
        for name, device in self.devices.items():
            charged = self.charged_bytes(name) + (self.spare_bytes if name == RAM else 0)
            limit = max(device.spec.budget_bytes, device.tolerated_bytes)
            assert charged <= limit, f"{name}: {charged} bytes charged, {limit} allowed"
        self._check_workers()
        self._check_requests()

    def _check_workers(self) -> None:
        staying = Counter(one.model_id for one in self.workers.values() if one.state not in LEAVING_STATES)
        for model_id, count in staying.items():
            replicas = self.models[model_id].spec.replicas
            assert count <= replicas, f"{model_id} has {count} workers of {replicas}"
        for worker in self.workers.values():
            assert worker.state is not WorkerState.GONE, f"worker {worker.id} is gone but listed"
            assert len(worker.running) <= worker.spec.slots, f"worker {worker.id} runs more than its slots"
            assert worker.state in SERVING_STATES or not worker.running, (
                f"worker {worker.id} is {worker.state.value} and serves"
            )
            assert (worker.state in LEAVING_STATES) == (worker.departure is not None), f"worker {worker.id}"
            shared_bytes = worker.pages.size_bytes if worker.pages is not None else 0
            assert shared_bytes <= worker.placement.device_bytes.get(RAM, 0), (
                f"worker {worker.id} shares what it has not"
            )
            for name in worker.placement.device_bytes:
                assert name in self.devices, f"worker {worker.id} holds bytes on {name}, which is unknown"

    def _check_requests(self) -> None:
        granted = {key for worker in self.workers.values() for key in worker.running}
        assert granted == set(self.running), "grants and running requests differ"
        queued = {key for model in self.models.values() for key in model.waiting}
        assert queued == set(self.waiting), "queues and waiting requests differ"
        for model in self.models.values():
            accounts = model.shares.active.values()
            assert all(account.is_active for account in accounts), f"{model.id} counts a client that is away"
            assert sum(account.waiting for account in accounts) == len(model.waiting), f"{model.id}: shares and queue"
            if model.waiting or model.load_asks:
                assert self.timer_at_s is not None, f"{model.id} is waited for without a timer"
                assert not self.closing, f"{model.id} is waited for during the shutdown"
            if not model.waiting:
                assert model.shares.waiting_tokens == 0, f"{model.id} has tokens waiting and no request"
                continue
            for worker in self.workers_of(model.id):
                free = worker.state is WorkerState.READY and len(worker.running) < worker.spec.slots
                assert not free, f"{model.id} has requests waiting and worker {worker.id} a free slot"
        counters = self.counters
        ended = counters.finished + counters.failed + counters.cancelled
        assert counters.accepted == len(self.waiting) + len(self.running) + ended, "requests got lost"

    def __repr__(self) -> str:
        states = ", ".join(f"{worker.model_id} {worker.state.value}" for worker in self.workers.values())
        memory = ", ".join(
            f"{name} {self.charged_bytes(name)}/{device.spec.budget_bytes}" for name, device in self.devices.items()
        )
        return f"<Ledger [{states} | {len(self.waiting)} waiting, {len(self.running)} running | {memory}]>"
