"""Six named faults at random moments under load; at the end the books add up and nothing is left.

Ten minutes in a whole run: `SWAPD_FAULTS_S=600`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from support.checked_streams import Chat, Endings, clients
from support.full_disk import Disk, small_disk
from support.oracle import check_books, check_nothing_leaked, held_without_workers, metrics, total
from support.running_daemon import RunningDaemon, running_daemon, scripted_yaml
from support.scorecard import figure, seeded

LENGTH_S = float(os.environ.get("SWAPD_FAULTS_S", "20"))
CLIENTS = 12
MODELS = 8
"""Of which four fit."""
MARGIN_S = 100.0


class Storm:
    """The load and the faults, all chosen by one seed."""

    def __init__(self, daemon: RunningDaemon, session: aiohttp.ClientSession, disk: Disk, rng: random.Random) -> None:
        self.daemon = daemon
        self.session = session
        self.disk = disk
        self.rng = rng
        self.endings = Endings()
        self.happened: Counter[str] = Counter()
        self.asked = 0
        self.left = 0
        self.until_s = time.monotonic() + LENGTH_S

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until_s

    def chat(self, **fields: object) -> Chat:
        rng = self.rng
        self.asked += 1
        words = f"gap_s={rng.uniform(0.0, 0.02):.4f} prefill_s={rng.choice((0.0, 0.0, rng.uniform(0.0, 0.5))):.3f}"
        size = {"tokens": rng.randint(1, 40), "pad": rng.choice((0, 10, 3000))}
        model = f"m{rng.randrange(MODELS)}"
        return Chat(model, rng.randrange(2**31), words=words, **(size | fields))  # type: ignore[arg-type]

    async def client(self) -> None:
        while not self.is_over:
            if await self.chat().run(self.session, self.daemon.url, self.endings) == "refused":
                await asyncio.sleep(0.2)  # it was told to come again later

    async def faults(self) -> None:
        """One after the other, a moment apart; what takes longer goes on meanwhile."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.worker_sigkill,
            self.worker_sigstop,
            self.slow_reader,
            self.disconnect,
            self.reload,
            self.disk_full,
        ]
        todo = self.rng.sample(kinds, len(kinds))
        async with asyncio.TaskGroup() as running:
            while not self.is_over:
                # Of a model that loses five workers in a minute little more than refusals would be seen.
                kind = todo.pop() if todo else self.rng.choices(kinds, weights=(1, 1, 4, 12, 2, 1))[0]
                self.happened[kind.__name__] += 1
                running.create_task(kind())
                await asyncio.sleep(self.rng.uniform(0.0, 0.4))

    def _signal_one(self, number: signal.Signals) -> None:
        pids = self.daemon.descendants()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(sorted(pids)), number)

    async def worker_sigkill(self) -> None:
        self._signal_one(signal.SIGKILL)

    async def worker_sigstop(self) -> None:
        self._signal_one(signal.SIGSTOP)

    async def slow_reader(self) -> None:
        chat = self.chat(tokens=150, pad=10_000, dawdle_s=self.rng.uniform(0.5, 4.0))
        await chat.run(self.session, self.daemon.url, self.endings)

    async def disconnect(self) -> None:
        task = asyncio.create_task(self.chat(tokens=500).run(self.session, self.daemon.url))
        await asyncio.wait({task}, timeout=self.rng.uniform(0.0, 1.0))
        task.cancel()
        await asyncio.wait({task})
        self.left += 1

    async def reload(self) -> None:
        size_mib, kept = self.rng.randint(55, 60), self.rng.choice((MODELS, MODELS, MODELS - 1))
        text = models(kept, size_mib) if self.rng.random() < 0.8 else "  m0: {pth: nowhere}\n"
        whole = self.daemon.config.read_text()
        self.daemon.config.write_text(whole[: whole.index("models:\n")] + f"models:\n{text}")
        self.daemon.process.send_signal(signal.SIGHUP)

    async def disk_full(self) -> None:
        self.disk.fill(self.daemon.process.pid)
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        self.disk.free(self.daemon.process.pid)


def models(count: int, size_mib: int) -> str:
    # The size of the last one alone changes, so that a reload leaves the others where they are.
    sizes = [60] * (MODELS - 1) + [size_mib]
    keys = "stall_timeout: 1s, load_timeout: 2s, n_parallel: 4"
    return "".join(f"  m{n}: {{path: a.model, memory_mib: {sizes[n]}, {keys}}}\n" for n in range(count))


@pytest.mark.timeout(LENGTH_S + MARGIN_S)
async def test_six_faults_at_random_moments_under_load_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    rng = seeded()
    yaml = scripted_yaml(tmp_path, models(MODELS, 60), server="  drain: 5s\n", top="queue: {timeout: 30s}\n")
    with small_disk(tmp_path / "state") as disk:
        async with running_daemon(tmp_path, yaml) as daemon, clients(LENGTH_S + MARGIN_S) as session:
            before = await held_without_workers(daemon)
            storm = Storm(daemon, session, disk, rng)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(storm.faults())
                for _ in range(CLIENTS):
                    tasks.create_task(storm.client())
            disk.free(daemon.process.pid)
            for pid in daemon.descendants():
                os.kill(pid, signal.SIGCONT)
            daemon.config.write_text(yaml)
            daemon.process.send_signal(signal.SIGHUP)
            status = await check_books(daemon)
            samples = await metrics(daemon)
            await check_nothing_leaked(daemon, before)
            assert daemon.process.returncode is None
    answered = total(samples, "requests_total", endpoint="/v1/chat/completions")
    endings = storm.endings
    figure(
        "faults",
        f"{LENGTH_S:g} s ({disk.kind}): {dict(storm.happened)}; {storm.asked} requests: "
        f"{dict(endings.counts)}, {storm.left} left; {dict(endings.codes)}; "
        f"{total(samples, 'model_loads_total'):.0f} loads, "
        f"{total(samples, 'activity_dropped_rows_total'):.0f} rows dropped",
    )
    assert endings.broken == []
    assert endings.counts["whole"] > 0
    assert endings.counts.total() + storm.left == storm.asked
    # Who left at once may not have been heard at all.
    assert storm.asked - storm.left <= answered <= storm.asked
    assert status["requests"]["finished"] >= endings.counts["whole"]
    assert len(storm.happened) == 6
