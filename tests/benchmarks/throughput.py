"""Speed and memory of swapd, beside llama-server when its command is given, as ratios of one run.

    python tests/benchmarks/throughput.py SCENARIO [--llama-server COMMAND] [--alternations 5] [--json FILE]

Scenarios: plain, prefix, mixed, pressure, long, memory, latency, all; `SCENARIO --help` has what each can vary.

Both serve the same SmolLM2 file with the same threads, context and batch. Prompts are random token ids, seeded, and
streams run greedily without end of generation, so that every answer has an exact number of tokens, which is checked.
The two servers take turns; while one is measured the other is up and idle. Printed: the median of the alternations
with its range, the comparison pair by pair, and the target where there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import latency, long_text, mixed, plain, prefix, pressure, resident
from benchmarks.figures import Figure, document
from benchmarks.servers import Bench


@dataclass(frozen=True, slots=True)
class Scenario:
    run: Callable[[Bench, Any], AsyncIterator[Figure]]
    parameters: type
    """A frozen dataclass of counts with defaults."""


SCENARIOS = {
    "latency": Scenario(latency.run, latency.Latency),
    "plain": Scenario(plain.run, plain.Plain),
    "prefix": Scenario(prefix.run, prefix.Prefix),
    "mixed": Scenario(mixed.run, mixed.Mixed),
    "pressure": Scenario(pressure.run, pressure.Pressure),
    "long": Scenario(long_text.run, long_text.Long),
    "memory": Scenario(resident.run, resident.Resident),
}


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `parameters` has what each scenario is to be run with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(dest="scenario", required=True)
    for name in (*SCENARIOS, "all"):
        one = names.add_parser(name)
        one.add_argument(
            "--llama-server", metavar="COMMAND", type=shlex.split, default=[], help="of the same ggml build"
        )
        one.add_argument("--alternations", type=int, default=5)
        one.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 2)
        one.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
        for field in fields(SCENARIOS[name].parameters) if name in SCENARIOS else ():
            kind = counts if isinstance(field.default, tuple) else int
            one.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = parser.parse_args(argv)
    given.scenarios = [given.scenario] if given.scenario in SCENARIOS else list(SCENARIOS)
    return given


async def main(given: argparse.Namespace) -> None:
    figures: list[Figure] = []
    for name in given.scenarios:
        scenario = SCENARIOS[name]
        own = {field.name: vars(given).get(field.name, field.default) for field in fields(scenario.parameters)}
        with tempfile.TemporaryDirectory(prefix="swapd-bench-") as directory:
            bench = Bench(Path(directory), tuple(given.llama_server), given.alternations, given.threads)
            async for figure in scenario.run(bench, scenario.parameters(**own)):
                print(figure, flush=True)
                figures.append(figure)
    if given.json is not None:
        given.json.write_text(json.dumps([document(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
