"""A shared system prompt: many clients whose prompts begin alike come at once, then once more.

The first wave finds nothing computed; the second one finds whatever the server has kept.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.figures import Figure, at_most, figures_of
from benchmarks.servers import Bench, Context, Server, complete, plain_tokens, text_body

CELLS_MULTIPLE = 256


@dataclass(frozen=True, slots=True)
class Prefix:
    """Counts are tokens. The context has room for every client without any sharing."""

    clients: int = 16
    system_tokens: int = 1000
    own_tokens: int = 30
    output_tokens: int = 32

    @property
    def n_ctx(self) -> int:
        need = self.clients * (self.system_tokens + self.own_tokens + self.output_tokens)
        return -(-need // CELLS_MULTIPLE) * CELLS_MULTIPLE


async def run(bench: Bench, prefix: Prefix) -> AsyncIterator[Figure]:
    """Seconds until the last client of a wave has its first token."""

    async def waves(server: Server, rng: random.Random) -> dict[str, float]:
        system = plain_tokens(rng, prefix.system_tokens)
        last_first_s = {}
        for wave in ("cold", "warm"):
            bodies = [text_body(rng, prefix.own_tokens, prefix.output_tokens, system) for _ in range(prefix.clients)]
            last_first_s[wave] = max(stream.first_s for stream in await complete(server, bodies))
        return last_first_s

    async with bench.servers(Context(prefix.n_ctx, prefix.clients, bench.threads)) as servers:
        samples = await bench.in_turns(servers, waves, "prefix")
    whats = {"cold": "last first token, nothing computed yet", "warm": "last first token, asked before"}
    for figure in figures_of("prefix", "s", samples, whats, {"cold": at_most(0.3)}):
        yield figure
