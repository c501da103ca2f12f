"""Who holds which bytes on which device, who waits, who is served. One writer: `swapd.core.scheduler.step`.

Owns what holds between its records, and the invariants (`check`). Holds no policy: it never decides who should leave or
load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from swapd.core.lifecycle import Cause, SleeperState, WorkerState
from swapd.core.pages import Pages, held_bytes, pages_of
from swapd.core.records import (
    LEAVING_STATES,
    SERVING_STATES,
    Counters,
    Device,
    Model,
    Settling,
    Sleeper,
    Spare,
    Worker,
)
from swapd.core.requests import Request
from swapd.core.spec import RAM, ModelSpec, Placement, Room, shared_memories


@dataclass(slots=True)
class Ledger:
    """Everything the scheduler knows."""

    devices: dict[str, Device] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    #: Every worker that is not gone, oldest first. Its model may have been removed from the list.
    workers: dict[int, Worker] = field(default_factory=dict)
    #: The same by model.
    by_model: dict[str, dict[int, Worker]] = field(default_factory=dict)
    #: Processes that sleep, by the worker that each was, oldest first.
    sleepers: dict[int, Sleeper] = field(default_factory=dict)
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
    #: Requests that the last step moved: into a queue, out of it, off a worker.
    moved: list[Request] = field(default_factory=list)
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
        """Bytes reserved on a device, by workers, by sleepers and by those who left but whose memory is not yet back.

        Pages of a file that several workers map count once, and as long as one of them does.
        """
        asleep = sum(one.charged_bytes(device) for one in self.sleepers.values())
        settling = sum(entry.size_bytes for entry in self.settling if entry.device == device)
        return held_bytes(self.workers.values(), device) + asleep + settling

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

    @property
    def open_limits(self) -> Hashable:
        """The same of `open_room`."""
        return (*(device.others_bytes for device in self.devices.values()), self.limits)

    def open_room(self, model: Model) -> Room:
        """What this model could have if every other left that may be asked to, and devices were given back."""
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
        asleep = sum(one.leaving_bytes(device) for one in self.sleepers.values())
        return held + asleep + sum(entry.size_bytes for entry in self.settling if entry.device == device)

    def enqueue(self, request: Request) -> None:
        model = self.models[request.model_id]
        model.waiting[request.id] = self.waiting[request.id] = request
        model.shares.enter(request)
        self.moved.append(request)

    def dequeue(self, request_id: str) -> None:
        """Take out a waiting request that is not granted."""
        request = self.waiting[request_id]
        self._take_out(request).shares.leave(request)

    def _take_out(self, request: Request) -> Model:
        model = self.models[request.model_id]
        del self.waiting[request.id], model.waiting[request.id]
        self.moved.append(request)
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
        self.moved.append(request)
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

    # -- invariants: a breach is a defect of swapd, never an operating error -------------------------------------------

    def check(self) -> None:
        """Assert every invariant. Takes the longer the more waits; `swapd.core.audit` spreads that over steps."""
        self.check_sums()
        queued = {key for model in self.models.values() for key in model.waiting}
        assert queued == set(self.waiting), "queues and waiting requests differ"
        for model in self.models.values():
            self.check_queue(model)

    def check_sums(self) -> None:
        """Memory, workers, what they run, and the counters: all that does not grow with what waits."""
        for name, device in self.devices.items():
            charged = self.charged_bytes(name) + (self.spare_bytes if name == RAM else 0)
            limit = max(device.spec.budget_bytes, device.tolerated_bytes)
            assert charged <= limit, f"{name}: {charged} bytes charged, {limit} allowed"
        self._check_workers()
        self._check_sleepers()
        granted = {key for worker in self.workers.values() for key in worker.running}
        assert granted == set(self.running), "grants and running requests differ"
        assert not self.waiting or not self.closing, "requests wait during the shutdown"
        assert not self.waiting or self.timer_at_s is not None, "requests wait without a timer"
        counters = self.counters
        ended = counters.finished + counters.failed + counters.cancelled
        assert counters.accepted == len(self.waiting) + len(self.running) + ended, "requests got lost"

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
            if worker.state is WorkerState.READY and len(worker.running) < worker.spec.slots:
                assert not self.models[worker.model_id].waiting, (
                    f"{worker.model_id} has requests waiting and worker {worker.id} a free slot"
                )

    def _check_sleepers(self) -> None:
        wanted = Counter(one.model_id for one in self.sleepers.values() if one.state is not SleeperState.LEAVING)
        assert all(count == 1 for count in wanted.values()), "a model has two sleepers"
        for key, sleeper in self.sleepers.items():
            worker = self.workers.get(sleeper.worker_id or 0)
            told = f"sleeper {key} is {sleeper.state.value}"
            match sleeper.state:
                case SleeperState.FALLING:
                    assert worker is not None, told
                    assert worker.id == key, told
                    assert worker.state is WorkerState.STOPPING, told
                case SleeperState.WAKING:
                    assert worker is not None, told
                    assert worker.ready_at_s is None, told
                    assert worker.placement is sleeper.placement, told
                case SleeperState.LEAVING if worker is not None:
                    assert worker.id == key, told
                    assert worker.state is WorkerState.STOPPING, told
                case _:
                    assert sleeper.worker_id is None, told
                    assert key not in self.workers, told
                    assert sleeper.state is not SleeperState.GONE, told

    def check_queue(self, model: Model) -> None:
        """One model's queue, its clients' accounts and their sums."""
        shares, waiting = model.shares, model.waiting
        for key, request in waiting.items():
            assert self.waiting.get(key) is request, f"{model.id}: queues and waiting requests differ"
        accounts = shares.active.values()
        assert all(account.is_active for account in accounts), f"{model.id} counts a client that is away"
        assert sum(account.waiting for account in accounts) == len(waiting), f"{model.id}: shares and queue"
        tokens = sum(request.estimated_tokens for request in waiting.values())
        assert shares.waiting_tokens == tokens, f"{model.id} has {tokens} tokens waiting, not {shares.waiting_tokens}"
        since_us = sum(request.arrived_us for request in waiting.values())
        assert shares.waiting_since_us == since_us, f"{model.id}: times of arrival and their sum"
        if model.load_asks:
            assert self.timer_at_s is not None, f"{model.id} is waited for without a timer"
            assert not self.closing, f"{model.id} is waited for during the shutdown"

    def check_request(self, request: Request) -> None:
        """One that was moved is in one place or in none, and its client's account says the same."""
        model, account = self.models.get(request.model_id), request.account
        worker = self.workers.get(request.worker_id or 0)
        waits, runs = self.waiting.get(request.id) is request, self.running.get(request.id) is request
        assert account is not None
        assert not (waits and runs), f"{request.id} waits and runs"
        queued = model is not None and model.waiting.get(request.id) is request
        assert waits == queued, f"{request.id}: queues and waiting requests differ"
        assert runs == (worker is not None and request.id in worker.running), f"{request.id}: grants and running differ"
        assert waits == (request.id in account.lines.get(request.priority, ())), f"{request.id}: shares and queue"
        assert account.waiting == sum(map(len, account.lines.values())), (
            f"{request.id}: its client's lines and their sum"
        )
        if model is not None and waits:
            assert model.shares.active.get(request.client) is account, f"{request.id}: its client counts as away"

    def __repr__(self) -> str:
        states = ", ".join(f"{worker.model_id} {worker.state.value}" for worker in self.workers.values())
        memory = ", ".join(
            f"{name} {self.charged_bytes(name)}/{device.spec.budget_bytes}" for name, device in self.devices.items()
        )
        return f"<Ledger [{states} | {len(self.waiting)} waiting, {len(self.running)} running | {memory}]>"
