"""One long text: what a token costs at its beginning, in its middle and at its end.

Attention itself costs more with every token, for both alike; beyond that nothing may. Guessing is off: a long text
of a small model repeats itself, and the end would be the fastest part.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, at_least, figures_of
from benchmarks.servers import Bench, Context, Server, complete, text_body


@dataclass(frozen=True, slots=True)
class Long:
    """Counts are tokens; the speed is that of `window` of them."""

    prompt_tokens: int = 98
    output_tokens: int = 4000
    window: int = 100
    n_ctx: int = 4352


async def run(bench: Bench, long: Long) -> AsyncIterator[Figure]:
    """Tokens per second of three windows, and the last one's share of the first one's."""

    async def alone(server: Server, rng: random.Random) -> dict[str, float]:
        (stream,) = await complete(server, [text_body(rng, long.prompt_tokens, long.output_tokens)])
        return speeds(stream.event_times_s, long.window)

    async with bench.servers(Context(long.n_ctx, 1, bench.threads, spec_type="none")) as servers:
        samples = await bench.in_turns(servers, alone, "long")
    whats = {place: f"the {place} {long.window} of {long.output_tokens}" for place in ("first", "middle", "last")}
    for figure in figures_of("long", "events/s", samples, whats):
        yield figure
    whats = {"kept": "the last window's share of the first one's"}
    for figure in figures_of("long", "", samples, whats, {"kept": at_least(0.95)}):
        yield figure


def speeds(times_s: Sequence[float], window: int) -> dict[str, float]:
    """Events per second of the first, the middle and the last `window` events, and the last by the first.

    An event is a token, but for the few whose text is not a whole character.
    """
    middle = (len(times_s) - window) // 2
    starts = {"first": 0, "middle": middle, "last": len(times_s) - window - 1}
    found = {place: window / (times_s[start + window] - times_s[start]) for place, start in starts.items()}
    return {**found, "kept": found["last"] / found["first"]}
