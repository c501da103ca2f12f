"""Clients that leave while they are queued, while their model loads, in their prompt, in their answer: scorecard 17."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest
from support.checked_streams import Chat, clients
from support.oracle import check_books, check_nothing_leaked, held_without_workers, until
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import centiles, figure, percentile, seeded, times

AT_ONCE = 25
CLEAR_S = 30.0
"""Longer than any phase is waited for."""
WORDS = {
    "queued": ("full", ""),
    "loading": ("slow", ""),
    "prefill": ("wide", f"diary prefill_s={CLEAR_S}"),
    "streaming": ("wide", "diary tokens=100000 gap_s=0.02 pad=100"),
}
"""Of each phase the model and the words."""
TOLD_S = 0.25


class Caller:
    """One request on a connection of its own, which is left without a word."""

    def __init__(self, request_id: str, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        self.request_id = request_id
        self._writer = writer
        self.reader = reader
        self.left_monotonic_s = 0.0
        self.left_unix_s = 0.0

    def leave(self, *, reset: bool) -> None:
        """Close the connection, or have the kernel reset it."""
        self.left_monotonic_s, self.left_unix_s = time.monotonic(), time.time()
        if reset:
            connection: socket.socket = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


async def call(daemon: RunningDaemon, request_id: str, model: str, words: str) -> Caller:
    host, _, port = daemon.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": words}], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return Caller(request_id, writer, reader)


async def said_by_worker(daemon: RunningDaemon, model: str, word: str) -> dict[str, float]:
    """When its worker said this of which request."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/swapd/v1/logs/{model}") as answer:
        lines = [line.split() for line in (await answer.text()).splitlines()]
    return {line[1]: float(line[2]) for line in lines if len(line) == 3 and line[0] == word}


async def waiting(daemon: RunningDaemon) -> set[str]:
    return {one["id"] for one in (await daemon.status())["in_flight"] if one["state"] == "waiting"}


async def leave_in(daemon: RunningDaemon, phase: str, ids: Iterable[str], rng: random.Random) -> list[float]:
    """Requests that are left in this phase. How long after that who held each knew of it, in seconds."""
    model, words = WORDS[phase]
    callers = [await call(daemon, request_id, model, words) for request_id in ids]
    wanted = {caller.request_id for caller in callers}

    async def arrived() -> bool:
        if phase in ("queued", "loading"):
            return wanted <= await waiting(daemon)
        return wanted <= set(await said_by_worker(daemon, model, "took"))

    await until(arrived)
    if phase == "streaming":
        await asyncio.gather(*(caller.reader.readuntil(b"data: ") for caller in callers))
    for caller in callers:
        caller.leave(reset=rng.random() < 0.5)
        await asyncio.sleep(rng.uniform(0.0, 0.01))
    if phase in ("queued", "loading"):
        lines = [await daemon.logged(event="request", request_id=caller.request_id) for caller in callers]
        assert {line["status"] for line in lines} == {499}
        told_at_s = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
        return [at_s - caller.left_unix_s for at_s, caller in zip(told_at_s, callers, strict=True)]

    async def told() -> bool:
        return wanted <= set(await said_by_worker(daemon, model, "left"))

    await until(told)
    left = await said_by_worker(daemon, model, "left")
    return [left[caller.request_id] - caller.left_monotonic_s for caller in callers]


@pytest.mark.timed
async def test_who_leaves_is_forgotten_at_once_wherever_the_request_is(tmp_path: Path) -> None:
    rng, count = seeded(), times(250)
    yaml = scripted_yaml(
        tmp_path,
        "  full: {path: a.model, memory_mib: 10, n_parallel: 1}\n"
        "  slow: {path: b.model, memory_mib: 10, load_s: 1}\n"
        f"  wide: {{path: c.model, memory_mib: 10, n_parallel: {AT_ONCE}}}\n",
    )
    told_s: dict[str, list[float]] = {phase: [] for phase in WORDS}
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:
        before = await held_without_workers(daemon)
        blocker = await call(daemon, "blocker", "full", f"prefill_s={CLEAR_S * 20}")
        await until(lambda: _runs(daemon, "full"))
        for phase, times_s in told_s.items():
            while len(times_s) < count:
                ids = [f"{phase}-{len(times_s) + number}" for number in range(min(AT_ONCE, count - len(times_s)))]
                times_s += await leave_in(daemon, phase, ids, rng)
                if phase == "loading":
                    await until(lambda: _runs(daemon, "slow", running=0))
                    await (await session.post(f"{daemon.url}/swapd/v1/models/slow/unload")).read()
        blocker.leave(reset=True)
        status = await check_books(daemon)
        # Every place is free again.
        asks = [Chat("wide", number, 3) for number in range(AT_ONCE)] + [Chat("full", 1, 3)]
        assert set(await asyncio.gather(*(ask.run(session, daemon.url) for ask in asks))) == {"whole"}
        await check_nothing_leaked(daemon, before)
    for phase, times_s in told_s.items():
        figure(17, f"{len(times_s)} left while {phase}: known after {centiles(times_s)}")
    assert status["requests"]["cancelled"] == 4 * count + 1
    for phase, times_s in told_s.items():
        assert percentile(times_s, 99) <= TOLD_S, phase


async def _runs(daemon: RunningDaemon, model: str, running: int = 1) -> bool:
    one = await daemon.model(model)
    return one["state"] == "ready" and one["running"] == running
