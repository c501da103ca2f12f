"""The daemon's own end, killed at any moment or told to stop under load: scorecard 9 and 10."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from support.checked_streams import Chat, Endings, clients
from support.command_models import SERVER
from support.oracle import until
from support.running_daemon import TESTS, running_daemon, scripted_yaml, stop
from support.running_pool import alive, gone
from support.scorecard import centiles, figure, seeded, times

STREAMS = 50
AT_ONCE = 2
SURVIVE_S = 1.0
WRAPPED = f"""\
  own: {{path: a.model, memory_mib: 10}}
  loading: {{path: a.model, memory_mib: 10, load_s: 60}}
  wrapped:
    backend: command
    cmd: [sh, -c, "{sys.executable} -S {SERVER} --uds $0 --children & wait", "${{SOCKET}}"]
    proxy: unix:${{SOCKET}}
    memory: {{RAM: 10MiB}}
"""
"""Workers of ours, and a program behind a shell with a child in its group and one in a session of its own."""


@asynccontextmanager
async def zygote() -> AsyncIterator[Callable[[Path, Path], Awaitable[int]]]:
    """Makes daemons of a configuration and a log; says their process ids."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.daemon_zygote",
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    turn = asyncio.Lock()

    async def make(config: Path, log: Path) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        async with turn:
            process.stdin.write(f"{config} {log}\n".encode())
            return int(await process.stdout.readline())

    try:
        yield make
    finally:
        process.kill()
        await process.communicate()


def configured(directory: Path, address: Path) -> Path:
    """A configuration in a directory of its own."""
    directory.mkdir()
    config = directory / "swapd.yaml"
    config.write_text(scripted_yaml(directory, WRAPPED).replace("127.0.0.1:0", f"unix:{address}"))
    return config


async def killed_at_a_moment(
    directory: Path, make: Callable[[Path, Path], Awaitable[int]], rng: random.Random
) -> tuple[int, float]:
    """How many processes a daemon had when it was killed, and how long the last of them outlived it."""
    log, address = directory / "log", directory / "s"
    pid = await make(configured(directory, address), log)
    daemon = psutil.Process(pid)
    asks: list[asyncio.Task[None]] = []
    try:
        await until(lambda: asyncio.to_thread(address.exists))
        asks = [asyncio.create_task(ask(address, model)) for model in ("own", "wrapped", "loading")]
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        # Stopped first, so that it makes no process between the count and the end.
        daemon.suspend()
        children = [child.pid for child in daemon.children(recursive=True)]
        daemon.kill()
        killed_s = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.gather(*(gone(child) for child in children))
        outlived_s = time.monotonic() - killed_s
        assert [child for child in children if alive(child)] == []
        assert named_after(directory) == []
        return len(children), outlived_s
    finally:
        with suppress(psutil.NoSuchProcess):
            daemon.kill()
        await asyncio.gather(*asks, return_exceptions=True)


async def ask(address: Path, model: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(address))) as session:
        body = Chat(model, 1, 10_000, words="gap_s=0.05 pause=30").document()
        async with session.post("http://localhost/v1/chat/completions", json=body) as answer:
            async for _ in answer.content.iter_any():
                pass


def named_after(directory: Path) -> list[str]:
    """Processes whose command line has the directory in it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if f"{directory}/" in words:
            found.append(words)
    return found


@pytest.mark.timed
async def test_nothing_outlives_a_daemon_that_is_killed_at_any_moment_wrapped_programs_included(tmp_path: Path) -> None:
    rng, kills = seeded(), times(200)
    directories = (tmp_path / f"d{number}" for number in range(kills))
    outcomes: list[tuple[int, float]] = []

    async with zygote() as make, asyncio.TaskGroup() as tasks:

        async def kill_in_turn(seeds: random.Random) -> None:
            for directory in directories:
                outcome = await killed_at_a_moment(directory, make, seeds)
                outcomes.append(outcome)

        for _ in range(AT_ONCE):
            tasks.create_task(kill_in_turn(random.Random(rng.random())))
    children = sum(count for count, _ in outcomes)
    outlived_s = [outlived for _, outlived in outcomes]
    figure(9, f"{kills} SIGKILLs of daemons with {children} processes below them; the last gone {centiles(outlived_s)}")
    assert len(outcomes) == kills
    assert children > kills
    assert max(outlived_s) <= SURVIVE_S


async def test_a_daemon_that_is_told_to_stop_breaks_none_of_fifty_streams_and_refuses_what_is_new(
    tmp_path: Path,
) -> None:
    rng, endings, late = seeded(), Endings(), Endings()
    yaml = scripted_yaml(tmp_path, f"  a: {{path: a.model, memory_mib: 10, n_parallel: {STREAMS}}}\n")
    async with running_daemon(tmp_path, yaml) as daemon, clients() as session:
        chats = [Chat("a", rng.randrange(2**31), rng.randint(20, 40), 100, "gap_s=0.05") for _ in range(STREAMS)]
        tasks = [asyncio.create_task(chat.run(session, daemon.url, endings)) for chat in chats]
        await asyncio.wait_for(asyncio.gather(*(chat.begun.wait() for chat in chats)), 20)
        stop(daemon, signal.SIGTERM)
        await daemon.logged(event="draining")
        for _ in itertools.repeat(None, 10):
            await Chat("a", 1, 1).run(session, daemon.url, late)
        await asyncio.gather(*tasks)
        assert await asyncio.wait_for(daemon.process.wait(), 10) == 0
    figure(10, f"SIGTERM under {STREAMS} streams: {dict(endings.counts)}; new ones: {json.dumps(dict(late.statuses))}")
    assert set(endings.counts) == {"whole"}
    assert endings.counts.total() == STREAMS
    assert late.codes == {"shutting_down": 10}
    assert late.statuses == {503: 10}
