"""Reloads under load break nothing and restart nothing but what was changed: scorecard 11."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

from support.checked_streams import Chat, Endings, clients
from support.oracle import check_books, check_nothing_leaked, held_without_workers
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import centiles, figure, seeded, times

STREAMS = 50
EDITED = "c.model, memory_mib: 12"
"""What is edited: another digit comes after it."""


async def reload_with(daemon: RunningDaemon, text: str) -> float:
    """How long until the edit counts, told by a signal."""
    seen = applied(daemon)
    daemon.config.write_text(text)
    began_s = time.monotonic()
    daemon.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(20), daemon.news:
        await daemon.news.wait_for(lambda: applied(daemon) > seen)
    return time.monotonic() - began_s


def applied(daemon: RunningDaemon) -> int:
    """Reloads in which the model that is edited had changed."""
    return sum(
        line.get("event") == "configuration reloaded" and "restarting edited" in line.get("changes", "")
        for line in daemon.lines
    )


async def test_reloads_break_no_stream_and_leave_workers_of_unchanged_models_alone(tmp_path: Path) -> None:
    rng, reloads, endings, drained = seeded(), times(100), Endings(), Endings()
    yaml = scripted_yaml(
        tmp_path,
        f"  busy: {{path: a.model, memory_mib: 10, n_parallel: {STREAMS}}}\n"
        "  idle: {path: b.model, memory_mib: 10}\n"
        f"  edited: {{path: {EDITED}}}\n",
    )
    took_s: list[float] = []
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:
        before = await held_without_workers(daemon)
        for model in ("busy", "idle"):
            assert await Chat(model, 1, 1).run(session, daemon.url) == "whole"
        pids = [await daemon.pid("busy"), await daemon.pid("idle")]
        enough = asyncio.Event()

        async def stream(seeds: random.Random) -> None:
            while not enough.is_set():
                chat = Chat("busy", seeds.randrange(2**31), seeds.randint(10, 40), 100, "gap_s=0.05")
                await chat.run(session, daemon.url, endings)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(STREAMS):
                tasks.create_task(stream(random.Random(rng.random())))
            for number in range(reloads):
                # This one is drained by the edit: what it has begun it finishes.
                chat = Chat("edited", number, 20, 100, "gap_s=0.01")
                task = asyncio.create_task(chat.run(session, daemon.url, drained))
                await asyncio.wait_for(chat.begun.wait(), 20)
                took_s.append(await reload_with(daemon, yaml.replace(EDITED, f"{EDITED}{number % 2}")))
                await task
            enough.set()
        assert [await daemon.pid("busy"), await daemon.pid("idle")] == pids
        assert [(await daemon.model(model))["loads"] for model in ("busy", "idle")] == [1, 1]
        restarted = (await daemon.model("edited"))["loads"]
        await check_books(daemon)
        await check_nothing_leaked(daemon, before)
    figure(
        11,
        f"{reloads} reloads, in force after {centiles(took_s)}; {STREAMS} streams at once {dict(endings.counts)}, "
        f"of the edited model {dict(drained.counts)}; restarts: 0 of unchanged models, {restarted - 1} of the edited",
    )
    assert set(endings.counts) == {"whole"}
    assert set(drained.counts) == {"whole"}
