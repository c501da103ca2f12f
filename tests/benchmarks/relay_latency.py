"""What the daemon adds to an answer's times: requests at a steady rate, through it and at its worker in turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Address, Connection, post
from benchmarks.relay_streams import CHAT, Load, address_of, check
from support.running_daemon import RunningDaemon

ANSWER = Load(1, 3)


@dataclass(frozen=True, slots=True)
class Added:
    """Milliseconds, of each request through the daemon less the one at the socket right after it; sorted."""

    first_ms: tuple[float, ...]
    """To the first event."""
    whole_ms: tuple[float, ...]
    """To the end of the answer."""
    direct_ms: tuple[float, ...]
    """To the first event at the worker's socket: what it is added to."""


def percentile(values: tuple[float, ...], share: float) -> float:
    return values[int(share * (len(values) - 1))]


async def added(daemon: RunningDaemon, socket_path: Path, rate: float, seconds: float) -> Added:
    """Both kinds at `rate` requests a second, half a period apart, whether or not earlier ones have been answered."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()

    async def one(address: Address, at_s: float, seed: int) -> tuple[float, float]:
        await asyncio.sleep(begun_s + at_s - loop.time())
        connection = await post(address, CHAT, ANSWER.body(seed))
        await connection.ended
        check(connection.arrivals, ANSWER, seed)
        return _first_s(connection), connection.arrivals[-1][0] - connection.started_s

    through, direct = [], []
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            through.append(group.create_task(one(address_of(daemon), number / rate, number)))
            direct.append(group.create_task(one(socket_path, (number + 0.5) / rate, number)))
    pairs = [(ours.result(), bare.result()) for ours, bare in zip(through, direct, strict=True)]
    return Added(
        tuple(sorted(1000 * (ours[0] - bare[0]) for ours, bare in pairs)),
        tuple(sorted(1000 * (ours[1] - bare[1]) for ours, bare in pairs)),
        tuple(sorted(1000 * bare[0] for _, bare in pairs)),
    )


def _first_s(connection: Connection) -> float:
    return next(at_s for at_s, data in connection.arrivals if b"data: " in data) - connection.started_s
