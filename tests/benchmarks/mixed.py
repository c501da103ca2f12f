"""Short streams while a long prompt is read: what the streams notice of it, and what it costs the prompt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.client import Connection, post
from benchmarks.figures import Figure, at_least, at_most, figures_of, percentile
from benchmarks.servers import COMPLETIONS, Bench, Context, Server, complete, text_body

GOING_EVENTS = 8
"""A stream that has sent as many is going."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Counts are tokens. The streams could generate `longest_stream`; they are left when the prompt has been read."""

    streams: int = 4
    short_prompt: int = 98
    long_prompt: int = 4000
    longest_stream: int = 1024
    n_ctx: int = 9216
    n_batch: int = 2048


async def run(bench: Bench, mixed: Mixed) -> AsyncIterator[Figure]:
    """Gaps between the tokens of the streams while the prompt is read, and the speed at which it is."""

    async def alone(server: Server, rng: random.Random) -> dict[str, float]:
        (stream,) = await complete(server, [text_body(rng, mixed.long_prompt, 1)])
        return {"alone": mixed.long_prompt / stream.first_s}

    async def beside(server: Server, rng: random.Random) -> dict[str, float]:
        return await _beside(server, rng, mixed)

    context = Context(mixed.n_ctx, mixed.streams + 1, bench.threads, mixed.n_batch)
    async with bench.servers(context) as servers:
        prefill = await bench.in_turns(servers, alone, "mixed alone")
        samples = await bench.in_turns(servers, beside, "mixed")
    for figure in figures_of("mixed", "tok/s", prefill, {"alone": "prefill with nobody beside it"}):
        yield figure
    whats = {"prefill": f"prefill beside {mixed.streams} streams"}
    for figure in figures_of("mixed", "tok/s", samples, whats, {"prefill": at_least(0.9)}):
        yield figure
    whats = {"p50": "inter-token p50 of the streams meanwhile", "p99": "inter-token p99 of the streams meanwhile"}
    for figure in figures_of("mixed", "s", samples, whats, {"p99": at_most(0.5)}):
        yield figure


async def _beside(server: Server, rng: random.Random, mixed: Mixed) -> dict[str, float]:
    address = ("127.0.0.1", server.port)
    shorts = [text_body(rng, mixed.short_prompt, mixed.longest_stream) for _ in range(mixed.streams)]
    streams = [await post(address, COMPLETIONS, body) for body in shorts]
    await asyncio.gather(*(_until_going(stream) for stream in streams))
    body = text_body(rng, mixed.long_prompt, 1)
    long = await post(address, COMPLETIONS, body)
    await long.ended
    # The gap during which the prompt was finished ends with the next token.
    await asyncio.gather(*(stream.news() for stream in streams))
    for stream in streams:
        assert not stream.ended.done(), "a stream ended before the prompt was read: raise longest_stream"
        stream.leave()
    answer = long.stream()
    answer.check(mixed.long_prompt, 1)
    read_s = answer.event_times_s[0]
    gaps = [gap for stream in streams for gap in gaps_within(stream.stream().event_times_s, answer.started_s, read_s)]
    return {
        "prefill": mixed.long_prompt / answer.first_s,
        "p50": percentile(gaps, 50),
        "p99": percentile(gaps, 99),
    }


async def _until_going(stream: Connection) -> None:
    while len(stream.arrivals) < GOING_EVENTS:
        assert not stream.ended.done(), stream.stream().error
        await stream.news()


def gaps_within(times_s: Sequence[float], from_s: float, to_s: float) -> list[float]:
    """The gaps between events that overlap with the time from `from_s` to `to_s`."""
    return [later - earlier for earlier, later in pairwise(times_s) if later > from_s and earlier < to_s]
