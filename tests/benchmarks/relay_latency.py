"""What the daemon adds to an answer's times: requests at a steady rate, through it and at its worker in turns."""

from __future__ import annotations

import asyncio
import gc
import statistics
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.client import Address, Connection, post
from benchmarks.relay_streams import CHAT, Load, address_of, check
from support.running_daemon import RunningDaemon

ANSWER = Load(1, 3)
SAMPLE_EVERY_S = 0.005
SLOW_FACTOR = 3.0
"""A virtual machine whose host gives it a part of its speed for some tens of milliseconds is that much slower then."""
SETTLE_S = 0.1
"""After such a time what has piled up is worked off."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A request through the daemon and the one at the worker's socket half a period later. Milliseconds."""

    first_ms: float
    """To the first event: through the daemon, less at the socket."""
    whole_ms: float
    """The same to the end of the answer."""
    direct_ms: float
    """To the first event at the socket: what it is added to."""
    calm: bool
    """The machine ran at its own speed meanwhile."""


class Pacer:
    """Times a fixed piece of work again and again, to know when the machine itself was slow."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float]] = []

    async def run(self) -> None:
        while True:
            begun_s = perf_counter()
            sum(number * number for number in range(1000))
            self._taken.append((begun_s, perf_counter() - begun_s))
            await asyncio.sleep(SAMPLE_EVERY_S)

    def slow_s(self) -> list[float]:
        """When it was slow, in order."""
        usual_s = statistics.median(took_s for _, took_s in self._taken)
        return [at_s for at_s, took_s in self._taken if took_s > SLOW_FACTOR * usual_s]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


async def pairs(daemon: RunningDaemon, socket_path: Path, rate: float, seconds: float) -> list[Pair]:
    """Both kinds at `rate` requests a second, half a period apart, whether or not earlier ones have been answered."""
    pacer = Pacer()
    pacing = asyncio.create_task(pacer.run())
    # The collections of this process are not the daemon's.
    gc.disable()
    begun_s = perf_counter()

    async def one(address: Address, at_s: float, seed: int) -> Connection:
        await asyncio.sleep(begun_s + at_s - perf_counter())
        connection = await post(address, CHAT, ANSWER.body(seed))
        await connection.ended
        check(connection.arrivals, ANSWER, seed)
        return connection

    through, direct = [], []
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            through.append(group.create_task(one(address_of(daemon), number / rate, number)))
            direct.append(group.create_task(one(socket_path, (number + 0.5) / rate, number)))
    gc.enable()
    pacing.cancel()
    with suppress(asyncio.CancelledError):
        await pacing
    slow_s = pacer.slow_s()
    return [_pair(ours.result(), bare.result(), slow_s) for ours, bare in zip(through, direct, strict=True)]


def _pair(ours: Connection, bare: Connection, slow_s: list[float]) -> Pair:
    since_s = ours.started_s - SETTLE_S
    until_s = max(ours.arrivals[-1][0], bare.arrivals[-1][0])
    return Pair(
        1000 * (_first_s(ours) - _first_s(bare)),
        1000 * (_whole_s(ours) - _whole_s(bare)),
        1000 * _first_s(bare),
        bisect_left(slow_s, since_s) == bisect_right(slow_s, until_s),
    )


def _first_s(connection: Connection) -> float:
    return next(at_s for at_s, data in connection.arrivals if b"data: " in data) - connection.started_s


def _whole_s(connection: Connection) -> float:
    return connection.arrivals[-1][0] - connection.started_s
