"""Plain throughput: N streams at once, each with a prompt of its own that nobody shares.

What follows random tokens tends to repeat itself, which makes it easy to guess: the figures without guessing say how
fast the engine is, and those with it what a user of such a text gets.
"""

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
    """Generated tokens per second of all streams together, prefill included; without guessing, then as by default."""
    for spec_type, words in (("none", "no guessing"), ("auto", "guessing")):
        ratios = []
        for count in plain.streams:
            context = Context(plain.n_ctx, count, bench.threads, spec_type=spec_type)
            figure = await _streams(bench, plain, context, f"N={count}, {words}")
            yield figure
            if figure.compared is not None:
                ratios.append(figure.compared)
        if ratios:
            yield Figure(
                scenario="plain",
                what=f"geometric mean of the ratios, {words}",
                unit="",
                swapd=(geometric_mean(ratios),),
                compared_by="itself",
                target=at_least(1.05),
            )


async def _streams(bench: Bench, plain: Plain, context: Context, what: str) -> Figure:
    async def together(server: Server, rng: random.Random) -> dict[str, float]:
        bodies = [text_body(rng, plain.prompt_tokens, plain.output_tokens) for _ in range(context.n_parallel)]
        started_s = time.perf_counter()
        await complete(server, bodies)
        return {"speed": context.n_parallel * plain.output_tokens / (time.perf_counter() - started_s)}

    async with bench.servers(context) as servers:
        samples = await bench.in_turns(servers, together, f"plain {context.n_parallel}")
    (figure,) = figures_of("plain", "tok/s", samples, {"speed": what}, {"speed": at_least(1.0)})
    return figure
