"""Random histories: whatever happens, no invariant breaks, nothing starves, nothing is lost."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest
from support.simulation import CALM, MIB, SPARE, Faults, Simulation, deep_costs, elsewhere, gpu, metered, model, ram

from swapd.core import events as ev
from swapd.core.devices import GUARD_EVERY_S
from swapd.core.spec import RAM, DeviceSpec, LayerCosts, ModelSpec, SplitMode

STEPS = int(os.environ.get("SWAPD_SIMULATION_STEPS", "100000"))
"""Of the scheduler, over all random histories. CI has time for this many; a release is worth a million."""
CHUNKS = 20
ModelsFor = Callable[[random.Random, int], list[ModelSpec]]
"""Models for a machine with so many GPUs."""


def random_models(rng: random.Random, gpus: int) -> list[ModelSpec]:
    return [random_model(rng, f"m{number}", gpus) for number in range(rng.randint(1, 5))]


def random_model(rng: random.Random, name: str, gpus: int) -> ModelSpec:
    size_mib, on_gpu, slots = rng.choice([200, 400, 700, 1500]), gpus > 0 and rng.random() < 0.7, rng.randint(1, 3)
    portable = rng.random() < 0.5
    kind = rng.choice(["plain", "dense", "experts", "all", "some", "by hand", "one", "rows"]) if on_gpu else "plain"
    spec = model(
        name,
        size_mib,
        gpu=on_gpu,
        slots=slots,
        launch_key=f"{size_mib}/{on_gpu}/{slots}/{portable}/{kind}",
        has_portable_mode=portable,
        spare=rng.choice([None, SPARE]),
        pin=rng.random() < 0.08,
        replicas=rng.choice([1, 1, 2, 3]),
        priority=rng.choice([0, 0, 0, 1, 2]),
        max_waiting=rng.choice([3, 50]),
        max_waiting_tokens=rng.choice([1000, 1_000_000]),
        max_per_client=rng.choice([None, None, 3]),
        queue_timeout_s=rng.choice([20.0, 600.0]),
        max_wait_s=rng.choice([1.0, 10.0, 60.0]),
        turn_s=rng.choice([0.0, 3.0, 10.0]),
        idle_unload_s=rng.choice([None, None, 2.0, 30.0]),
        load_timeout_s=15.0,
        stall_timeout_s=20.0,
        drain_s=rng.choice([1.0, 10.0]),
        # Of two models of one size and kind, and so perhaps of one file, each layout's pages are the same.
        mapped_files=rng.choice([None, f"{size_mib}/{kind}"]),
    )
    if kind == "plain" and rng.random() < 0.2:
        return placing_itself(spec, rng.choice([None, size_mib * MIB]), rng.choice([None, 100 * MIB]), gpus)
    if kind != "plain":
        spec = replace(spec, costs=deep_costs(size_mib, experts=kind == "experts"))
    wishes: dict[str, dict[str, object]] = {
        "all": {"n_gpu_layers": 12},
        "some": {"n_gpu_layers": 5},
        "by hand": {"tensor_split": (2.0, 1.0)[:gpus]},
        "one": {"split_mode": SplitMode.NONE},
        "rows": {"split_mode": SplitMode.ROW},
    }
    spec = replace(spec, **wishes.get(kind, {}))  # type: ignore[arg-type]
    # Of workers that do not report; a server elsewhere is one, too. By chance that leaves the rest as it is.
    luck = random.Random(repr(spec))
    spec = replace(spec, first_token_timeout_s=luck.choice([None, None, None, 30.0]))
    if luck.random() >= 0.06:
        return spec
    cloud = elsewhere(name, slots=slots)
    return replace(
        spec,
        launch_key=f"elsewhere/{slots}",
        costs=cloud.costs,
        elsewhere=True,
        mapped_files=None,
        n_gpu_layers=0,
        tensor_split=(),
        spare=None,
    )


def placing_itself(spec: ModelSpec, gpu_bytes: int | None, ram_bytes: int | None, gpus: int) -> ModelSpec:
    """The model run by a program of which it is known what it takes, or not, on the first GPU if there is one."""
    names = ("CUDA0",) if gpus else ()
    fixed = {**dict.fromkeys(names, gpu_bytes), RAM: ram_bytes}
    costs = LayerCosts((0,), (0,), host_bytes=sum(size or 0 for size in fixed.values()), compute_bytes=0)
    return replace(
        spec,
        launch_key=f"{spec.launch_key}/{gpu_bytes}/{ram_bytes}",
        fixed=fixed,
        costs=costs,
        devices=names,
        n_gpu_layers=None if names else 0,
        mapped_files=None,
        spare=None,
    )


def sleepy_models(rng: random.Random, gpus: int) -> list[ModelSpec]:
    """Most of them run by programs that can sleep, with much or little, or more in RAM than awake."""
    models = []
    for number in range(rng.randint(2, 5)):
        spec = random_model(rng, f"m{number}", gpus)
        if rng.random() < 0.8:
            size_mib = rng.choice([200, 280, 500, 700])
            gpu_bytes = size_mib * MIB if gpus else 0
            spec = placing_itself(spec, gpu_bytes, rng.choice([50, 200, 400]) * MIB, gpus)
            kept = {RAM: rng.choice([0, 100, 300, 700]) * MIB, **({"CUDA0": rng.choice([0, 30]) * MIB} if gpus else {})}
            policy = {"replicas": 1, "elsewhere": False, "verdict": None, "tensor_split": ()}
            key = f"sleeps/{spec.launch_key}/{kept}"
            spec = replace(spec, asleep_bytes=kept, launch_key=key, **policy)  # type: ignore[arg-type]
        models.append(spec)
    return models


def random_devices(rng: random.Random) -> list[DeviceSpec]:
    """Up to four GPUs of different sizes, or one that is integrated, beside RAM; with meters or without."""
    reserve_mib = rng.choice([0, 50, 100])

    def device(name: str, size_mib: int, shares: str | None = None) -> DeviceSpec:
        if has_meters:
            return metered(name, size_mib, reserve_mib=reserve_mib, shares=shares)
        return gpu(name, size_mib, shares=shares)

    has_meters = rng.random() < 0.5
    ram_mib = rng.choice([1000, 1600, 3000])
    if rng.random() < 0.15:
        return [device("Vulkan0", ram_mib * 3 // 4, shares=RAM), device(RAM, ram_mib)]
    gpus = [device(f"CUDA{number}", rng.choice([300, 600, 1000, 1600])) for number in range(rng.randint(0, 4))]
    return [*gpus, device(RAM, ram_mib)]


def one_history(seed: int, models_for: ModelsFor = random_models) -> Simulation:
    """Forty to eighty random actions over a few virtual minutes, then peace until nobody waits any more."""
    rng = random.Random(seed)
    devices = random_devices(rng)
    models = models_for(rng, len(devices) - 1)
    simulation = Simulation(rng, devices, models, Faults())
    is_crowded = rng.random() < 0.3
    if is_crowded:
        # Nothing but requests, and short ones: turns end and replicas come and go, which a crash would only disturb.
        simulation.faults = CALM
        simulation.service_s = lambda _: rng.uniform(0.05, 0.5)
    if rng.random() < 0.7:
        simulation.post(ev.SparesChanged({SPARE: 50 * MIB}))
    issued: list[str] = []
    asks: list[str] = []
    for number in range(rng.randint(40, 80)):
        simulation.run(until_s=simulation.now_s + rng.expovariate(2.0))
        action = "burst" if is_crowded else rng.choices(*ACTIONS)[0]
        act(action, simulation, rng, number, devices, models, issued, asks, models_for)
    simulation.faults = CALM
    simulation.others.clear()
    for spec in devices:
        asks.append(f"back-{spec.name}")
        simulation.post(ev.ResumeAsked(asks[-1], spec.name))
    if rng.random() < 0.3:
        simulation.post(ev.ShutdownAsked())
    simulation.drain(within_s=3_000.0)
    # Now that all are idle, others take what is left: whoever is in their way leaves, and that ends, too.
    simulation.take(rng.choice(devices).name, 1.0)
    simulation.run(until_s=simulation.now_s + 2 * GUARD_EVERY_S)
    simulation.drain(within_s=3_000.0)
    lost = [request_id for request_id in issued if request_id not in simulation.outcomes]
    assert not lost, f"never ended: {lost}; {simulation.ledger!r}"
    unanswered = [ask for ask in asks if ask not in simulation.answers]
    assert not unanswered, f"never answered: {unanswered}; {simulation.ledger!r}"
    assert not simulation.ledger.settling
    return simulation


ACTIONS = (
    [
        *("arrive", "burst", "cancel", "crash", "load", "unload", "reload", "budget", "others"),
        *("pause", "resume", "keep", "find"),
    ],
    [50, 12, 10, 3, 3, 3, 4, 1, 4, 1, 2, 4, 2],
)
"""What happens, and how often."""


def act(
    action: str,
    simulation: Simulation,
    rng: random.Random,
    number: int,
    devices: list[DeviceSpec],
    models: list[ModelSpec],
    issued: list[str],
    asks: list[str],
    models_for: ModelsFor,
) -> None:
    name = rng.choice(models).id if models else "m0"
    match action:
        case "arrive":
            issued.append(f"r{number}")
            simulation.request(f"r{number}", name, f"c{rng.randrange(4)}", rng.choice([0, 0, 1]))
        case "burst":
            for extra in range(rng.randint(2, 8)):
                issued.append(f"r{number}.{extra}")
                simulation.request(issued[-1], name, f"c{rng.randrange(4)}")
        case "cancel" if issued:
            simulation.cancel(rng.choice(issued))
        case "crash" if simulation.processes:
            simulation.die(rng.choice(list(simulation.processes)), ev.ExitKind.FAILED)
        case "load":
            asks.append(f"a{number}")
            simulation.post(ev.LoadAsked(f"a{number}", name))
        case "unload":
            asks.append(f"a{number}")
            simulation.post(ev.UnloadAsked(f"a{number}", name))
        case "reload":
            models[:] = models_for(rng, len(devices) - 1)
            simulation.post(ev.ModelsChanged(tuple(models)))
        case "budget":
            devices[:] = [replace(spec, budget_bytes=int(spec.total_bytes * rng.uniform(0.5, 1.0))) for spec in devices]
            simulation.post(ev.DevicesChanged(tuple(devices)))
        case "others":
            simulation.take(rng.choice(devices).name, rng.choice([0.0, 0.1, 0.3, 0.8, 1.0]))
        case "pause":
            asks.append(f"a{number}")
            simulation.post(ev.PauseAsked(asks[-1], rng.choice(devices).name))
        case "resume":
            asks.append(f"a{number}")
            simulation.post(ev.ResumeAsked(asks[-1], rng.choice(devices).name))
        case "find":
            # A GPU that is lost comes back sooner or later.
            present = frozenset(spec.name for spec in devices if rng.random() < 0.7)
            simulation.post(ev.DevicesFound(present, rng.choice([0.0, 3600.0])))
        case "keep":
            keep_alive_s = rng.choice([0.0, 1.0, 20.0, inf])
            if rng.random() < 0.5:
                simulation.post(ev.KeepAliveAsked(name, keep_alive_s))
            else:
                issued.append(f"r{number}")
                simulation.request(issued[-1], name, f"c{rng.randrange(4)}", keep_alive_s=keep_alive_s)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_histories_break_no_invariant_and_lose_no_request(chunk: int) -> None:
    steps, seed = 0, chunk
    while steps < STEPS / CHUNKS:
        try:
            steps += one_history(seed).steps
        except Exception as error:
            raise AssertionError(f"seed {seed} broke it: {error}") from error
        seed += CHUNKS


def one_night(seed: int) -> Simulation:
    """Programs that can sleep, of which one or two are awake at a time: swaps all the time, and what may go wrong."""
    rng = random.Random(seed)
    kind = rng.choice([metered, gpu])
    devices = [kind("CUDA0", rng.choice([1000, 1600])), kind(RAM, rng.choice([800, 2000, 4000]))]
    models = sleepy_models(rng, 1)
    faults = {"crash": 0.01, "memory_is_late": 0.1, "sleeper_dies": 0.2, "wake_fails": 0.15, "wake_hangs": 0.05}
    simulation = Simulation(rng, devices, models, replace(CALM, sleep_fails=0.1, sleep_hangs=0.05, **faults))
    issued: list[str] = []
    asks: list[str] = []
    actions = ["arrive", "cancel", "unload", "reload", "budget", "others", "pause", "resume", "keep"]
    for number in range(100):
        simulation.run(until_s=simulation.now_s + rng.expovariate(0.3))
        action = rng.choices(actions, [80, 5, 2, 1, 1, 3, 1, 3, 2])[0]
        act(action, simulation, rng, number, devices, models, issued, asks, sleepy_models)
    simulation.others.clear()
    for spec in devices:
        simulation.post(ev.ResumeAsked(f"back-{spec.name}", spec.name))
    if rng.random() < 0.5:
        simulation.post(ev.ShutdownAsked())
    simulation.drain(within_s=3_000.0)
    assert set(issued) <= simulation.outcomes.keys(), f"requests never ended: {simulation.ledger!r}"
    assert set(asks) <= simulation.answers.keys(), f"asks never answered: {simulation.ledger!r}"
    assert not (simulation.ledger.closing and simulation.sleeping), "somebody sleeps on"
    return simulation


def test_random_nights_of_models_that_sleep_break_no_invariant_and_lose_no_request() -> None:
    told: Counter[str] = Counter()
    for seed in range(STEPS // 4_000):
        try:
            told += one_night(seed).told
        except Exception as error:
            raise AssertionError(f"seed {seed} broke it: {error}") from error
    kinds = ("asleep", "waking", "wake_failed", "sleeper_ends", "sleeper_lost")
    print({kind: told[kind] for kind in kinds})
    assert all(told[kind] for kind in kinds)


def test_the_same_seed_is_the_same_history() -> None:
    first, second = one_history(4711), one_history(4711)
    assert first.outcomes == second.outcomes
    assert first.told == second.told
    assert first.now_s == second.now_s


@pytest.mark.timeout(400)
def test_the_histories_reach_every_kind_of_end() -> None:
    """A simulation that never saw an eviction or a crash would prove nothing."""
    told: set[str] = set()
    outcomes: set[str] = set()
    placed: set[str] = set()
    left: set[str] = set()
    beside: set[str] = set()
    for seed in range(260):
        simulation = one_history(seed)
        told |= set(simulation.told)
        outcomes |= set(simulation.outcomes.values())
        placed |= simulation.placed
        left |= set(simulation.left)
        beside |= simulation.beside
    assert {"evicting", "loaded", "unloading", "load_failed", "worker_lost", "memory_late", "reprieved"} <= told
    assert {"portable_retry", "memory_retry", "drain_cut", "paused", "resumed"} <= told
    assert {"machine_slept", "device_lost", "device_found"} <= told
    assert {"machine_slept", "device_lost"} <= left
    assert {"pressure", "paused", "budget", "idle", "turn_over", "max_wait", "surplus"} <= left
    assert beside == {"a replica", "its pages"}
    assert {"finished", "broken", "cancelled", "load_failed", "does_not_fit", "queue_timeout", "given_up"} <= outcomes
    assert {"queue_full", "client_limit", "load_timeout", "invalid_model", "unknown_model", "shutting_down"} <= outcomes
    assert placed == {"in RAM", "whole on a GPU", "whole on several", "experts in RAM", "layers in RAM", "elsewhere"}


def test_two_clients_in_a_closed_loop_on_two_models_rarely_swap() -> None:
    simulation = Simulation(random.Random(1), [ram(1000)], [model("a", 800), model("b", 800)], CALM)
    simulation.service_s = lambda _: 0.3
    simulation.load_s = lambda _: 0.5
    sent = {"a": 0, "b": 0}
    arrivals: dict[str, float] = {}

    def send(name: str) -> None:
        sent[name] += 1
        request_id = f"{name}{sent[name]}"
        arrivals[request_id] = simulation.now_s
        simulation.request(request_id, name, f"client-{name}")

    def again(request_id: str, outcome: str) -> None:
        assert outcome == "finished"
        if sum(sent.values()) < 1000:
            send(request_id[0])

    simulation.on_done = again
    send("a")
    send("b")
    simulation.run()
    swaps = sum(simulation.launches.values())
    assert swaps <= 0.10 * sum(sent.values()), f"{swaps} loads for {sum(sent.values())} requests"
    # max_wait 60 s + drain of one request + one load; a turn of 10 s makes it much less in practice.
    assert max(simulation.waits_s.values()) <= 60.0 + 0.3 + 0.5 + 5.1
    assert min(sent.values()) >= 300, f"one model starved: {sent}"


def test_one_client_that_alternates_by_itself_is_swapped_at_once() -> None:
    simulation = Simulation(random.Random(1), [ram(1000)], [model("a", 800), model("b", 800)], CALM)
    simulation.service_s = lambda _: 0.3
    simulation.load_s = lambda _: 0.5
    names = ["a", "b"] * 10

    def again(request_id: str, outcome: str) -> None:
        assert outcome == "finished"
        number = int(request_id) + 1
        if number < len(names):
            simulation.request(str(number), names[number], "alice")

    simulation.on_done = again
    simulation.request("0", names[0], "alice")
    simulation.run()
    assert len(simulation.outcomes) == len(names)
    # Stopping the old one (at most the grace) and loading the new one, and nothing else.
    assert max(simulation.waits_s.values()) <= 5.1 + 0.1 + 0.5


def test_a_steady_stream_for_one_model_cannot_starve_another() -> None:
    bound_s = 20.0
    models = [model("busy", 800), model("rare", 800, max_wait_s=bound_s)]
    simulation = Simulation(random.Random(1), [ram(1000)], models, CALM)
    simulation.service_s = lambda _: 2.0
    simulation.load_s = lambda _: 1.0
    for number in range(600):
        simulation.at(number * 0.5, lambda number=number: simulation.request(f"b{number}", "busy", f"c{number % 9}"))
    simulation.at(60.0, lambda: simulation.request("rare", "rare", "patient"))
    simulation.run(until_s=300.0)
    assert simulation.outcomes["rare"] == "finished"
    drain_s, stop_s, load_s = 2.0, 5.1, 1.1
    assert simulation.waits_s["rare"] <= bound_s + drain_s + stop_s + load_s


def test_the_budget_holds_to_the_byte_while_models_swap() -> None:
    models = [model(name, 400) for name in "abcde"]
    simulation = Simulation(random.Random(7), [ram(1000)], models, CALM)
    for number in range(200):
        simulation.at(number * 0.7, lambda number=number: simulation.request(f"r{number}", "abcde"[number % 5], "c"))
    simulation.run()
    assert all(outcome == "finished" for outcome in simulation.outcomes.values())
    assert 800 * MIB <= simulation.peak["RAM"] <= 1000 * MIB
