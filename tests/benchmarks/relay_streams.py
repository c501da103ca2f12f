"""Many streams through the daemon at once, each unlike the others and held to every byte; and readers that hardly read.

A scripted worker sends the streams. Integrity is asserted; times and memory are only told.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from benchmarks.client import Connection, post, read_body, request_bytes
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scripted_worker import whole_stream

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024
STILL_CPU_S = 0.03
"""CPU time in a second that a process may take while nothing moves."""
RAMP_S = 5.0
"""Streams of the whole measurement begin over this time: clients do not all come in one instant."""


@dataclass(frozen=True, slots=True)
class Load:
    """Streams of one kind, all at once. `gap_s` is between a stream's events, `pad` the bytes that each has more."""

    streams: int
    events: int
    gap_s: float = 0.0
    pad: int = 0

    def body(self, seed: int) -> dict[str, Any]:
        words = f"tokens={self.events} gap_s={self.gap_s} seed={seed} pad={self.pad}"
        return {"model": "a", "messages": [{"role": "user", "content": words}], "stream": True}


@asynccontextmanager
async def relay_daemon(directory: Path, streams: int) -> AsyncIterator[RunningDaemon]:
    """A daemon whose worker answers so many at once, after its first answer."""
    entry = f"  a: {{path: a.model, memory_mib: 100, n_parallel: {streams}}}\n"
    queue = f"queue: {{max_waiting: {max(streams, 256)}}}\n"
    async with running_daemon(directory, scripted_yaml(directory, entry, top=queue)) as daemon:
        first = await post(address_of(daemon), CHAT, Load(1, 1).body(0))
        await first.ended
        check(first.arrivals, Load(1, 1), 0)
        yield daemon


def address_of(daemon: RunningDaemon) -> tuple[str, int]:
    host, _, port = daemon.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def check(arrivals: Sequence[tuple[float, bytes]], load: Load, seed: int) -> None:
    """Assert that a stream has come to the last byte as the worker sends it."""
    status, body = read_body(arrivals)
    assert status == 200, body[:300]
    sent = whole_stream(load.events, seed, load.pad)
    if hashlib.sha256(body).digest() != hashlib.sha256(sent).digest():
        raise AssertionError(f"stream {seed} is not what was sent: {len(body)} bytes, not {len(sent)}")


@dataclass(frozen=True, slots=True)
class Streamed:
    """What became of many streams: all intact, and how they went."""

    streams: int
    events: int
    bytes: int
    late_p50_ms: float
    late_p99_ms: float
    """By how much an event came later after the one before it than its worker waits between them."""
    daemon_us: float
    """CPU time of the daemon for each event."""
    daemon_mib: float
    """What its resident memory grew by at most."""


async def stream_all(daemon: RunningDaemon, load: Load, *, ramp_s: float = 0.0) -> Streamed:
    """Ask for all streams, wait for their ends, and hold each to its hash. Raises `AssertionError` for a wrong one."""
    process = psutil.Process(daemon.process.pid)
    resident, begun = process.memory_info().rss, process.cpu_times()

    async def one(seed: int) -> Connection:
        await asyncio.sleep(ramp_s * seed / load.streams)
        connection = await post(address_of(daemon), CHAT, load.body(seed))
        await connection.ended
        return connection

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(seed)) for seed in range(load.streams)]
        top = group.create_task(_top(process, tasks))
    ended = process.cpu_times()
    connections = [task.result() for task in tasks]
    for seed, connection in enumerate(connections):
        check(connection.arrivals, load, seed)
    late_ms = sorted(
        1000 * (after - before - load.gap_s) for one in connections for before, after in pairwise(_times_s(one))
    )
    cpu_s = ended.user + ended.system - begun.user - begun.system
    events = load.streams * load.events
    return Streamed(
        load.streams,
        events,
        sum(len(whole_stream(load.events, seed, load.pad)) for seed in range(load.streams)),
        statistics.median(late_ms) if late_ms else 0.0,
        late_ms[int(0.99 * (len(late_ms) - 1))] if late_ms else 0.0,
        1e6 * cpu_s / events,
        (top.result() - resident) / MIB,
    )


async def _top(process: psutil.Process, tasks: Sequence[asyncio.Task[Any]]) -> int:
    """The most that the process had of resident memory while the tasks ran, in bytes."""
    most = process.memory_info().rss
    while not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=0.5)
        most = max(most, process.memory_info().rss)
    return most


def _times_s(connection: Connection) -> list[float]:
    """When events came, each of which is one arrival here."""
    return [at_s for at_s, data in connection.arrivals if b"data: {" in data]


class SlowReader:
    """A client that takes one byte in a second, and at last all the rest at once."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._socket = socket.socket()
        # With the usual megabytes of window the kernel, not the daemon, would hold what is not read.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._arrivals: list[tuple[float, bytes]] = []

    async def ask(self, daemon: RunningDaemon, load: Load) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, address_of(daemon))
        await loop.sock_sendall(self._socket, request_bytes(CHAT, load.body(self.seed)))

    async def dawdle(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        seconds = 0
        begun_s = loop.time()
        while await self._take(1):
            seconds += 1
            await asyncio.sleep(begun_s + seconds - loop.time())

    async def finish(self) -> None:
        while await self._take(1 << 18):
            pass

    async def _take(self, most: int) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self._socket, most)
        self._arrivals.append((0.0, data))
        return data

    def check(self, load: Load) -> None:
        check(self._arrivals, load, self.seed)

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Dawdled:
    readers: int
    bytes: int
    """Of all answers together: what there would be to send."""
    daemon_mib: float
    """What the daemon's resident memory grew by at most while they dawdled."""


async def dawdle_all(daemon: RunningDaemon, load: Load, seconds: float, *, to_the_end: bool) -> Dawdled:
    """As many readers as `load` has streams read a byte a second, until nothing moves or for `seconds`; then, if asked,
    the rest to the last byte.

    Raises `AssertionError` for a stream that is not what was sent.
    """
    process = psutil.Process(daemon.process.pid)
    resident = process.memory_info().rss
    readers = [SlowReader(seed) for seed in range(load.streams)]
    try:
        for reader in readers:
            await reader.ask(daemon, load)
        dawdling = [asyncio.create_task(reader.dawdle()) for reader in readers]
        most = await _until_still(process, seconds)
        for task in dawdling:
            task.cancel()
        for outcome in await asyncio.gather(*dawdling, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), f"a reader was left alone: {outcome!r}"
        if to_the_end:
            await asyncio.gather(*(reader.finish() for reader in readers))
            for reader in readers:
                reader.check(load)
    finally:
        for reader in readers:
            reader.close()
    size = sum(len(whole_stream(load.events, reader.seed, load.pad)) for reader in readers)
    return Dawdled(load.streams, size, (most - resident) / MIB)


async def _until_still(process: psutil.Process, seconds: float) -> int:
    """Until the process does next to nothing, for `seconds` at most; the most resident memory meanwhile, in bytes."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    most, idle = 0, False
    while not idle and loop.time() < end_s:
        before = process.cpu_times()
        await asyncio.sleep(1)
        after = process.cpu_times()
        idle = after.user + after.system - before.user - before.system <= STILL_CPU_S
        most = max(most, process.memory_info().rss)
    return most
