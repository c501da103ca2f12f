"""A shell for the core without processes: a virtual clock, seeded chance, and every fault a worker can have.

It keeps the shell's contract (exactly one WorkerExited for each Launch) and nothing else: loads take long or
fail or hang, workers crash or stall, memory comes back late or never, clients leave, files change.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.audit import Audit
from swapd.core.devices import SETTLE_S
from swapd.core.ledger import Ledger
from swapd.core.lifecycle import SleeperState, WorkerState
from swapd.core.pages import Pages, pages_of
from swapd.core.scheduler import step
from swapd.core.spec import RAM, DeviceSpec, LayerCosts, ModelSpec, Placement
from swapd.simulate.shell import SAMPLE_S, Process, Shell

MIB = 1024 * 1024
SLEEP_TIMEOUT_S = 60.0
"""How long a program may take to fall asleep."""
SPARE = "spare"
"""The kind of spare that models here can be made of."""


@dataclass
class Faults:
    """Chances of what goes wrong, each per load or per request."""

    load_fails: float = 0.08
    load_hangs: float = 0.04
    load_runs_out: float = 0.05
    """Of memory, on a device that it names or not."""
    cpu_fault: float = 0.02
    invalid_model: float = 0.01
    crash: float = 0.03
    stall: float = 0.02
    memory_is_late: float = 0.1
    """Back only after the ledger has given up waiting for it, or about then."""
    memory_never_returns: float = 0.1
    sample_fails: float = 0.05
    spare_dies: float = 0.3
    sleep_fails: float = 0.15
    sleep_hangs: float = 0.05
    sleeper_dies: float = 0.1
    wake_fails: float = 0.15
    wake_hangs: float = 0.05


CALM = Faults(**{name.name: 0.0 for name in fields(Faults)})


class Simulation(Shell):
    """Drives `step` from a heap of future happenings until nothing is left to happen."""

    def __init__(self, rng: random.Random, devices: list[DeviceSpec], models: list[ModelSpec], faults: Faults):
        super().__init__(self.decide, devices)
        self.rng = rng
        self.faults = faults
        self.ledger = Ledger()
        self.audit = Audit(self.ledger)
        #: Numbers of the spares that run, by kind.
        self.spares: dict[str, int] = {}
        #: What sleepers keep, by the worker that each was.
        self.sleeping: dict[int, Process] = {}
        #: What other programs hold of each device, and whether the driver tells who holds what.
        self.others: Counter[str] = Counter()
        self.tells_who = rng.random() < 0.5
        #: Workers that hang.
        self.stalled: set[int] = set()
        self.left: Counter[str] = Counter()
        self.outcomes: dict[str, str] = {}
        self.waits_s: dict[str, float] = {}
        self.answers: dict[str, bool] = {}
        self.told: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.wakes = 0
        self.placed: set[str] = set()
        #: What a worker was launched beside: another one of its model, one that maps the same pages.
        self.beside: set[str] = set()
        self.peak: Counter[str] = Counter()
        self.service_s: Callable[[str], float] = lambda _: rng.uniform(0.05, 5.0)
        self.tokens: Callable[[str], int] = lambda _: rng.randrange(1, 500)
        self.load_s: Callable[[str], float] = lambda _: rng.uniform(0.1, 8.0)
        self.on_done: Callable[[str, str], None] = lambda _request_id, _outcome: None
        self.start(devices, models)

    # -- the clock ---------------------------------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[[], None]) -> int:
        return self.clock.at(delay_s, action)

    def run(self, *, until_s: float = float("inf"), max_steps: int = 200_000) -> None:
        """Run what is due until `until_s`, or until nothing is left. Too many steps is a livelock."""
        for _ in range(max_steps):
            if not self.clock.advance(until_s):
                if until_s != float("inf"):
                    self.clock.now_s = max(self.now_s, until_s)
                return
        raise AssertionError(f"still busy after {max_steps} steps at {self.now_s:.1f} s: {self.ledger!r}")

    def drain(self, *, within_s: float) -> None:
        """Run until nobody waits for anything any more, which must be within that time."""
        latest_s = self.now_s + within_s
        while not self.is_at_rest():
            assert self.clock.advance(latest_s), f"still waited for after {within_s:g} s: {self.ledger!r}"

    def is_at_rest(self) -> bool:
        """Whether every request and ask has its answer, every worker is loaded or gone, all memory accounted for."""
        ledger = self.ledger
        asked = any(model.load_asks or model.unload_asks for model in ledger.models.values())
        asked = asked or any(device.pause_asks for device in ledger.devices.values())
        moving = any(worker.state is not WorkerState.READY for worker in ledger.workers.values())
        moving = moving or any(one.state is not SleeperState.ASLEEP for one in ledger.sleepers.values())
        return not (ledger.waiting or ledger.running or ledger.settling or asked or moving)

    # -- the shell ---------------------------------------------------------------------------------------------

    def decide(self, event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        todo = step(self.ledger, event, now_s)
        self.ledger.check()
        self.audit.look()
        for device in self.ledger.devices:
            self.peak[device] = max(self.peak[device], self.ledger.charged_bytes(device))
        return todo

    def stop(self, effect: ef.Stop) -> None:
        delay_s = self.rng.uniform(0.0, effect.grace_s + 0.1)
        chance = self.rng.random() if effect.sleep else 0.0
        if effect.sleep and chance < self.faults.sleep_hangs:
            self.at(SLEEP_TIMEOUT_S, lambda: self.die(effect.worker_id, ev.ExitKind.FAILED))
        elif effect.sleep and chance >= self.faults.sleep_hangs + self.faults.sleep_fails:
            self.at(delay_s, lambda: self.fall_asleep(effect.worker_id))
        else:
            self.at(delay_s, lambda: self.die(effect.worker_id, ev.ExitKind.FAILED))

    def fall_asleep(self, worker_id: int) -> None:
        """What it keeps is in use until it ends or wakes; of the rest RAM is back at once."""
        process = self.processes[worker_id]
        if not process.alive:
            return
        kept = dict(self.ledger.sleepers[worker_id].held_bytes)
        self.end(process)
        for name, size_bytes in kept.items():
            if name in self._late:
                process.device_bytes[name] -= size_bytes
            else:
                self.device_free[name] -= size_bytes
        self.sleeping[worker_id] = Process(process.model_id, kept)
        self.post(ev.WorkerAsleep(worker_id))
        self.give_back_sometime(process)
        if self.rng.random() < self.faults.sleeper_dies:
            self.at(self.rng.uniform(0.0, 60.0), lambda: self.lose_sleeper(worker_id))

    def end_sleeper(self, sleeper_id: int) -> None:
        """One that was told to end; it may be a worker still."""
        self.die(sleeper_id, ev.ExitKind.FAILED)
        self.lose_sleeper(sleeper_id)

    def lose_sleeper(self, sleeper_id: int) -> None:
        kept = self.sleeping.pop(sleeper_id, None)
        if kept is not None:
            self.end(kept)
            self.post(ev.SleeperExited(sleeper_id, f"sleeper {sleeper_id} ended"))
            self.give_back_sometime(kept)

    def wake(self, effect: ef.Launch, process: Process) -> None:
        """Its memory is taken already; what it kept beyond that is in use until it is awake."""
        assert effect.sleeper is not None
        kept = self.sleeping.pop(effect.sleeper).device_bytes
        beside = {name: max(0, size_bytes - process.device_bytes.get(name, 0)) for name, size_bytes in kept.items()}
        for name, size_bytes in kept.items():
            self.device_free[name] += size_bytes - beside[name]
            process.device_bytes[name] = process.device_bytes.get(name, 0) + beside[name]
        self.check_budgets(process)
        self.wakes += 1
        awake_s = self.rng.uniform(0.0, 1.0)
        self.at(0.0, lambda: self.post_if_alive(effect.worker_id, ev.WorkerStarted(effect.worker_id)))
        chance = self.rng.random()
        if chance < self.faults.wake_fails:
            self.at(awake_s, lambda: self.die(effect.worker_id, ev.ExitKind.FAILED))
        elif chance >= self.faults.wake_fails + self.faults.wake_hangs:
            self.at(awake_s, lambda: self.be_awake(effect.worker_id, beside))

    def be_awake(self, worker_id: int, beside: Mapping[str, int]) -> None:
        process = self.processes[worker_id]
        if process.alive:
            for name, size_bytes in beside.items():
                self.device_free[name] += size_bytes
                process.device_bytes[name] -= size_bytes
            self.post(ev.WorkerReady(worker_id))

    def refuse(self, effect: ef.Reject) -> None:
        self.done(effect.request_id, effect.refusal.kind.value)

    def note(self, effect: ef.Effect) -> None:
        match effect:
            case ef.StartSpare():
                assert effect.kind not in self.spares, "two spares of a kind"
                self.spares[effect.kind] = effect.number
                if self.rng.random() < self.faults.spare_dies:
                    self.at(self.rng.uniform(0.0, 60.0), lambda: self.lose_spare(effect.kind, effect.number))
            case ef.StopSleeper(sleeper_id):
                self.at(self.rng.uniform(0.0, 5.0), lambda: self.end_sleeper(sleeper_id))
            case ef.StopSpare():
                del self.spares[effect.kind]
            case ef.Answer():
                assert effect.ask_id not in self.answers, "an ask was answered twice"
                self.answers[effect.ask_id] = effect.refusal is None
            case ef.ReportDeparture():
                self.left[effect.reason] += 1
            case ef.Tell():
                self.told[effect.kind] += 1

    def lose_spare(self, kind: str, number: int) -> None:
        if self.spares.get(kind) == number:
            del self.spares[kind]
            self.post(ev.SpareExited(kind, number, "a spare ended"))

    def sample(self, name: str) -> None:
        free_bytes = max(0, self.device_free[name] - self.others[name])
        alive = {worker_id: one for worker_id, one in self.processes.items() if one.alive}
        alive |= self.sleeping
        held = {worker_id: one.device_bytes.get(name, 0) for worker_id, one in alive.items()}
        sample = ev.MemorySampled(name, free_bytes, held if self.tells_who else None)
        if self.rng.random() >= self.faults.sample_fails:
            self.at(SAMPLE_S, lambda: self.post(sample))

    def take(self, name: str, share: float) -> None:
        """Other programs now hold this share of a device, as far as it is free."""
        wanted = int(self.ledger.devices[name].spec.total_bytes * share)
        self.others[name] = max(0, min(wanted, self.device_free[name]))

    def pages(self, effect: ef.Launch) -> Pages | None:
        return pages_of(self.ledger.workers[effect.worker_id].spec, effect.placement)

    def launch(self, effect: ef.Launch, process: Process) -> None:
        if effect.sleeper is not None:
            self.wake(effect, process)
            return
        if effect.from_spare:
            del self.spares[SPARE]
        self.launches[effect.model_id] += 1
        self.placed.add(kind_of(effect.placement))
        alive = [one for one in self.processes.values() if one.alive and one is not process]
        self.beside |= {"a replica" for one in alive if one.model_id == effect.model_id}
        self.beside |= {"its pages" for one in alive if process.pages is not None and one.pages == process.pages}
        self.check_budgets(process)
        started_s = self.rng.uniform(0.0, 0.1)
        loaded_s = started_s + self.load_s(effect.model_id)
        chance = self.rng.random()
        faults = self.faults
        if chance < faults.load_fails:
            self.at(loaded_s, lambda: self.die(effect.worker_id, ev.ExitKind.FAILED))
            return
        chance -= faults.load_fails
        self.at(started_s, lambda: self.post_if_alive(effect.worker_id, ev.WorkerStarted(effect.worker_id)))
        if chance < faults.load_hangs:
            return
        chance -= faults.load_hangs
        if chance < faults.load_runs_out or self.is_overfull(process):
            device = self.rng.choice([None, *process.device_bytes])
            self.at(loaded_s, lambda: self.die(effect.worker_id, ev.ExitKind.OUT_OF_MEMORY, device))
            return
        chance -= faults.load_runs_out
        if chance < faults.cpu_fault and not effect.portable:
            self.at(loaded_s, lambda: self.die(effect.worker_id, ev.ExitKind.CPU_FAULT))
            return
        chance -= faults.cpu_fault
        if chance < faults.invalid_model:
            self.at(loaded_s, lambda: self.die(effect.worker_id, ev.ExitKind.INVALID_MODEL))
            return
        self.at(loaded_s, lambda: self.post_if_alive(effect.worker_id, ev.WorkerReady(effect.worker_id)))

    def is_overfull(self, process: Process) -> bool:
        return any(self.device_free[name] < self.others[name] for name in process.device_bytes)

    def check_budgets(self, newest: Process) -> None:
        """By the machine's own account, not the ledger's: what lives never takes more than a budget allows."""
        for name in newest.device_bytes:
            alive = [one for one in self.processes.values() if one.alive] + list(self.sleeping.values())
            taken = sum(one.device_bytes.get(name, 0) for one in alive)
            if name == RAM:
                taken += sum(pages.size_bytes for pages in {one.pages for one in alive if one.pages is not None})
            budget = self.ledger.devices[name].spec.budget_bytes
            assert taken <= budget, f"{name}: {taken} bytes taken of a budget of {budget}"

    def die(self, worker_id: int, kind: ev.ExitKind, device: str | None = None) -> None:
        process = self.processes[worker_id]
        if not process.alive:
            return
        for request_id in list(process.running):
            self.done(request_id, "broken")
        self.end(process)
        self.post(ev.WorkerExited(worker_id, kind, f"worker {worker_id} ended", device))
        self.give_back_sometime(process)

    def give_back_sometime(self, process: Process) -> None:
        chance = self.rng.random()
        if chance >= self.faults.memory_never_returns:
            is_late = chance < self.faults.memory_never_returns + self.faults.memory_is_late
            delay_s = self.rng.uniform(SETTLE_S - 2.0, 2 * SETTLE_S) if is_late else self.rng.uniform(0.0, 3.0)
            self.at(delay_s, lambda: self.give_back(process))

    def serve(self, effect: ef.Grant) -> None:
        assert effect.request_id not in self.outcomes, "a grant to a request that is over"
        self.waits_s[effect.request_id] = effect.waited_s
        took_s = self.service_s(effect.request_id)
        chance = self.rng.random()
        if self.ledger.workers[effect.worker_id].spec.elsewhere and chance < self.faults.stall:
            # Nobody kills a server elsewhere: the request alone is given up.
            self.at(took_s, lambda: self.give_up(effect.worker_id, effect.request_id))
            return
        if effect.worker_id in self.stalled or chance < self.faults.stall:
            self.stalled.add(effect.worker_id)
            return
        chance -= self.faults.stall
        if chance < self.faults.crash:
            kind = self.rng.choice([ev.ExitKind.FAILED, ev.ExitKind.OUT_OF_MEMORY])
            self.at(took_s, lambda: self.die(effect.worker_id, kind))
            return
        self.at(took_s / 2, lambda: self.progress(effect.worker_id, effect.request_id))
        self.at(took_s, lambda: self.finish(effect.worker_id, effect.request_id))

    def progress(self, worker_id: int, request_id: str) -> None:
        process = self.processes[worker_id]
        if process.alive and worker_id not in self.stalled:
            self.post(ev.WorkerProgressed(worker_id, request_id))

    def give_up(self, worker_id: int, request_id: str) -> None:
        process = self.processes[worker_id]
        if not process.alive or request_id not in process.running:
            return
        process.running.discard(request_id)
        self.post(ev.RequestFinished(request_id, ok=False))
        self.done(request_id, "given_up")

    def finish(self, worker_id: int, request_id: str) -> None:
        process = self.processes[worker_id]
        if not process.alive or worker_id in self.stalled or request_id not in process.running:
            return
        process.running.discard(request_id)
        client = self.ledger.running[request_id].client if request_id in self.ledger.running else "?"
        self.post(ev.TokensServed(process.model_id, client, self.tokens(request_id), request_id))
        self.post(ev.RequestFinished(request_id, ok=True))
        self.done(request_id, "finished")

    # -- the clients -------------------------------------------------------------------------------------------

    def request(
        self, request_id: str, model_id: str, client: str, priority: int = 0, keep_alive_s: float | None = None
    ) -> None:
        self.post(ev.RequestArrived(request_id, model_id, client, priority, keep_alive_s=keep_alive_s))

    def cancel(self, request_id: str) -> None:
        if request_id in self.outcomes:
            return
        for process in self.processes.values():
            process.running.discard(request_id)
        self.post(ev.RequestCancelled(request_id))
        self.done(request_id, "cancelled")

    def done(self, request_id: str, outcome: str) -> None:
        if request_id not in self.outcomes:
            self.outcomes[request_id] = outcome
            self.at(0.0, lambda: self.on_done(request_id, outcome))


def kind_of(placement: Placement) -> str:
    if not placement.device_bytes:
        return "elsewhere"
    if not placement.devices:
        return "in RAM"
    if placement.left_bytes == 0:
        return "whole on several" if len(placement.devices) > 1 else "whole on a GPU"
    return "experts in RAM" if placement.n_gpu_layers == 12 else "layers in RAM"


def model(
    model_id: str, size_mib: int, *, gpu: bool = False, slots: int = 2, launch_key: str = "1", **policy: object
) -> ModelSpec:
    """A model of four equal layers; on the CPU unless `gpu`."""
    layer = size_mib * MIB // 5
    costs = LayerCosts((layer,) * 4, (0,) * 4, host_bytes=layer // 2, compute_bytes=layer // 2)
    spec = ModelSpec(model_id, launch_key, slots, costs, n_gpu_layers=None if gpu else 0)
    return replace(spec, **policy)  # type: ignore[arg-type]


def elsewhere(model_id: str, *, slots: int = 2, **policy: object) -> ModelSpec:
    """A model that a server elsewhere serves."""
    spec = ModelSpec(model_id, "1", slots, LayerCosts((0,), (0,), host_bytes=0, compute_bytes=0), n_gpu_layers=0)
    return replace(spec, elsewhere=True, **policy)  # type: ignore[arg-type]


def deep_costs(size_mib: int, *, experts: bool) -> LayerCosts:
    """The same size in twelve layers, which can be cut in many places; most of it in experts, if it has some."""
    layer = size_mib * MIB // 14
    return LayerCosts(
        (layer,) * 12,
        (layer // 10,) * 12,
        host_bytes=layer // 3,
        compute_bytes=layer // 4,
        layer_expert_bytes=(*(layer * 4 // 5,) * 11, 0) if experts else (),
        gpu_context_bytes=layer // 5,
        gpu_layer_copy_bytes=layer // 3,
        gpu_expert_copy_bytes=layer // 4 if experts else 0,
    )


def ram(size_mib: int, **fields: object) -> DeviceSpec:
    return gpu(RAM, size_mib, **fields)


def gpu(name: str, size_mib: int, **fields: object) -> DeviceSpec:
    return DeviceSpec(name, size_mib * MIB, size_mib * MIB, **fields)  # type: ignore[arg-type]


def metered(name: str, size_mib: int, *, reserve_mib: int = 0, shares: str | None = None) -> DeviceSpec:
    """A device whose free memory can be read, with a budget of all but a reserve."""
    size_bytes, reserve_bytes = size_mib * MIB, reserve_mib * MIB
    return DeviceSpec(name, size_bytes, size_bytes - reserve_bytes, shares, reserve_bytes, metered=True)
