"""Three models, room for two, more clients than places: who waits how long, and how often models are swapped.

    python tests/benchmarks/contention.py [--llama-server COMMAND] [--seconds 300] [--alternations 1] [--json FILE]

Beside llama-server's router mode with `--models-max 2` when a command is given, of the same ggml build. The models are
one model in three quantizations. Clients send by a clock and not when they are answered: bursts of requests for one
model each, whose popularity is Zipf's, at a share of the requests per second that was measured before on the two most
popular ones, without swaps (the lower of both servers', which take turns at that). Every client has an address of its
own. Both servers get the same requests at the same times, one after the other; nobody is measured before both are
quiet. A wait is from the request to its first token; a swap is a worker that is started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.client import Stream, post
from benchmarks.figures import Figure, Target, at_most, document, figures_of, percentile
from benchmarks.fleet import Entry, Fleet, fleets, variants
from benchmarks.servers import COMPLETIONS, Bench, Server, complete, text_body, until_quiet

STARTED = {"swapd": '"event": "worker ready"', "llama-server": "spawning server instance with name="}
"""What each writes to its log when a worker is started."""
LOGS = {"swapd": "swapd.log", "llama-server": "router.log"}
ROOM = 2
CAPACITY_ROUNDS = 3
"""In which both servers' capacity is measured: a machine's speed may drift by a fifth within minutes."""
PATIENCE_S = 600.0
"""Beyond the last request, until what is not answered has failed."""
WHATS = {
    "p50": ("wait, p50", "s", None),
    "p95": ("wait, p95", "s", at_most(0.6)),
    "worst": ("wait, worst", "s", None),
    "swaps": ("swaps", "", at_most(0.5)),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked. Counts of tokens are the same for every request, so that capacity can be measured."""

    seconds: float = 300.0
    share: float = 0.65
    """Of the capacity without swaps."""
    clients: int = 12
    zipf: float = 1.0
    burst: float = 3.0
    """Requests in a burst, on average."""
    spacing_s: float = 0.2
    """Between two requests of a burst."""
    prompt_tokens: int = 48
    output_tokens: int = 24
    capacity_s: float = 20.0
    """Of each round, until nothing more is asked for."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    client: int
    model: int


def popularity(models: int, load: Load) -> list[float]:
    return [1 / (rank + 1) ** load.zipf for rank in range(models)]


def arrivals(rng: random.Random, models: int, rate: float, load: Load) -> list[Arrival]:
    """A seeded trace with `rate` requests per second on average. Bursts begin by a Poisson process."""
    found: list[Arrival] = []
    at_s = rng.expovariate(rate / load.burst)
    while at_s < load.seconds:
        (model,) = rng.choices(range(models), popularity(models, load))
        client, size = rng.randrange(load.clients), 1
        while rng.random() < 1 - 1 / load.burst:
            size += 1
        found += [Arrival(at_s + number * load.spacing_s, client, model) for number in range(size)]
        at_s += rng.expovariate(rate / load.burst)
    return sorted(found, key=lambda one: one.at_s)


async def ask(server: Server, model: str, client: int, rng: random.Random, load: Load) -> Stream:
    body = {**text_body(rng, load.prompt_tokens, load.output_tokens), "model": model}
    connection = await post(("127.0.0.1", server.port), COMPLETIONS, body, source=f"127.0.1.{client + 1}")
    await connection.ended
    return connection.stream()


async def capacity(server: Server, names: Sequence[str], load: Load, places: int, seed: str) -> float:
    """Requests per second of loaded models with so many clients that ask again as soon as they are answered.

    All that were asked for count, and the time until all are answered: as many as run at once are a quarter of what a
    round has time for, and would be the noise.
    """
    begin_s = time.perf_counter()
    weights = popularity(len(names), load)
    served = 0

    async def client(number: int) -> None:
        nonlocal served
        rng = random.Random(f"{seed} {number}")
        while time.perf_counter() < begin_s + load.capacity_s:
            stream = await ask(server, rng.choices(names, weights)[0], number, rng, load)
            stream.check(load.prompt_tokens, load.output_tokens)
            served += 1

    await asyncio.gather(*(client(number) for number in range(places)))
    return served / (time.perf_counter() - begin_s)


async def play(server: Server, trace: Sequence[Arrival], names: Sequence[str], load: Load) -> list[Stream]:
    """Every request of the trace at its time; the answers, whatever they are."""
    started_s = time.perf_counter()

    async def one(number: int, arrival: Arrival) -> Stream:
        await asyncio.sleep(arrival.at_s - (time.perf_counter() - started_s))
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await ask(server, names[arrival.model], arrival.client, random.Random(number), load)
        except (TimeoutError, OSError) as error:
            return Stream(sent_s, 0, error=f"{type(error).__name__}: {error}")

    return await asyncio.gather(*(one(number, arrival) for number, arrival in enumerate(trace)))


def starts(directory: Path, server: Server) -> int:
    """Workers that the server has started so far."""
    return (directory / LOGS[server.name]).read_text(errors="replace").count(STARTED[server.name])


def summary(streams: Sequence[Stream], load: Load, name: str) -> dict[str, float]:
    """Waits in seconds of those that were answered whole, and how many were not, with the reasons on stderr."""
    whole = [one for one in streams if one.done and one.completion_tokens == load.output_tokens]
    reasons = Counter(one.error or f"status {one.status}" for one in streams if one not in whole)
    for reason, count in reasons.items():
        print(f"{name}: {count} failed: {reason}", file=sys.stderr)
    waits = [one.first_s for one in whole] or [float("nan")]
    return {
        "p50": percentile(waits, 50),
        "p95": percentile(waits, 95),
        "worst": max(waits),
        "failures": len(streams) - len(whole),
        "requests": len(streams),
    }


async def run(bench: Bench, load: Load, turns: str, n_parallel: int) -> list[Figure]:
    models = [Entry(f"model-{number}", path, 2048) for number, path in enumerate(variants(bench.directory, 3))]
    names = [model.name for model in models]
    fleet = Fleet(tuple(models), room=ROOM, n_parallel=n_parallel, threads=bench.threads, turns=turns)
    async with fleets(bench, fleet) as servers:
        capacities = await _capacities(servers, names[:ROOM], load, ROOM * n_parallel)
        rate = load.share * min(map(statistics.fmean, capacities))

        async def turn(server: Server, rng: random.Random) -> dict[str, float]:
            trace = arrivals(rng, len(names), rate, load)
            before = starts(bench.directory, server)
            streams = await play(server, trace, names, load)
            return {**summary(streams, load, server.name), "swaps": starts(bench.directory, server) - before}

        samples = await bench.in_turns(servers, turn, "contention")
    return _figures(samples, capacities)


async def _capacities(servers: list[Server], names: Sequence[str], load: Load, places: int) -> list[list[float]]:
    """Of each server one figure for each round. Every round begins with another one and has requests of its own."""
    found: dict[str, list[float]] = {server.name: [] for server in servers}
    for number in range(CAPACITY_ROUNDS):
        for server in servers if number % 2 == 0 else reversed(servers):
            for name in names:
                await complete(server, [{**text_body(random.Random(0), 8, 2), "model": name}])
            await until_quiet(servers)
            rate = await capacity(server, names, load, min(load.clients, places), str(number))
            found[server.name].append(rate)
            print(f"{server.name}: {rate:.2f} requests/s without swaps", file=sys.stderr, flush=True)
    return list(found.values())


def _figures(samples: Sequence[Sequence[dict[str, float]]], capacities: Sequence[Sequence[float]]) -> list[Figure]:
    figures = [
        Figure(
            scenario="contention",
            what="capacity without swaps",
            unit="req/s",
            swapd=tuple(capacities[0]),
            llama_server=tuple(rate for other in capacities[1:] for rate in other),
        )
    ]
    for key, (what, unit, target) in WHATS.items():
        targets = {} if target is None else {key: target}
        # Of no swaps there is no share: then the figures are printed side by side.
        by_ratio = all(sample[key] for other in samples[1:] for sample in other)
        compared = "ratio" if by_ratio else "difference"
        figures += figures_of("contention", unit, samples, {key: what}, targets if by_ratio else {}, compared)
    for key, target in (("failures", Target(0, "at most")), ("requests", None)):
        targets = {} if target is None else {key: target}
        figures += figures_of("contention", "", samples, {key: key}, targets, compared_by="itself")
    return figures


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--llama-server", metavar="COMMAND", type=shlex.split, default=[], help="of the same ggml build"
    )
    parser.add_argument("--alternations", type=int, default=1, help="each plays another trace to both")
    # Two models compute at once: more threads than cores would have their barriers wait for each other.
    threads = max(1, (psutil.cpu_count(logical=False) or 2) // ROOM)
    parser.add_argument("--threads", type=int, default=threads, help="of each model")
    parser.add_argument("--n-parallel", type=int, default=4, help="of each model")
    parser.add_argument("--turns", default="", help="swapd's block, such as '{turn: 5s, max_wait: 20s}'")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    for name, kind in (("seconds", float), ("share", float), ("clients", int), ("zipf", float), ("burst", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Load(), name))
    parser.add_argument("--capacity-seconds", type=float, default=Load().capacity_s)
    return parser.parse_args(argv)


async def main(given: argparse.Namespace) -> None:
    load = Load(
        seconds=given.seconds,
        share=given.share,
        clients=given.clients,
        zipf=given.zipf,
        burst=given.burst,
        capacity_s=given.capacity_seconds,
    )
    turns = f"turns: {given.turns}\n" if given.turns else ""
    with tempfile.TemporaryDirectory(prefix="swapd-bench-") as directory:
        bench = Bench(Path(directory), tuple(given.llama_server), given.alternations, given.threads)
        figures = await run(bench, load, turns, given.n_parallel)
    for figure in figures:
        print(figure)
    if given.json is not None:
        given.json.write_text(json.dumps([document(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
