"""What must hold of a daemon once nothing is asked of it: its books add up, and nothing that was used is still held."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from support.running_daemon import RunningDaemon

SETTLE_S = 20.0
"""Drains, stops and reaping take their time; what is still held after this is leaked."""


@dataclass(frozen=True)
class Held:
    """What an idle daemon without workers holds."""

    fds: int
    tasks: Counter[str]


async def held_without_workers(daemon: RunningDaemon) -> Held:
    """Unload every model and say what is held then."""
    async with aiohttp.ClientSession() as session:
        for model in (await daemon.status())["models"]:
            await (await session.post(f"{daemon.url}/swapd/v1/models/{model['id']}/unload")).read()
        # Its file is opened for the first that is written or asked.
        await (await session.get(f"{daemon.url}/swapd/v1/activity?limit=1")).read()
    await until(lambda: _is_quiet(daemon))
    return await _held(daemon)


async def check_books(daemon: RunningDaemon) -> dict[str, Any]:
    """Wait until nothing is under way; then the counts add up and the ledger is what /proc shows. The status."""
    await until(lambda: _no_requests(daemon))
    await until(lambda: _ledger_is_real(daemon))
    status = await daemon.status()
    counts = status["requests"]
    assert counts["accepted"] == counts["finished"] + counts["failed"] + counts["cancelled"], counts
    assert counts["waiting"] == counts["running"] == 0, counts
    return status


async def check_nothing_leaked(daemon: RunningDaemon, before: Held) -> None:
    """With every worker gone the daemon holds no more than it did before, and has no child, dead or alive."""
    after = await held_without_workers(daemon)
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + SETTLE_S
    # Connections that clients have closed are noticed a moment later.
    while (after.fds > before.fds or after.tasks - before.tasks) and loop.time() < deadline_s:
        await asyncio.sleep(0.1)
        after = await _held(daemon)
    assert after.fds <= before.fds, f"{after.fds} descriptors, {before.fds} before: {open_files(daemon)}"
    assert not after.tasks - before.tasks, f"tasks that are left: {after.tasks - before.tasks}"
    assert psutil.Process(daemon.process.pid).children(recursive=True) == []


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it holds. Raises `TimeoutError` after `SETTLE_S`."""
    async with asyncio.timeout(SETTLE_S):
        while not await holds():  # noqa: ASYNC110 - what it asks is another process
            await asyncio.sleep(0.02)


def open_files(daemon: RunningDaemon) -> list[str]:
    """What the daemon's descriptors are."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return sorted(found)


async def metrics(daemon: RunningDaemon) -> dict[str, float]:
    """Every sample of `/metrics` by its name and labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def total(samples: dict[str, float], name: str, **labels: str) -> float:
    """The sum over all samples of a metric with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for sample, value in samples.items()
        if re.split(r"[{ ]", sample, maxsplit=1)[0] == f"swapd_{name}" and all(one in sample for one in wanted)
    )


async def _held(daemon: RunningDaemon) -> Held:
    names = json.loads((await daemon.say_tasks())["names"])
    return Held(len(open_files(daemon)), Counter(names))


async def _is_quiet(daemon: RunningDaemon) -> bool:
    status = await daemon.status()
    idle = all(not model["workers"] for model in status["models"])
    return idle and not daemon.descendants() and not any(one["reserved_bytes"] for one in status["devices"])


async def _no_requests(daemon: RunningDaemon) -> bool:
    counts = (await daemon.status())["requests"]
    return counts["waiting"] == 0 and counts["running"] == 0


async def _ledger_is_real(daemon: RunningDaemon) -> bool:
    """Each worker is a process and each process a worker; what is reserved is the sum of what each has."""
    status = await daemon.status()
    workers = [worker for model in status["models"] for worker in model["workers"]]
    reserved: Counter[str] = Counter()
    for worker in workers:
        reserved.update(worker["reserved_bytes"])
    devices = {one["name"]: one["reserved_bytes"] for one in status["devices"]}
    pids = {worker["pid"] for worker in workers}
    return (
        pids == set(daemon.descendants())
        and all(reserved[name] == size for name, size in devices.items())
        and all(one["reserved_bytes"] <= one["budget_bytes"] for one in status["devices"])
        and all(worker["state"] == "ready" for worker in workers)
    )
