"""Turns over a while, on a virtual clock: closed loops, popularity, and how much is swapped for it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from support.simulation import CALM, Simulation, model, ram

STOP_S = 5.1
"""The most that a stopped process takes to go, in the simulation."""


def closed_loops(
    clients: Sequence[str], *, service_s: float, load_s: float, think_s: float, requests: int
) -> Simulation:
    """Clients of `a` and `b`, of which one fits, each sending its next request so long after the last was answered."""
    simulation = Simulation(random.Random(1), [ram(1000)], [model("a", 800), model("b", 800)], CALM)
    simulation.service_s, simulation.load_s = lambda _: service_s, lambda _: load_s
    sent: list[str] = []

    def send(client: str) -> None:
        if len(sent) < requests:
            sent.append(client)
            simulation.request(f"{client}/{len(sent)}", client[0], client)

    def again(request_id: str, outcome: str) -> None:
        assert outcome == "finished"
        simulation.at(think_s, lambda: send(request_id.split("/")[0]))

    simulation.on_done = again
    for client in clients:
        send(client)
    simulation.run()
    return simulation


@pytest.mark.parametrize(("clients", "think_s"), [(["a1", "b1"], 0.0), (["a1", "b1"], 0.2), (["a1", "a2", "b1"], 0.1)])
def test_closed_loops_on_two_models_swap_for_a_tenth_of_their_requests_at_most(
    clients: list[str], think_s: float
) -> None:
    simulation = closed_loops(clients, service_s=0.3, load_s=0.5, think_s=think_s, requests=600)
    assert sum(simulation.launches.values()) <= 0.10 * 600
    max_wait_s, drain_s, load_s = 60.0, 0.3, 0.5 + 0.1
    assert max(simulation.waits_s.values()) <= max_wait_s + drain_s + STOP_S + load_s


def test_loops_slower_than_a_reload_are_not_held_apart() -> None:
    """Each client thinks for 3 s and a load takes 2 s: holding a worker for either wins nothing."""
    simulation = closed_loops(["a1", "b1"], service_s=1.0, load_s=2.0, think_s=3.0, requests=200)
    mean_s = sum(simulation.waits_s.values()) / 200
    # The other's request in full, its stop and the load; holding it for a reload besides made this 11.1 s.
    assert mean_s <= 1.0 + 2.0 + STOP_S


def lru_loads(names: Sequence[str], room: int) -> int:
    """Loads of a server that takes requests one after another and drops what was used longest ago."""
    kept: list[str] = []
    loads = 0
    for name in names:
        if name in kept:
            kept.remove(name)
        else:
            loads += 1
            del kept[: len(kept) - room + 1]
        kept.append(name)
    return loads


def popularity(seed: int, per_s: float, *, power: float) -> tuple[Simulation, int]:
    """400 requests for six models, two of which fit, by Zipf's law; and what plain LRU would have loaded."""
    rng = random.Random(seed)
    names = [f"m{number}" for number in range(6)]
    simulation = Simulation(random.Random(seed), [ram(1000)], [model(name, 400) for name in names], CALM)
    simulation.service_s, simulation.load_s = lambda _: rng.expovariate(1.0), lambda _: 2.0
    asked = rng.choices(names, [1 / (rank + 1) ** power for rank in range(6)], k=400)
    at_s = 0.0
    for number, name in enumerate(asked):
        at_s += rng.expovariate(per_s)
        client = f"c{rng.randrange(12)}"
        simulation.at(
            at_s, lambda number=number, name=name, client=client: simulation.request(f"r{number}", name, client)
        )
    simulation.run()
    assert set(simulation.outcomes.values()) == {"finished"}
    return simulation, lru_loads(asked, 2)


@pytest.mark.parametrize(("per_s", "power", "share"), [(0.05, 1.0, 0.97), (0.1, 1.5, 0.95), (1.0, 1.0, 0.6)])
def test_by_popularity_less_is_swapped_than_by_lru_and_nobody_starves(per_s: float, power: float, share: float) -> None:
    loads = by_lru = 0
    for seed in range(4):
        simulation, lru = popularity(seed, per_s, power=power)
        loads += sum(simulation.launches.values())
        by_lru += lru
        assert max(simulation.waits_s.values()) <= 60.0 + 10.0 + STOP_S + 2.1, f"seed {seed}"
    assert loads <= share * by_lru, f"{loads} loads, {by_lru} by LRU"


def hot_beside_chat(replicas: int) -> Simulation:
    """Four loops on a small model of one slot, and somebody who asks another one every half minute, for ten minutes."""
    models = [model("hot", 300, slots=1, replicas=replicas), model("chat", 300)]
    simulation = Simulation(random.Random(1), [ram(1000)], models, CALM)
    simulation.service_s, simulation.load_s = lambda _: 1.0, lambda _: 2.0

    def again(request_id: str, _outcome: str) -> None:
        client, _, number = request_id.partition("/")
        if client != "chat" and simulation.now_s < 600.0:
            simulation.request(f"{client}/{int(number) + 1}", "hot", client)

    simulation.on_done = again
    for client in ("c1", "c2", "c3", "c4"):
        simulation.request(f"{client}/0", "hot", client)
    for number in range(20):
        simulation.at(30.0 * number, lambda number=number: simulation.request(f"chat/{number}", "chat", "chat"))
    simulation.run()
    assert set(simulation.outcomes.values()) == {"finished"}
    return simulation


def test_replicas_answer_more_and_cost_nobody_else_a_load() -> None:
    alone, several = hot_beside_chat(1), hot_beside_chat(3)
    assert several.launches == {"hot": 2, "chat": 1}, "there is room for two, and chat is expected back"
    assert len(several.outcomes) >= 1.9 * len(alone.outcomes)
    waits_s = [wait_s for request_id, wait_s in several.waits_s.items() if request_id.startswith("chat")]
    assert max(waits_s[1:]) == 0.0


def test_who_needs_a_first_worker_waits_for_a_replicas_drain_and_not_for_its_turn() -> None:
    models = [model("hot", 300, slots=1, replicas=3, turn_s=1000.0), model("rare", 300)]
    simulation = Simulation(random.Random(1), [ram(1000)], models, CALM)
    simulation.service_s, simulation.load_s = lambda _: 2.0, lambda _: 1.0
    for number in range(100):
        simulation.at(number * 1.0, lambda number=number: simulation.request(f"h{number}", "hot", f"c{number % 9}"))
    simulation.at(60.0, lambda: simulation.request("rare", "rare", "patient"))
    simulation.run(until_s=59.0)
    assert simulation.launches == {"hot": 3}
    simulation.run()
    assert simulation.waits_s["rare"] <= 2.0 + STOP_S + 1.1
