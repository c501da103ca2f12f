"""Simpler schedulers to compare swapd's with: what others do, on the same machine, events and costs.

Each is a `Decide` of its own with a memory of its own; none is reachable from the daemon. All place models as swapd
does, never stop a busy worker, take a reaped worker's memory as free at once, and keep swapd's bounds of the queue, so
that what differs is the order in which they serve and who leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.departures import STOP_GRACE_S
from swapd.core.placement import good_enough, misfit, place
from swapd.core.spec import DeviceSpec, ModelSpec, Placement, Room


@dataclass(slots=True)
class _Waiting:
    id: str
    model_id: str
    arrived_at_s: float


@dataclass(slots=True)
class _Worker:
    id: int
    spec: ModelSpec
    placement: Placement
    launched_at_s: float
    ready: bool = False
    leaving: bool = False
    last_used_s: float = 0.0
    running: set[str] = field(default_factory=set)


class LeastRecentlyUsed:
    """One queue per model, in order of arrival. Whoever has been idle for longest leaves as soon as room is needed."""

    name = "lru"
    alone = False
    """Whether no model is loaded beside another."""

    def __init__(self) -> None:
        self._devices: tuple[DeviceSpec, ...] = ()
        self._models: dict[str, ModelSpec] = {}
        #: Everything that waits, in order of arrival.
        self._waiting: dict[str, _Waiting] = {}
        self._workers: dict[int, _Worker] = {}
        self._next_id = 1
        self._timer_at_s: float | None = None

    def __call__(self, event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        effects: list[ef.Effect] = []
        self._record(event, now_s, effects)
        self._refuse_overdue(now_s, effects)
        self._plan(now_s, effects)
        self._set_timer(effects)
        return effects

    # -- what is peculiar to each ----------------------------------------------------------------------------------

    def _turns(self) -> Iterator[_Waiting]:
        """The requests that may be served now, in this order: here the oldest of each model."""
        seen = set()
        for request in list(self._waiting.values()):
            if request.model_id not in seen:
                seen.add(request.model_id)
                yield request

    # -- events ----------------------------------------------------------------------------------------------------

    def _record(self, event: ev.Event, now_s: float, effects: list[ef.Effect]) -> None:
        match event:
            case ev.DevicesChanged(devices):
                self._devices = devices
            case ev.ModelsChanged(models):
                self._models = {spec.id: spec for spec in models}
                self._load_pinned(now_s, effects)
            case ev.RequestArrived():
                self._arrived(event, now_s, effects)
            case ev.RequestFinished(request_id):
                worker = next(one for one in self._workers.values() if request_id in one.running)
                worker.running.discard(request_id)
                worker.last_used_s = now_s
            case ev.WorkerReady(worker_id):
                self._workers[worker_id].ready = True
                self._workers[worker_id].last_used_s = now_s
            case ev.WorkerExited(worker_id):
                worker = self._workers.pop(worker_id)
                effects.append(ef.ReportDeparture(worker.spec.id, "room", evicted=True))
            case ev.TimerFired():
                self._timer_at_s = None

    def _load_pinned(self, now_s: float, effects: list[ef.Effect]) -> None:
        for spec in self._models.values():
            if spec.pin and spec.costs is not None and not self.alone:
                self._load(spec, now_s, effects)

    def _arrived(self, event: ev.RequestArrived, now_s: float, effects: list[ef.Effect]) -> None:
        spec = self._models.get(event.model_id)
        kind = ef.RefusalKind.UNKNOWN_MODEL
        if spec is not None:
            queued = sum(one.model_id == spec.id for one in self._waiting.values())
            if spec.costs is None:
                kind = ef.RefusalKind.INVALID_MODEL
            elif misfit(spec, Room.of_budgets(self._devices)) is not None:
                kind = ef.RefusalKind.DOES_NOT_FIT
            elif queued >= spec.max_waiting:
                kind = ef.RefusalKind.QUEUE_FULL
            else:
                self._waiting[event.request_id] = _Waiting(event.request_id, spec.id, now_s)
                return
        effects.append(_refusal(event.request_id, kind))

    def _refuse_overdue(self, now_s: float, effects: list[ef.Effect]) -> None:
        for request in list(self._waiting.values()):
            if now_s >= self._overdue_at_s(request):
                del self._waiting[request.id]
                effects.append(_refusal(request.id, ef.RefusalKind.QUEUE_TIMEOUT))

    def _overdue_at_s(self, request: _Waiting) -> float:
        return request.arrived_at_s + self._models[request.model_id].queue_timeout_s

    def _set_timer(self, effects: list[ef.Effect]) -> None:
        at_s = min(map(self._overdue_at_s, self._waiting.values()), default=None)
        if at_s != self._timer_at_s:
            self._timer_at_s = at_s
            effects.append(ef.SetTimer(at_s))

    # -- plans -----------------------------------------------------------------------------------------------------

    def _plan(self, now_s: float, effects: list[ef.Effect]) -> None:
        while any(self._grant(request, now_s, effects) for request in self._turns()):
            pass
        for request in self._turns():
            if not any(one.spec.id == request.model_id and not one.leaving for one in self._workers.values()):
                is_coming = self._load(self._models[request.model_id], now_s, effects)
                if is_coming:
                    return  # Nobody else may take the room that was made.

    def _grant(self, request: _Waiting, now_s: float, effects: list[ef.Effect]) -> bool:
        for worker in self._workers.values():
            is_free = worker.ready and not worker.leaving and len(worker.running) < worker.spec.slots
            if is_free and worker.spec.id == request.model_id:
                del self._waiting[request.id]
                worker.running.add(request.id)
                worker.last_used_s = now_s
                effects.append(ef.Grant(request.id, worker.id, now_s - request.arrived_at_s))
                return True
        return False

    def _load(self, spec: ModelSpec, now_s: float, effects: list[ef.Effect]) -> bool:
        """Launch the model if there is room, else ask idle workers to leave. True while room for it is coming."""
        staying = [one for one in self._workers.values() if not one.leaving]
        victims = list(staying) if self.alone else []
        if any(not one.ready or one.running for one in victims):
            return False
        others = [one for one in staying if one not in victims and one.ready and not one.running and not one.spec.pin]
        others.sort(key=lambda one: one.last_used_s)
        while self._placed(spec, [one for one in staying if one not in victims]) is None:
            if not others:
                return False
            victims.append(others.pop(0))
        for victim in victims:
            victim.leaving = True
            effects.append(ef.Stop(victim.id, STOP_GRACE_S))
        present = list(self._workers.values())
        found = self._placed(spec, present)
        if found is None or (self.alone and present):
            return True
        self._launch(spec, found, now_s, effects)
        return False

    def _placed(self, spec: ModelSpec, beside: Sequence[_Worker]) -> Placement | None:
        """Where the model goes beside these, unless it would get much less of the GPUs than alone."""
        room = Room.of_budgets(self._devices)
        free_bytes = dict(room.free_bytes)
        for worker in beside:
            for name, size_bytes in worker.placement.device_bytes.items():
                free_bytes[name] -= size_bytes
        best, found = place(spec, room), place(spec, Room(free_bytes, room.shares))
        assert spec.costs is not None
        return found if found is not None and best is not None and good_enough(found, best, spec.costs) else None

    def _launch(self, spec: ModelSpec, placement: Placement, now_s: float, effects: list[ef.Effect]) -> None:
        worker = _Worker(self._next_id, spec, placement, now_s)
        self._next_id += 1
        self._workers[worker.id] = worker
        effects.append(ef.Launch(worker.id, spec.id, placement, portable=False))


class FirstInFirstOut(LeastRecentlyUsed):
    """One queue of all requests, in order of arrival. Nobody is served before the one at its head has a place."""

    name = "fifo"

    def _turns(self) -> Iterator[_Waiting]:
        yield from list(self._waiting.values())[:1]


class OneAtATime(FirstInFirstOut):
    """The same queue, and one model at a time: who is there leaves whenever the head asks for another."""

    name = "one at a time"
    alone = True


BASELINES = (LeastRecentlyUsed, FirstInFirstOut, OneAtATime)


def _refusal(request_id: str, kind: ef.RefusalKind) -> ef.Reject:
    return ef.Reject(request_id, ef.Refusal(kind, kind.value))
