"""How long one `step` of the scheduler takes, with many models configured and many requests waiting.

    python tests/benchmarks/step.py [--models 1000] [--waiting 10000] [--seconds 5] [--profile]

Two GPUs and RAM hold about ten of the models; requests end and new ones come, workers load and leave, all in virtual
time, while only `step` and the look for breaches that follows it are timed. Printed are microseconds by kind of event,
then the same for fewer models or fewer requests, to see that nothing grows faster than linearly. The step of a timer
looks at everything.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.simulation import CALM, Simulation, metered, model

from swapd.core import effects as ef
from swapd.core import events as ev
from swapd.core.requests import Request
from swapd.core.scheduler import step
from swapd.core.spec import RAM

CLIENTS = 50
TARGET_US = 1000.0
"""For the median."""


class Timed(Simulation):
    """Notes the seconds of each step, by the kind of event, with the checks that the daemon does after it."""

    def __init__(self, seed: int, models: int, waiting: int, spread: int) -> None:
        self.times_s: dict[str, list[float]] = defaultdict(list)
        self.timing = False
        self.profile: cProfile.Profile | None = None
        devices = [metered("CUDA0", 24_000), metered("CUDA1", 12_000), metered(RAM, 64_000)]
        rng = random.Random(seed)
        specs = [
            model(f"m{number}", rng.choice([2_000, 5_000, 9_000, 18_000]), gpu=True, slots=4, max_waiting=100_000,
                  queue_timeout_s=86_400.0)
            for number in range(models)
        ]  # fmt: skip
        super().__init__(rng, devices, specs, CALM)
        self.asked = [spec.id for spec in specs[:spread]]
        self.sent = 0
        for _ in range(waiting):
            self.enqueue()
        self.service_s = lambda _: rng.uniform(0.5, 20.0)
        self.on_done = lambda _request_id, _outcome: self.ask()

    def decide(self, event: ev.Event, now_s: float) -> Sequence[ef.Effect]:
        if self.profile is not None:
            self.profile.enable()
        begun_s = time.perf_counter()
        todo = step(self.ledger, event, now_s)
        self.audit.look()
        took_s = time.perf_counter() - begun_s
        if self.profile is not None:
            self.profile.disable()
        if self.timing:
            self.times_s[type(event).__name__].append(took_s)
        return todo

    def enqueue(self) -> None:
        """A request that waits from the beginning, without a step for it."""
        self.sent += 1
        request_id, name = f"r{self.sent}", self.asked[self.sent % len(self.asked)]
        self.ledger.counters.accepted += 1
        self.ledger.enqueue(Request(request_id, name, f"client{self.sent % CLIENTS}", 0, self.now_s))

    def ask(self) -> None:
        self.sent += 1
        self.request(f"r{self.sent}", self.rng.choice(self.asked), f"client{self.sent % CLIENTS}")

    def measure(self, seconds: float) -> None:
        self.post(ev.TimerFired())
        self.timing = True
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and self.clock.advance():
            pass


def measured(models: int, waiting: int, spread: int, seconds: float) -> Timed:
    timed = Timed(1, models, waiting, min(models, spread))
    timed.measure(seconds)
    return timed


def all_us(timed: Timed) -> list[float]:
    return [took_s * 1e6 for times_s in timed.times_s.values() for took_s in times_s]


def print_kinds(timed: Timed) -> None:
    print(f"{'event':18} {'steps':>6} {'median':>9} {'p99':>9} {'worst':>9}  (µs)")
    rows = {kind: [took_s * 1e6 for took_s in times_s] for kind, times_s in timed.times_s.items()}
    for kind, times_us in [*sorted(rows.items()), ("all", all_us(timed))]:
        ordered = sorted(times_us)
        p99 = ordered[int(0.99 * (len(ordered) - 1))]
        print(f"{kind:18} {len(ordered):6} {statistics.median(ordered):9.0f} {p99:9.0f} {ordered[-1]:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--spread", type=int, default=1000, help="models that requests wait for, at most")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the seven rows")
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead of growth")
    asked = parser.parse_args()
    print(f"{asked.models} models, {asked.waiting} requests waiting for {min(asked.models, asked.spread)} of them")
    if asked.profile:
        timed = Timed(1, asked.models, asked.waiting, min(asked.models, asked.spread))
        timed.profile = cProfile.Profile()
        timed.measure(asked.seconds)
        pstats.Stats(timed.profile).sort_stats("tottime").print_stats(30)
        return
    timed = measured(asked.models, asked.waiting, asked.spread, asked.seconds)
    print_kinds(timed)
    median_us = statistics.median(all_us(timed))
    print(f"median {median_us:.0f} µs, {'within' if median_us <= TARGET_US else 'over'} {TARGET_US:.0f} µs")
    print("\nmodels  waiting     steps    median       p99     worst    timer's median  (µs)")
    for models, waiting in growth(asked.models, asked.waiting):
        one = measured(models, waiting, asked.spread, asked.seconds)
        ordered = sorted(all_us(one))
        timers_us = [took_s * 1e6 for took_s in one.times_s["TimerFired"]] or [float("nan")]
        print(
            f"{models:6} {waiting:8} {len(ordered):9} {statistics.median(ordered):9.0f} "
            f"{ordered[int(0.99 * (len(ordered) - 1))]:9.0f} {ordered[-1]:9.0f} {statistics.median(timers_us):17.0f}"
        )


def growth(models: int, waiting: int) -> list[tuple[int, int]]:
    """Fewer of one or of the other, and as many."""
    fewer = [(models, int(waiting * share)) for share in (0.1, 0.2, 0.5)]
    return [*fewer, *((int(models * share), waiting) for share in (0.1, 0.3, 1.0))]


if __name__ == "__main__":
    main()
