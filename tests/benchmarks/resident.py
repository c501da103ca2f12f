"""Resident memory of the process that holds the model, after the same requests.

Both map the same file, so its pages count in both resident sizes and by halves in the proportional ones.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.figures import Figure, at_most, figures_of
from benchmarks.servers import Bench, Context, Server, complete, text_body

MIB = 2**20
KINDS = {"Rss": "resident", "Pss": "resident, shared pages by halves", "Anonymous": "anonymous"}


@dataclass(frozen=True, slots=True)
class Resident:
    """Counts are tokens; `waves` times `clients` requests are served before the second look."""

    clients: int = 4
    waves: int = 3
    prompt_tokens: int = 600
    output_tokens: int = 64
    n_ctx: int = 4096


async def run(bench: Bench, resident: Resident) -> AsyncIterator[Figure]:
    """MiB of the workers after their first short answer and after the waves, and of the daemon itself."""
    async with bench.servers(Context(resident.n_ctx, resident.clients, bench.threads)) as servers:
        for when in ("warm", "used"):
            samples = [[mapped_mib(server.worker_pid)] for server in servers]
            whats = {kind: f"worker {when}: {words}" for kind, words in KINDS.items()}
            targets = {"Rss": at_most(60.0)}
            for figure in figures_of("memory", "MiB", samples, whats, targets, compared_by="difference"):
                yield figure
            if when == "warm":
                for server in servers:
                    await _use(server, resident)
        daemon_mib = psutil.Process(servers[0].pid).memory_info().rss / MIB
    yield Figure(scenario="memory", what="the daemon itself: resident", unit="MiB", swapd=(daemon_mib,))


async def _use(server: Server, resident: Resident) -> None:
    rng = random.Random("memory")
    for _ in range(resident.waves):
        body = [text_body(rng, resident.prompt_tokens, resident.output_tokens) for _ in range(resident.clients)]
        await complete(server, body)


def mapped_mib(pid: int) -> dict[str, float]:
    """Sizes of `KINDS` as the kernel adds them up, in MiB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {name.rstrip(":"): int(count) for name, count, _ in lines}
    return {kind: kib[kind] / 1024 for kind in KINDS}
