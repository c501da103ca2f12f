"""What the daemon adds to the first token, and what it holds in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import psutil
from benchmarks.client import Address, post
from benchmarks.figures import Figure
from benchmarks.servers import COMPLETIONS, SEED, Bench, Context, text_body


@dataclass(frozen=True, slots=True)
class Latency:
    """Requests asked through the daemon and at the worker's own socket in turns. Counts are tokens."""

    rounds: int = 60
    prompt_tokens: int = 4
    n_ctx: int = 4096


async def run(bench: Bench, latency: Latency) -> AsyncIterator[Figure]:
    """Milliseconds to the first token, and the difference; MiB of the daemon."""
    rng = random.Random(SEED)
    through_ms, direct_ms = [], []

    async def first_ms(address: Address) -> float:
        body = text_body(rng, latency.prompt_tokens, 1)
        connection = await post(address, COMPLETIONS, body)
        await connection.ended
        stream = connection.stream()
        stream.check(latency.prompt_tokens, 1)
        return 1000 * stream.first_s

    async with replace(bench, command=()).servers(Context(latency.n_ctx, 1, bench.threads)) as (server,):
        (socket,) = (bench.directory / "run").glob("workers-*/worker-*.sock")
        for _ in range(latency.rounds):
            through_ms.append(await first_ms(("127.0.0.1", server.port)))
            direct_ms.append(await first_ms(socket))
        resident_mib = psutil.Process(server.pid).memory_info().rss / 2**20
    added_ms = [through - direct for through, direct in zip(through_ms, direct_ms, strict=True)]
    for what, values in (("through swapd", through_ms), ("at its worker", direct_ms), ("added", added_ms)):
        yield Figure(scenario="latency", what=f"first token {what}", unit="ms", swapd=tuple(values))
    yield Figure(scenario="latency", what="the daemon: resident", unit="MiB", swapd=(resident_mib,))
