"""A trace replayed against one scheduler: a machine without faults, on which everything takes what the trace says.

Owns what the machine is taken to be like. A request takes the same time whatever else runs on its worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.audit import Audit
from swapd.core.ledger import Ledger
from swapd.core.pages import Pages, pages_of
from swapd.core.scheduler import step
from swapd.core.spec import RAM, DeviceSpec, ModelSpec
from swapd.simulate.report import Figures, Tally
from swapd.simulate.shell import Decide, Process, Shell
from swapd.simulate.work import Job

STOP_S = 0.2
"""From the word to leave to the end of a worker's process."""

START_S = 0.05
"""Of a load, until the process is there."""


def core() -> Decide:
    """swapd's own scheduler, its invariants checked after every step as the daemon does."""
    ledger = Ledger()
    audit = Audit(ledger)

    def decide(event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        effects = step(ledger, event, now_s)
        audit.look()
        return effects

    return decide


def replay(
    policy: str,
    decide: Decide,
    devices: Sequence[DeviceSpec],
    models: Sequence[ModelSpec],
    jobs: Sequence[Job],
    load_s: Mapping[str, float],
) -> Figures:
    """Run all jobs, in the order of their arrival, to their ends."""
    machine = _Replay(decide, devices, models, jobs, load_s)
    return machine.tally.figures(policy, len(jobs), machine.run())


class _Replay(Shell):
    def __init__(
        self,
        decide: Decide,
        devices: Sequence[DeviceSpec],
        models: Sequence[ModelSpec],
        jobs: Sequence[Job],
        load_s: Mapping[str, float],
    ) -> None:
        super().__init__(decide, devices)
        self.tally = Tally(devices)
        self._models = {spec.id: spec for spec in models}
        self._load_s = load_s
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._jobs = jobs
        self._arrived = 0
        self.start(devices, models)

    def run(self) -> float:
        """The time at which all had ended. Every request does: by `queue.timeout` at the latest."""
        self._schedule_arrival()
        while self._arrived < len(self._jobs) or self._waiting or self._running:
            if not self.clock.advance():
                raise AssertionError(f"{len(self._waiting)} requests wait and nothing is to happen")
        return self.now_s

    # -- requests ------------------------------------------------------------------------------------------------

    def _schedule_arrival(self) -> None:
        """One at a time: the heap stays small however long the trace is."""
        if self._arrived < len(self._jobs):
            self.clock.at_time(self._jobs[self._arrived].at_s, self._arrive)

    def _arrive(self) -> None:
        job = self._jobs[self._arrived]
        self._arrived += 1
        self._waiting[job.id] = job
        self.post(ev.RequestArrived(job.id, job.model_id, job.client, job.priority))
        self._schedule_arrival()

    def refuse(self, effect: ef.Reject) -> None:
        job = self._waiting.pop(effect.request_id)
        self.tally.refused[effect.refusal.kind.value] += 1
        if effect.refusal.kind is ef.RefusalKind.QUEUE_TIMEOUT:
            self.tally.waits_s.append(self.now_s - job.at_s)

    def serve(self, effect: ef.Grant) -> None:
        job = self._waiting.pop(effect.request_id)
        self._running[job.id] = job
        self.tally.waits_s.append(self.now_s - job.at_s)
        self.clock.at(job.service_s, partial(self._finish, effect.worker_id, job))

    def _finish(self, worker_id: int, job: Job) -> None:
        if self._running.pop(job.id, None) is None:
            return
        self.processes[worker_id].running.discard(job.id)
        self.tally.served += 1
        self.tally.tokens += job.tokens
        if job.tokens:
            self.post(ev.TokensServed(job.model_id, job.client, job.tokens, job.id))
        self.post(ev.RequestFinished(job.id, ok=True))

    # -- workers -------------------------------------------------------------------------------------------------

    def pages(self, effect: ef.Launch) -> Pages | None:
        return pages_of(self._models[effect.model_id], effect.placement)

    def _taken(self, process: Process) -> dict[str, int]:
        """What its coming or going changes of what all take together."""
        taken = dict(process.device_bytes)
        others = (one for one in self.processes.values() if one is not process)
        if process.pages is not None and all(one.pages != process.pages for one in others):
            taken[RAM] += process.pages.size_bytes
        return taken

    def launch(self, effect: ef.Launch, process: Process) -> None:
        load_s = self._load_s[effect.model_id]
        self.tally.loads += 1
        self.tally.loading_s += load_s
        self.tally.hold(self._taken(process), self.now_s)
        start_s = min(START_S, load_s)
        self.clock.at(start_s, partial(self.post_if_alive, effect.worker_id, ev.WorkerStarted(effect.worker_id)))
        self.clock.at(load_s, partial(self.post_if_alive, effect.worker_id, ev.WorkerReady(effect.worker_id)))
        spec = self._models[effect.model_id]
        self._keep_alive(effect.worker_id, min(spec.load_timeout_s, spec.stall_timeout_s) / 2)

    def _keep_alive(self, worker_id: int, every_s: float) -> None:
        """Progress often enough for no worker to count as stuck."""

        def progress() -> None:
            if worker_id in self.processes:
                self.post(ev.WorkerProgressed(worker_id))
                self._keep_alive(worker_id, every_s)

        self.clock.at(every_s, progress)

    def stop(self, effect: ef.Stop) -> None:
        self.clock.at(STOP_S, partial(self._exit, effect.worker_id))

    def _exit(self, worker_id: int) -> None:
        process = self.processes.pop(worker_id)
        self.tally.hold({name: -size_bytes for name, size_bytes in self._taken(process).items()}, self.now_s)
        for request_id in process.running:
            # Only a scheduler that stops busy workers gets here.
            del self._running[request_id]
            self.tally.refused["broken"] += 1
        self.end(process)
        self.give_back(process)
        self.post(ev.WorkerExited(worker_id, ev.ExitKind.FAILED, "it was told to leave"))

    def note(self, effect: ef.Effect) -> None:
        if isinstance(effect, ef.ReportDeparture) and effect.evicted:
            self.tally.evictions += 1
