"""More work than the machine can do, and clients that share an address: swaps stay few."""

from __future__ import annotations

import random
from collections import Counter

from support.simulation import Faults, Simulation, model, ram

CALM = Faults(0, 0, 0, 0, 0, 0, 0)


def test_two_overloaded_models_take_long_turns_instead_of_swapping_after_each_handful() -> None:
    models = [model("a", 800), model("b", 800)]
    simulation = Simulation(random.Random(1), [ram(1000)], models, CALM)
    simulation.service_s, simulation.load_s = lambda _: 1.0, lambda _: 10.0
    for number in range(120):
        simulation.request(f"a{number}", "a", f"alice{number}")
        simulation.request(f"b{number}", "b", f"bob{number}")
    simulation.run()
    assert Counter(simulation.outcomes.values()) == {"finished": 240}
    assert sum(simulation.launches.values()) <= 14


def test_two_programs_behind_one_address_do_not_cause_a_swap_per_request() -> None:
    simulation = Simulation(random.Random(1), [ram(1000)], [model("a", 800), model("b", 800)], CALM)
    simulation.service_s, simulation.load_s = lambda _: 0.3, lambda _: 0.5
    sent = {"a": 0, "b": 0}

    def send(name: str) -> None:
        sent[name] += 1
        simulation.request(f"{name}{sent[name]}", name, "127.0.0.1")

    def again(request_id: str, _: str) -> None:
        if sum(sent.values()) < 1000:
            send(request_id[0])

    simulation.on_done = again
    send("a")
    send("b")
    simulation.run()
    assert sum(simulation.launches.values()) <= 50
    assert min(sent.values()) >= 300, f"one model starved: {sent}"
