"""A full disk, a worker that writes without end, a log that takes nothing: no request fails. Scorecard 18."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import aiohttp
from support.checked_streams import Chat, Endings, clients
from support.full_disk import small_disk
from support.oracle import check_books, check_nothing_leaked, held_without_workers, metrics, total, until
from support.running_daemon import TESTS, running_daemon, scripted_yaml
from support.scorecard import figure, seeded, times

TWO = "  loud: {path: a.model, memory_mib: 10, n_parallel: 8}\n  calm: {path: b.model, memory_mib: 10}\n"


async def test_requests_are_served_while_the_disk_is_full_and_a_worker_writes_a_gigabyte(tmp_path: Path) -> None:
    rng, size_mib, endings = seeded(), times(1_024), Endings()
    with small_disk(tmp_path / "state") as disk:
        async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon, clients() as session:
            before = await held_without_workers(daemon)
            disk.fill(daemon.process.pid)
            began_s, enough = time.monotonic(), asyncio.Event()

            async def go_on(model: str, seeds: random.Random) -> None:
                while not enough.is_set():
                    await Chat(model, seeds.randrange(2**31), 10, 100).run(session, daemon.url, endings)

            async with asyncio.TaskGroup() as tasks:
                for model in ("loud", "calm"):
                    tasks.create_task(go_on(model, random.Random(rng.random())))
                for _ in range(8):
                    await Chat("loud", 5, 5, words=f"shout_mib={size_mib // 8}").run(session, daemon.url, endings)
                enough.set()
            took_s = time.monotonic() - began_s
            samples = await metrics(daemon)
            disk.free(daemon.process.pid)
            status = await check_books(daemon)
            await check_nothing_leaked(daemon, before)
            said = {line["event"] for line in daemon.lines if line.get("level") == "error"}
    dropped = total(samples, "activity_dropped_rows_total")
    figure(
        18,
        f"{size_mib} MiB of stderr and {disk.kind}, {took_s:.1f} s: {dict(endings.counts)}; {dropped:.0f} rows dropped",
    )
    assert set(endings.counts) == {"whole"}
    assert status["requests"]["failed"] == 0
    assert dropped > 0
    assert said == {"activity is not written, only counted as dropped"}


async def test_a_log_that_takes_nothing_is_nobodys_trouble(tmp_path: Path) -> None:
    address, config = tmp_path / "s", tmp_path / "swapd.yaml"
    config.write_text(scripted_yaml(tmp_path, TWO).replace("127.0.0.1:0", f"unix:{address}"))
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        daemon = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "support.scripted_daemon",
            str(config),
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stderr=full,
            stdout=full,
        )
    finally:
        os.close(full)
    try:
        await until(lambda: asyncio.to_thread(address.exists))
        connector = aiohttp.UnixConnector(str(address), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            endings = [await Chat("calm", number, 3).run(session, "http://localhost") for number in range(20)]
        assert endings == ["whole"] * 20
        daemon.terminate()
        assert await asyncio.wait_for(daemon.wait(), 20) == 0
    finally:
        if daemon.returncode is None:
            daemon.kill()
        await daemon.wait()
