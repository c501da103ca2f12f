"""Plain throughput: N streams at once, each with a prompt of its own that nobody shares."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.figures import Figure, at_least, figures_of, geometric_mean
from benchmarks.servers import Bench, Context, Server, complete, text_body


@dataclass(frozen=True, slots=True)
class Plain:
    """`streams` is the list of N. Counts are tokens."""

    streams: tuple[int, ...] = (1, 4, 8, 16)
    prompt_tokens: int = 98
    output_tokens: int = 64
    n_ctx: int = 4096


async def run(bench: Bench, plain: Plain) -> AsyncIterator[Figure]:
    """Generated tokens per second of all streams together, prefill included."""
    ratios: list[float] = []
    for count in plain.streams:

        async def together(server: Server, rng: random.Random, count: int = count) -> dict[str, float]:
            bodies = [text_body(rng, plain.prompt_tokens, plain.output_tokens) for _ in range(count)]
            started_s = time.perf_counter()
            await complete(server, bodies)
            return {"speed": count * plain.output_tokens / (time.perf_counter() - started_s)}

        async with bench.servers(Context(plain.n_ctx, count, bench.threads)) as servers:
            samples = await bench.in_turns(servers, together, f"plain {count}")
        (figure,) = figures_of("plain", "tok/s", samples, {"speed": f"N={count}"}, {"speed": at_least(1.0)})
        yield figure
        if figure.compared is not None:
            ratios.append(figure.compared)
    if ratios:
        yield Figure(
            scenario="plain",
            what="geometric mean of the ratios",
            unit="",
            swapd=(geometric_mean(ratios),),
            compared_by="itself",
            target=at_least(1.05),
        )
