"""Models that are passed over, because no room can be made for them now, are those that a try would not help either."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf
from unittest import mock

from support.simulation import CALM, MIB, SPARE, Faults, Simulation, deep_costs, gpu, metered, model, ram
from support.stepper import Stepper

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.ledger import Ledger
from swapd.core.reach import Reach
from swapd.core.records import Model
from swapd.core.scheduler import step
from swapd.core.spec import DeviceSpec, ModelSpec, Placement, SplitMode

SEEDS = int(os.environ.get("SWAPD_REACH_SEEDS", "2"))
"""Random histories. Every step is taken twice, the second time on a deep copy, which takes its time."""

opens_s = Reach.opens_s


def everybody_tried(ledger: Ledger, event: ev.Event, now_s: float) -> list[ef.Effect]:
    def at_once(_reach: Reach, _model: Model, best: Placement | None, _soon: Mapping[str, int]) -> float:
        return inf if best is None else now_s

    with mock.patch.object(Reach, "opens_s", at_once):
        return step(ledger, event, now_s)


def without_timer(effects: Sequence[ef.Effect]) -> list[ef.Effect]:
    return [effect for effect in effects if not isinstance(effect, ef.SetTimer)]


class Trying(Simulation):
    """Takes every step a second time, on a copy, with everybody tried."""

    def __init__(self, rng: random.Random, devices: list[DeviceSpec], models: list[ModelSpec], faults: Faults) -> None:
        self.seen: Counter[str] = Counter()
        super().__init__(rng, devices, models, faults)

    def decide(self, event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        if isinstance(event, ev.TokensServed | ev.WorkerProgressed):
            return super().decide(event, now_s)  # Nobody is tried for these.
        other = deepcopy(self.ledger)

        def noting(reach: Reach, one: Model, best: Placement | None, soon: Mapping[str, int]) -> float:
            at_s = opens_s(reach, one, best, soon)
            what = "tried" if at_s <= now_s else "passed over"
            self.seen[f"{what}, {'on GPUs' if best is not None and best.devices else 'in RAM'}"] += 1
            return at_s

        with mock.patch.object(Reach, "opens_s", noting):
            todo = super().decide(event, now_s)
        assert without_timer(todo) == without_timer(everybody_tried(other, event, now_s)), f"{event}; {self.ledger!r}"
        claims = {one.id: one.claim for one in self.ledger.models.values()}
        assert claims == {one.id: one.claim for one in other.models.values()}
        due_s, other_s = self.ledger.timer_at_s, other.timer_at_s
        if other_s is not None and (due_s is None or other_s < due_s):
            self.seen["a later timer"] += 1
            # At the time that is not waited for there is nothing to do but to look at devices and to wait again.
            missed = without_timer(everybody_tried(other, ev.TimerFired(), other_s))
            missed = [effect for effect in missed if not isinstance(effect, ef.Sample)]
            assert not missed, f"{event}: missed at {other_s}: {missed}; {self.ledger!r}"
        return todo


def random_spec(rng: random.Random, name: str) -> ModelSpec:
    kind = rng.choice(["ram", "dense", "experts", "all", "one", "rows", "plain"])
    size_mib = rng.choice([200, 400, 700, 1200])
    spec = model(
        name,
        size_mib,
        gpu=kind != "ram",
        slots=rng.randint(1, 2),
        replicas=rng.choice([1, 1, 1, 2]),
        pin=rng.random() < 0.05,
        max_wait_s=rng.choice([1.0, 10.0, 60.0]),
        turn_s=rng.choice([0.0, 3.0, 10.0]),
        drain_s=rng.choice([1.0, 10.0]),
        spare=rng.choice([None, SPARE]),
        mapped_files=rng.choice([None, f"{size_mib}/{kind}"]),
    )
    if kind in ("dense", "experts", "all", "one", "rows"):
        spec = replace(spec, costs=deep_costs(size_mib, experts=kind == "experts"))
    wishes = {"all": {"n_gpu_layers": 12}, "one": {"split_mode": SplitMode.NONE}, "rows": {"split_mode": SplitMode.ROW}}
    return replace(spec, **wishes.get(kind, {}))  # type: ignore[arg-type]


def history(seed: int) -> Trying:
    """Fourteen models, room for about four, in bursts; now and then a device is handed over or others take of it."""
    rng = random.Random(seed)
    device = rng.choice([metered, gpu])
    devices = [device("CUDA0", 1000), device("CUDA1", rng.choice([400, 700])), ram(rng.choice([1200, 2500]))]
    specs = [random_spec(rng, f"m{number}") for number in range(14)]
    simulation = Trying(rng, devices[seed % 2 :], specs, rng.choice([CALM, Faults()]))
    simulation.service_s = lambda _: rng.uniform(0.05, 3.0)
    simulation.load_s = lambda _: rng.uniform(0.1, 2.0)
    simulation.post(ev.SparesChanged({SPARE: 50 * MIB}))
    for number in range(25):
        simulation.run(until_s=simulation.now_s + rng.expovariate(1.0))
        name = rng.choice(devices[seed % 2 :]).name
        match rng.choices(["burst", "others", "pause", "resume", "unload"], [20, 2, 1, 2, 1])[0]:
            case "burst":
                for extra in range(rng.randint(2, 8)):
                    simulation.request(f"r{number}.{extra}", rng.choice(specs).id, f"c{rng.randrange(5)}")
            case "others":
                simulation.take(name, rng.choice([0.0, 0.3, 0.8]))
            case "pause":
                simulation.post(ev.PauseAsked(f"a{number}", name))
            case "resume":
                simulation.post(ev.ResumeAsked(f"a{number}", name))
            case "unload":
                simulation.post(ev.UnloadAsked(f"a{number}", rng.choice(specs).id))
    simulation.run(until_s=simulation.now_s + 20.0)
    return simulation


def test_passing_models_over_changes_nothing_but_the_work() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        print("seed", seed)
        seen += history(seed).seen
    print(seen)
    for kind in ("tried, on GPUs", "tried, in RAM", "passed over, on GPUs", "passed over, in RAM", "a later timer"):
        assert seen[kind] > 5, seen


def test_those_who_wait_for_a_paused_gpu_do_not_hide_one_that_can_be_helped() -> None:
    on_gpu = [model(f"g{number}", 800, gpu=True, n_gpu_layers=5) for number in range(40)]
    stepper = Stepper([gpu("CUDA0", 1000), ram(1000)], *on_gpu, model("r", 500))
    stepper.post(ev.PauseAsked("mine", "CUDA0"))
    for spec in on_gpu:
        stepper.arrive(f"of {spec.id}", spec.id)
    stepper.wait(1.0)
    stepper.arrive("last", "r")
    assert stepper.states() == {"r": ["launching"]}
    stepper.post(ev.ResumeAsked("back", "CUDA0"))
    assert stepper.states() == {"r": ["launching"], "g0": ["launching"]}


def test_who_is_passed_over_still_has_its_turn_at_its_bound() -> None:
    specs = [model(f"m{number}", 800, max_wait_s=30.0, turn_s=3600.0, slots=1) for number in range(20)]
    stepper = Stepper([ram(1000)], *specs)
    stepper.serve("long", "m0")
    for spec in specs[1:]:
        stepper.arrive(f"of {spec.id}", spec.id)
    stepper.wait(29.9)
    assert stepper.states() == {"m0": ["ready"]}
    stepper.wait(0.2)
    assert stepper.states() == {"m0": ["draining"]}
    stepper.finish("long")
    stepper.exit("m0")
    assert stepper.states() == {"m1": ["launching"]}
