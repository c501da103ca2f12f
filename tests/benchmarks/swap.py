"""Two models, room for one: from the request to the first token when the other model has to leave first.

    python tests/benchmarks/swap.py [--llama-server COMMAND] [--alternations 5] [--json FILE]

Beside llama-server's router mode with `--models-max 1` when a command is given, of the same ggml build. Both models are
the SmolLM2 file with contexts of different length; every request is for the one that is not loaded. Prompts are short,
for it is the swap that is looked at. The servers take turns; nobody is measured before both are quiet, unless
`--no-pauses` is given. Printed beside the medians: where swapd's time goes, by its own log.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.figures import Figure, at_most, document, figures_of
from benchmarks.fleet import Entry, Fleet, fleets
from benchmarks.servers import MODEL, Bench, Server, complete, text_body, until_quiet

PROMPT_TOKENS, OUTPUT_TOKENS = 8, 8
TARGET = 0.6
STEPS = {
    "stop_s": "stop and reap the other",
    "start_s": "until the worker's libraries are in",
    "load_s": "load",
    "warm_up_s": "warm-up",
}


def body(model: str, rng: random.Random) -> dict[str, Any]:
    """Without `ignore_eos`, as people ask; eight tokens after random ones are no end."""
    return {**text_body(rng, PROMPT_TOKENS, OUTPUT_TOKENS), "model": model, "ignore_eos": False}


async def swap_times(servers: Sequence[Server], bench: Bench, names: Sequence[str], *, pauses: bool) -> list[Any]:
    """Samples of each server: milliseconds to the first token of a swapped and of a loaded model."""

    async def once(server: Server, model: str, rng: random.Random) -> float:
        if pauses:
            await until_quiet(servers)
        (stream,) = await complete(server, [body(model, rng)])
        return 1000 * stream.first_s

    async def there_and_back(server: Server, rng: random.Random) -> dict[str, float]:
        swapped = [await once(server, model, rng) for model in names]
        loaded = await once(server, names[-1], rng)
        return {"swapped": statistics.fmean(swapped), "loaded": loaded}

    for server in servers:
        await complete(server, [body(names[-1], random.Random(0))])
    return await bench.in_turns(servers, there_and_back, "swap")


def steps(log: Path) -> Iterator[Figure]:
    """The parts of swapd's swaps, in milliseconds, one sample per swap."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    for key, what in STEPS.items():
        found = tuple(1000 * line[key] for line in lines if key in line)
        if found:
            yield Figure(scenario="swap", what=f"of which: {what}", unit="ms", swapd=found, compared_by="itself")


async def run(bench: Bench, *, n_ctx: int, pauses: bool) -> list[Figure]:
    models = (Entry("one", MODEL, n_ctx), Entry("two", MODEL, n_ctx * 3 // 2))
    fleet = Fleet(models, room=1, n_parallel=1, threads=bench.threads)
    async with fleets(bench, fleet) as servers:
        samples = await swap_times(servers, bench, [model.name for model in models], pauses=pauses)
    whats = {"swapped": "first token, the other model loaded", "loaded": "first token, loaded already"}
    figures = figures_of("swap", "ms", samples, whats, {"swapped": at_most(TARGET)})
    return [*figures, *steps(bench.directory / "swapd.log")]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--llama-server", metavar="COMMAND", type=shlex.split, default=[], help="of the same ggml build"
    )
    parser.add_argument("--alternations", type=int, default=5, help="each is two swaps of each server")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 2)
    parser.add_argument("--n-ctx", type=int, default=2048, help="of the smaller model")
    parser.add_argument("--no-pauses", action="store_true", help="ask again at once, without waiting for quiet")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    return parser.parse_args(argv)


async def main(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="swapd-bench-") as directory:
        bench = Bench(Path(directory), tuple(given.llama_server), given.alternations, given.threads)
        figures = await run(bench, n_ctx=given.n_ctx, pauses=not given.no_pauses)
    for figure in figures:
        print(figure)
    if given.json is not None:
        given.json.write_text(json.dumps([document(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
