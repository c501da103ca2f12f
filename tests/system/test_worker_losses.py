"""Workers that are killed, stopped and crash at any moment: scorecard 7, 8 and 19."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from support.checked_streams import Chat, Endings, clients
from support.oracle import check_books, check_nothing_leaked, held_without_workers, metrics, total
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import REPEATS, centiles, figure, percentile, seeded, times

STALL_S = 2.0
"""A machine that is busy with other things must not look like a worker that hangs."""
KILLS_EACH = 4
"""Workers of one model that are lost; of five in a minute the last would have it wait."""


def models(count: int, keys: str = "") -> str:
    return "".join(f"  m{number}: {{path: a.model, memory_mib: 2{keys}}}\n" for number in range(count))


async def pid_of(daemon: RunningDaemon, model: str) -> int | None:
    """Of its worker, whatever that is doing."""
    workers = (await daemon.model(model))["workers"]
    return workers[0]["pid"] if workers else None


async def kill_again_and_again(
    daemon: RunningDaemon, session: aiohttp.ClientSession, model: str, rng: random.Random, into: Endings
) -> None:
    """Each time at another moment of a few streams: before their worker has them, in their prompts or answers."""
    kills = KILLS_EACH
    while kills:
        # A worker that has served again is forgiven its crash, so that no back-off keeps the next one away.
        await Chat(model, rng.randrange(2**31), 1).run(session, daemon.url, into)
        if rng.random() < 0.05 and (pid := await pid_of(daemon, model)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            kills -= 1
        async with asyncio.TaskGroup() as streams:
            for _ in range(rng.randint(1, 3)):
                words = f"gap_s={rng.uniform(0.001, 0.01):.4f} prefill_s={rng.uniform(0.0, 0.03):.4f}"
                chat = Chat(model, rng.randrange(2**31), rng.randint(5, 30), rng.choice((0, 20, 2000)), words)
                streams.create_task(chat.run(session, daemon.url, into))
            await asyncio.sleep(rng.uniform(0.0, 0.25))
            pid = await pid_of(daemon, model)
            if pid is not None and kills:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                kills -= 1


async def test_a_worker_killed_at_any_moment_never_makes_a_broken_answer_look_whole(tmp_path: Path) -> None:
    rng, kills, endings = seeded(), times(1_000), Endings()
    names = [f"m{number}" for number in range(-(-kills // KILLS_EACH))]
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, models(len(names)))) as daemon, clients() as session:
        before = await held_without_workers(daemon)
        todo = iter(names)

        async def kill_in_turn() -> None:
            for name in todo:
                await kill_again_and_again(daemon, session, name, random.Random(rng.random()), endings)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(12):
                tasks.create_task(kill_in_turn())
        status = await check_books(daemon)
        lost = total(await metrics(daemon), "unloads_total", reason="crashed")
        await check_nothing_leaked(daemon, before)
    figure(7, f"{kills} SIGKILLs, {lost:.0f} of them while it served: {dict(endings.counts)}, {dict(endings.codes)}")
    assert endings.broken == []
    assert endings.counts["whole"] > kills
    assert endings.counts["error"] > 0
    assert status["requests"]["accepted"] >= endings.counts.total()


async def stopped(daemon: RunningDaemon, session: aiohttp.ClientSession, model: str, seed: int, into: Endings) -> float:
    """How long after its worker was stopped in the middle of an answer a client knows."""
    chat = Chat(model, seed, 1_000, words="gap_s=0.02")
    task = asyncio.create_task(chat.run(session, daemon.url, into))
    await chat.begun.wait()
    pid = await pid_of(daemon, model)
    assert pid is not None
    began_s = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    assert await task == "error"
    return time.monotonic() - began_s


@pytest.mark.timed
async def test_a_stopped_worker_is_found_in_time_while_the_others_go_on(tmp_path: Path) -> None:
    rng, stops, at_once = seeded(), times(200, at_least=20), 20
    names = [f"m{number}" for number in range(max(at_once, stops // KILLS_EACH))]
    victims, others, seen_s = Endings(), Endings(), []
    yaml = scripted_yaml(
        tmp_path, models(len(names), f", stall_timeout: {STALL_S:g}s") + "  other: {path: b.model, memory_mib: 2}\n"
    )
    async with running_daemon(tmp_path, yaml) as daemon, clients(600) as session:
        before = await held_without_workers(daemon)
        enough = asyncio.Event()

        async def go_on() -> None:
            while not enough.is_set():
                await Chat("other", rng.randrange(2**31), 20, 50, "gap_s=0.01").run(session, daemon.url, others)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(go_on())
            while len(seen_s) < stops:
                # Other ones each time: no model may lose five in a minute, and each has served since its last.
                count = min(at_once, stops - len(seen_s))
                batch = [names[(len(seen_s) + number) % len(names)] for number in range(count)]
                once = [Chat(name, 1, 1) for name in batch]
                endings = await asyncio.gather(*(chat.run(session, daemon.url) for chat in once))
                assert set(endings) == {"whole"}, [bytes(chat.body) for chat in once if chat.status != 200]
                seen_s += await asyncio.gather(
                    *(stopped(daemon, session, name, rng.randrange(2**31), victims) for name in batch)
                )
            enough.set()
        await check_books(daemon)
        await check_nothing_leaked(daemon, before)
    figure(
        8,
        f"{stops} SIGSTOPs, told after {centiles(seen_s)} (stall_timeout {STALL_S:g} s); "
        f"elsewhere {dict(others.counts)}",
    )
    assert max(seen_s) <= STALL_S + 1.0
    assert set(victims.counts) == {"error"}
    assert set(others.counts) == {"whole"}


@pytest.mark.timed
async def test_a_model_whose_worker_always_dies_is_started_a_few_times_a_minute_and_else_refused_at_once(
    tmp_path: Path,
) -> None:
    length_s = 60.0 * REPEATS
    yaml = scripted_yaml(
        tmp_path,
        "  loads: {path: a.model, memory_mib: 5, failure: exit}\n"
        "  serves: {path: b.model, memory_mib: 5}\n"
        "  sometimes: {path: c.model, memory_mib: 5}\n",
    )
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:
        until_s = time.monotonic() + length_s

        async def insist(model: str, *words: str) -> None:
            for word in itertools.cycle(words):
                if time.monotonic() > until_s:
                    return
                chat = Chat(model, 1, 3, words=word)
                ending = await chat.run(session, daemon.url)
                assert ending != "broken", (chat.status, bytes(chat.body))
                assert ending != "refused" or chat.status == 503
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(insist("loads", ""))
            tasks.create_task(insist("serves", "die_after=1"))
            tasks.create_task(insist("sometimes", "die_after=1", ""))
        await check_books(daemon)
        spawns = {model: await spawned(daemon, model) for model in ("loads", "serves", "sometimes")}
        refused_s = sorted(
            line["duration_s"] for line in daemon.lines if line.get("event") == "request" and line.get("status") == 503
        )
    # Those that were there when a load began have waited for its end.
    at_once_s = refused_s[: -sum(spawns.values())]
    figure(19, f"in {length_s:g} s of crash loops {spawns} spawns; {len(at_once_s)} refusals, {centiles(at_once_s)}")
    for model, count in spawns.items():
        assert count <= 5, model
    assert percentile(at_once_s, 99) <= 0.05


async def spawned(daemon: RunningDaemon, model: str) -> int:
    """How many loads of a model have ended."""
    return int(total(await metrics(daemon), "model_loads_total", model=model))
