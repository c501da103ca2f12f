"""What the scheduler promises about waiting and swapping, over many seeded histories in virtual time.

A tenth of the seeds run in CI; a release is worth SWAPD_PROMISE_SEEDS=10000.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import pytest
from support.simulation import CALM, Simulation, gpu, model, ram

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.spec import DeviceSpec, ModelSpec

SEEDS = int(os.environ.get("SWAPD_PROMISE_SEEDS", "1000"))
CHUNKS = 10

STOP_S = 0.1
"""From the word to leave to the end of a process."""
START_S = 0.1
"""The most that the support's machine takes to start a process before it loads."""
RETURN_S = 3.3
"""The most that it takes until a GPU's memory is back, and the time until that is seen."""
SLACK_S = 0.01


class PromptlyStopping(Simulation):
    """Without faults, and with processes that leave when they are told to."""

    def __init__(self, seed: int, devices: list[DeviceSpec], models: list[ModelSpec]) -> None:
        super().__init__(random.Random(seed), devices, models, CALM)

    def stop(self, effect: ef.Stop) -> None:
        self.at(STOP_S, partial(self.die, effect.worker_id, ev.ExitKind.FAILED))


class Crowd:
    """Clients that ask one model again and again, each as soon as it is answered, or after it has thought."""

    def __init__(self, simulation: Simulation, think_s: Callable[[], float] = lambda: 0.0, most: int = 100_000) -> None:
        self.simulation = simulation
        self.think_s = think_s
        self.most = most
        self.sent = 0
        self.models: dict[str, str] = {}
        self.pace: Callable[[str, str], None] = lambda _client, _model: None
        simulation.on_done = self._done

    def send(self, client: str, model_id: str) -> None:
        if self.sent < self.most:
            self.sent += 1
            request_id = f"{client}.{self.sent}"
            self.models[request_id] = model_id
            self.simulation.request(request_id, model_id, client)

    def _done(self, request_id: str, outcome: str) -> None:
        assert outcome in ("finished", "queue_full"), f"{request_id} was {outcome}"
        client, _, _ = request_id.partition(".")
        if request_id in self.models:
            self.simulation.at(self.think_s(), partial(self.send, client, self.models[request_id]))


def one_for_b(seed: int) -> tuple[float, float]:
    """How long one request for B waited beside continuous traffic on A, and the promise."""
    rng = random.Random(seed)
    on_gpu, slots = rng.random() < 0.3, rng.randint(1, 3)
    longest_s, load_s, max_wait_s = rng.uniform(0.2, 2.0), rng.uniform(0.1, 3.0), rng.choice([0.5, 1.0, 3.0])
    devices = [gpu("CUDA0", 1000), ram(4000)] if on_gpu else [ram(1000)]
    models = [
        model(
            "a", 800, gpu=on_gpu, slots=slots, turn_s=rng.choice([0.0, 1.0, 10.0]), priority=rng.choice([0, 0, 1, 9])
        ),
        model("b", 800, gpu=on_gpu, max_wait_s=max_wait_s),
    ]
    simulation = PromptlyStopping(seed, devices, models)
    simulation.service_s = lambda _: rng.uniform(longest_s / 4, longest_s)
    simulation.load_s = lambda _: load_s
    crowd = Crowd(simulation, think_s=partial(rng.uniform, 0.0, rng.choice([0.0, 0.0, 0.1, 1.0])))
    for number in range(slots + rng.randint(0, 4)):
        simulation.at(rng.uniform(0.0, 1.0), partial(crowd.send, f"client{number}", "a"))
    # Before A's load, during it, or in the midst of its traffic.
    asked_s = rng.uniform(0.0, START_S + load_s + 4.0)
    simulation.at(asked_s, lambda: simulation.request("b", "b", "patient"))
    # A load that is under way is not interrupted, and serves those who caused it.
    under_way_s = START_S + load_s if asked_s <= 1.0 + START_S + load_s else 0.0
    drain_s = longest_s + STOP_S + (RETURN_S if on_gpu else 0.0)
    promise_s = max(max_wait_s, under_way_s) + drain_s + START_S + load_s
    simulation.run(until_s=asked_s + promise_s + 0.1)
    return simulation.waits_s.get("b", float("inf")), promise_s


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_one_request_beside_continuous_traffic_is_served_within_the_bound(chunk: int) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        waited_s, promise_s = one_for_b(seed)
        assert waited_s <= promise_s + SLACK_S, f"seed {seed}: waited {waited_s:.2f} s, promised {promise_s:.2f} s"


@pytest.mark.parametrize("seed", range(10))
def test_two_clients_that_alternate_in_a_closed_loop_rarely_swap(seed: int) -> None:
    rng = random.Random(seed)
    longest_s, load_s, think_s = rng.uniform(0.1, 0.5), rng.uniform(0.5, 5.0), rng.choice([0.0, 0.0, 0.2])
    simulation = PromptlyStopping(seed, [ram(1000)], [model("a", 800), model("b", 800)])
    simulation.service_s = lambda _: rng.uniform(longest_s / 2, longest_s)
    simulation.load_s = lambda _: load_s
    crowd = Crowd(simulation, think_s=lambda: think_s, most=400)
    crowd.send("client-a", "a")
    crowd.send("client-b", "b")
    simulation.run()
    swaps = sum(simulation.launches.values())
    assert swaps <= 0.10 * crowd.sent, f"seed {seed}: {swaps} loads for {crowd.sent} requests"
    worst_s = max(simulation.waits_s.values())
    promise_s = models_bound_s(simulation) + longest_s + STOP_S + START_S + load_s
    assert worst_s <= promise_s, f"seed {seed}: {worst_s:.1f} s waited, {promise_s:.1f} s promised"


def models_bound_s(simulation: Simulation) -> float:
    return max(one.spec.max_wait_s for one in simulation.ledger.models.values())


@pytest.mark.parametrize("seed", range(20))
def test_one_client_that_alternates_by_itself_is_swapped_at_once(seed: int) -> None:
    rng = random.Random(seed)
    longest_s, load_s, think_s = rng.uniform(0.05, 3.0), rng.uniform(0.1, 5.0), rng.choice([0.0, 0.5, 20.0])
    simulation = PromptlyStopping(seed, [ram(1000)], [model("a", 800), model("b", 800)])
    simulation.service_s = lambda _: rng.uniform(longest_s / 2, longest_s)
    simulation.load_s = lambda _: load_s
    names = ["a", "b"] * 15

    def again(request_id: str, outcome: str) -> None:
        assert outcome == "finished"
        number = int(request_id) + 1
        if number < len(names):
            simulation.at(think_s, lambda: simulation.request(str(number), names[number], "alice"))

    simulation.on_done = again
    simulation.request("0", names[0], "alice")
    simulation.run()
    assert len(simulation.waits_s) == len(names)
    # Stopping the one and loading the other, and nothing else.
    assert max(simulation.waits_s.values()) <= STOP_S + START_S + load_s + SLACK_S, f"seed {seed}"
