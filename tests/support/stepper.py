"""Drives `step` by hand: a ledger, a clock that only the test moves, and `check()` after every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from support.simulation import MIB

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import WorkerState
from swapd.core.records import Model, Worker
from swapd.core.scheduler import step
from swapd.core.spec import RAM, DeviceSpec, LayerCosts, ModelSpec

E = TypeVar("E", bound=ef.Effect)


def only(kind: type[E], effects: Iterable[ef.Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def gpu_model(model_id: str, gpu_mib: int, *, host_mib: int = 10, **settings: object) -> ModelSpec:
    """A model of one layer that takes `gpu_mib` of whichever GPU it is put on, to the byte."""
    costs = LayerCosts((gpu_mib * MIB,), (0,), host_bytes=host_mib * MIB, compute_bytes=0)
    return ModelSpec(model_id, "1", settings.pop("slots", 2), costs, **settings)  # type: ignore[arg-type]


class Stepper:
    """The shell's half of the contract, one call at a time. Every call returns the effects of its steps."""

    def __init__(self, devices: Sequence[DeviceSpec], *models: ModelSpec) -> None:
        self.ledger = Ledger()
        self.now_s = 0.0
        self.post(ev.DevicesChanged(tuple(devices)))
        self.started = self.post(ev.ModelsChanged(models))

    def post(self, event: ev.Event) -> list[ef.Effect]:
        effects = step(self.ledger, event, self.now_s)
        self.ledger.check()
        return effects

    def wait(self, seconds: float) -> list[ef.Effect]:
        """Let time pass; timers fire when they are due."""
        effects: list[ef.Effect] = []
        until_s = self.now_s + seconds
        for _ in range(10_000):
            due_s = self.ledger.timer_at_s
            if due_s is None or due_s > until_s:
                self.now_s = until_s
                return effects
            self.now_s = due_s
            effects += self.post(ev.TimerFired())
        raise AssertionError(f"timers fire in a tight loop at {self.now_s} s: {self.ledger!r}")

    def arrive(self, request_id: str, model_id: str, client: str = "alice", priority: int = 0) -> list[ef.Effect]:
        return self.post(ev.RequestArrived(request_id, model_id, client, priority))

    def finish(self, request_id: str, *, ok: bool = True) -> list[ef.Effect]:
        return self.post(ev.RequestFinished(request_id, ok))

    def cancel(self, request_id: str) -> list[ef.Effect]:
        return self.post(ev.RequestCancelled(request_id))

    def ready(self, model_id: str, *, load_s: float = 0.0) -> list[ef.Effect]:
        """The loading worker of the model starts, loads for `load_s`, and is ready."""
        worker = self.worker(model_id, WorkerState.LAUNCHING, WorkerState.LOADING)
        effects: list[ef.Effect] = []
        if worker.state is WorkerState.LAUNCHING:
            effects += self.post(ev.WorkerStarted(worker.id))
        effects += self.wait(load_s) if load_s else []
        return effects + self.post(ev.WorkerReady(worker.id))

    def exit(
        self, model_id: str, kind: ev.ExitKind = ev.ExitKind.FAILED, detail: str = "it broke", *states: WorkerState
    ) -> list[ef.Effect]:
        """The model's only worker, or its only one in these states, ends."""
        return self.post(ev.WorkerExited(self.worker(model_id, *states).id, kind, detail))

    def serve(self, request_id: str, model_id: str, client: str = "alice") -> None:
        """A request comes, loads its model if need be, and is running afterwards."""
        self.arrive(request_id, model_id, client)
        if request_id not in self.ledger.running:
            self.ready(model_id)
        assert request_id in self.ledger.running

    def load(self, model_id: str) -> None:
        """The model is up and idle, without any client having been there."""
        self.post(ev.LoadAsked(f"load-{model_id}", model_id))
        self.ready(model_id)

    def worker(self, model_id: str, *states: WorkerState) -> Worker:
        (found,) = [worker for worker in self.ledger.workers_of(model_id) if not states or worker.state in states]
        return found

    def model(self, model_id: str) -> Model:
        return self.ledger.models[model_id]

    def states(self) -> dict[str, list[str]]:
        """Worker states per model: `{"a": ["draining"], "b": ["launching"]}`."""
        found: dict[str, list[str]] = {}
        for worker in self.ledger.workers.values():
            found.setdefault(worker.model_id, []).append(worker.state.value)
        return found

    def ram_mib(self) -> int:
        return self.ledger.charged_bytes(RAM) // MIB
