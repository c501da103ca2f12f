"""A step that looks at some models only leaves nothing undone that looking at everything would do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from unittest import mock

from support.simulation import CALM, Faults, Simulation, gpu, metered, model, ram

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core import planner
from swapd.core.ledger import Ledger
from swapd.core.planner import plan
from swapd.core.scope import LOOK_AGAIN_S
from swapd.core.spec import DeviceSpec, ModelSpec

OF_ONE_MODEL = (
    ev.RequestArrived,
    ev.RequestFinished,
    ev.RequestCancelled,
    ev.TokensServed,
    ev.WorkerProgressed,
    ev.MemorySampled,
)
DEMAND_SHRANK = (ev.RequestFinished, ev.RequestCancelled)
LATER = (ef.SetTimer, ef.Sample)
"""What a plan over everything may still do: it knows the timer's time better."""


def left_undone(ledger: Ledger, now_s: float) -> list[ef.Effect]:
    """What looking at everything would do now. The ledger stays as it is."""
    effects: list[ef.Effect] = []
    plan(deepcopy(ledger), None, now_s, effects)
    return [effect for effect in effects if not isinstance(effect, LATER)]


class Doubting(Simulation):
    """After each step that looked at some models only, looks at everything, and notes what that would have done."""

    def __init__(self, rng: random.Random, devices: list[DeviceSpec], models: list[ModelSpec], faults: Faults) -> None:
        self.looked: Counter[str] = Counter()
        self.sooner: Counter[str] = Counter()
        self.samples = 0
        super().__init__(rng, devices, models, faults)

    def decide(self, event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        # Samples are most of what happens, and looking at everything on copies takes its time.
        self.samples += isinstance(event, ev.MemorySampled)
        is_due = not isinstance(event, ev.MemorySampled) or self.samples % 10 == 0
        before = deepcopy(self.ledger) if isinstance(event, OF_ONE_MODEL) and is_due else None
        with mock.patch.object(planner, "_plan_all", wraps=planner._plan_all) as looked_at_all:
            todo = super().decide(event, now_s)
        if before is not None and not looked_at_all.called:
            self.looked[type(event).__name__] += 1
            self.doubt(event, before, now_s)
        return todo

    def doubt(self, event: ev.Event, before: Ledger, now_s: float) -> None:
        ledger = self.ledger
        undone = left_undone(ledger, now_s)
        if not undone:
            return
        by_time = bool(left_undone(before, now_s))
        self.sooner["by time" if by_time else type(event).__name__] += 1
        assert ledger.timer_at_s is not None
        assert ledger.timer_at_s <= now_s + LOOK_AGAIN_S, f"{event} left undone for long: {undone}; {ledger!r}"
        # By themselves requests only make it worth while to ask a worker to leave, and only those that go.
        others = [effect for effect in undone if not isinstance(effect, ef.Tell | ef.Stop | ef.ReadAhead)]
        assert by_time or (isinstance(event, DEMAND_SHRANK) and not others), (
            f"{event} left undone: {undone}; {ledger!r}"
        )


def crowded(seed: int) -> Doubting:
    """Six clients in closed loops and passers-by at eight models, of which two or three fit."""
    rng = random.Random(seed)
    device = rng.choice([metered, gpu])
    specs = [
        model(
            f"m{number}",
            rng.choice([200, 500, 900]),
            gpu=True,
            slots=rng.randint(1, 3),
            replicas=rng.choice([1, 1, 1, 2]),
            pin=number == 0 and rng.random() < 0.3,
            priority=rng.choice([0, 0, 1]),
            max_waiting=rng.choice([4, 50]),
            max_wait_s=rng.choice([3.0, 20.0]),
            turn_s=rng.choice([0.0, 5.0]),
            idle_unload_s=rng.choice([None, 4.0]),
            queue_timeout_s=rng.choice([15.0, 600.0]),
        )
        for number in range(8)
    ]
    faults = rng.choice([CALM, Faults()])
    simulation = Doubting(rng, [device("CUDA0", 1000), device("CUDA1", 600), ram(4000)], specs, faults)
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        request_id = f"r{sent}"
        simulation.request(request_id, rng.choice(specs[: rng.randint(1, 8)]).id, f"c{rng.randrange(6)}")
        if rng.random() < 0.15:
            simulation.at(rng.uniform(0.0, 8.0), lambda: simulation.cancel(request_id))

    simulation.on_done = lambda _request_id, _outcome: send() if sent < 120 else None
    for _ in range(24):
        simulation.at(rng.uniform(0.0, 10.0), send)
    simulation.run(until_s=240.0)
    return simulation


def test_a_step_that_looks_at_one_model_leaves_nothing_undone_but_what_time_or_less_demand_allow() -> None:
    looked: Counter[str] = Counter()
    sooner: Counter[str] = Counter()
    for seed in range(6):
        print("seed", seed)
        simulation = crowded(seed)
        looked += simulation.looked
        sooner += simulation.sooner
    print(looked, sooner)
    assert all(looked[kind.__name__] > 20 for kind in OF_ONE_MODEL), looked
    assert sooner.total() < looked.total() / 20
