"""A KV cache a third of what the clients want: who is answered in full, and how fast."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.figures import Figure, at_least, figures_of
from benchmarks.servers import Bench, Context, Server, gather_streams, text_body


@dataclass(frozen=True, slots=True)
class Pressure:
    """Counts are tokens. By default the clients want 16 x 288 = 4,608 of 1,536 cells."""

    clients: int = 16
    prompt_tokens: int = 96
    output_tokens: int = 192
    n_ctx: int = 1536


async def run(bench: Bench, pressure: Pressure) -> AsyncIterator[Figure]:
    """Requests that got every token they asked for, and tokens per second of those. Says why others did not."""
    reasons: dict[str, Counter[str]] = {}

    async def crowd(server: Server, rng: random.Random) -> dict[str, float]:
        bodies = [text_body(rng, pressure.prompt_tokens, pressure.output_tokens) for _ in range(pressure.clients)]
        started_s = time.perf_counter()
        streams = await gather_streams(server, bodies)
        took_s = time.perf_counter() - started_s
        whole = [one for one in streams if one.done and one.completion_tokens == pressure.output_tokens]
        cut = [one for one in streams if one not in whole]
        why = (one.error or f"ended by {one.finish} after {one.completion_tokens} tokens" for one in cut)
        reasons.setdefault(server.name, Counter()).update(why)
        return {
            "share": len(whole) / pressure.clients,
            "speed": len(whole) * pressure.output_tokens / took_s,
        }

    async with bench.servers(Context(pressure.n_ctx, pressure.clients, bench.threads)) as servers:
        samples = await bench.in_turns(servers, crowd, "pressure")
    for name, counted in reasons.items():
        for reason, count in counted.items():
            print(f"{name}: {count} of {bench.alternations * pressure.clients}: {reason}", file=sys.stderr)
    whats = {"share": "share of requests completed"}
    for figure in figures_of("pressure", "", samples, whats, {"share": at_least(1.0)}, compared_by="itself"):
        yield figure
    whats = {"speed": "tokens of completed requests"}
    for figure in figures_of("pressure", "tok/s", samples, whats, compared_by="itself"):
        yield figure
