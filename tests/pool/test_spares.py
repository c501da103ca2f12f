"""Spares with real processes: a load takes one, they end with the pool, and one that breaks is an event."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest
from support.running_pool import alive, ask, config, gone, running_pool, scripted, ticket
from support.scripted_backend import MIB, SparedBackend

from swapd.config.schema import Config
from swapd.errors import LoadFailedError
from swapd.pool.pool import Pool
from swapd.pool.status import DeviceStatus


def ram(pool: Pool) -> DeviceStatus:
    (device,) = pool.status().devices
    return device


async def spare_pid(pool: Pool) -> int:
    """The process of the spare, once it runs its own program."""
    while True:
        await pool.heartbeat()
        for child in psutil.Process().children():
            if child.is_running() and "--spare" in child.cmdline():
                workers = [worker.pid for one in pool.status().models for worker in one.workers]
                if child.pid not in workers:
                    return child.pid


async def answered_by(pool: Pool, model_id: str) -> int:
    async with pool.lease(ticket(model_id)) as lease:
        answer = json.loads(await ask(lease))
    await pool.heartbeat()
    return int(answer["pid"])


async def told(pool: Pool, kind: str) -> str:
    happenings = pool.happenings()
    async for happening in happenings:
        if happening.kind == kind:
            await happenings.aclose()
            return happening.message
    raise AssertionError("the pool ended")


def spared(tmp_path: Path, *names: str, **settings: object) -> Config:
    return config(*(scripted(tmp_path, name, **settings) for name in names))


async def test_a_load_takes_the_spare_and_another_one_follows(tmp_path: Path) -> None:
    async with running_pool(tmp_path, spared(tmp_path, "a"), backend=SparedBackend()) as (pool, counts):
        first = await spare_pid(pool)
        assert (ram(pool).reserved_bytes, ram(pool).spare_bytes) == (20 * MIB, 20 * MIB)
        assert await answered_by(pool, "a") == first
        assert counts.loads == [("a", "ready")]
        assert pool.logs("a") == ["was a spare"]
        assert await spare_pid(pool) != first
        assert (ram(pool).reserved_bytes, ram(pool).spare_bytes) == (120 * MIB, 20 * MIB)


async def test_the_spare_ends_with_the_pool(tmp_path: Path) -> None:
    async with running_pool(tmp_path, spared(tmp_path, "a"), backend=SparedBackend()) as (pool, _):
        pid = await spare_pid(pool)
    assert not alive(pid)


async def test_the_spare_ends_when_it_is_switched_off(tmp_path: Path) -> None:
    wanted = spared(tmp_path, "a")
    async with running_pool(tmp_path, wanted, backend=SparedBackend()) as (pool, _):
        pid = await spare_pid(pool)
        server = msgspec.structs.replace(wanted.server, warm_spare=False)
        await pool.configure(msgspec.structs.replace(wanted, server=server))
        await gone(pid)
        assert ram(pool).reserved_bytes == 0
        assert await answered_by(pool, "a") != pid


async def test_a_model_with_an_environment_is_started_afresh(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", {"env": {"GGML_LOG": "1"}})
    async with running_pool(tmp_path, config(model), backend=SparedBackend()) as (pool, _):
        pid = await spare_pid(pool)
        assert await answered_by(pool, "a") != pid
        assert await spare_pid(pool) == pid


async def test_a_stale_spare_is_not_used(tmp_path: Path) -> None:
    backend = SparedBackend()
    async with running_pool(tmp_path, spared(tmp_path, "a"), backend=backend) as (pool, _):
        pid = await spare_pid(pool)
        backend.version = "2"
        assert await answered_by(pool, "a") != pid
        await gone(pid)


async def test_a_spare_that_dies_is_an_event_and_the_next_load_does_without(tmp_path: Path) -> None:
    async with running_pool(tmp_path, spared(tmp_path, "a"), backend=SparedBackend()) as (pool, counts):
        pid = await spare_pid(pool)
        os.kill(pid, signal.SIGKILL)
        assert await told(pool, "spare_lost") == "the spare process of scripted ended with status -9"
        assert ram(pool).reserved_bytes == 0
        assert await answered_by(pool, "a") != pid
        assert counts.loads == [("a", "ready")]


async def test_a_spare_that_cannot_start_is_told_with_its_last_words_and_not_tried_in_a_loop(tmp_path: Path) -> None:
    backend = SparedBackend()
    backend.broken = "raise SystemExit('no bindings')"
    async with running_pool(tmp_path, spared(tmp_path, "a"), backend=backend) as (pool, _):
        message = await told(pool, "spare_lost")
        assert message == "the spare process of scripted ended with status 1; its last output: no bindings"
        await answered_by(pool, "a")
        assert [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE] == [
            worker.pid for one in pool.status().models for worker in one.workers
        ]


async def test_a_spare_that_is_stopped_while_it_loads_ends_as_a_worker_does(tmp_path: Path) -> None:
    async with running_pool(tmp_path, spared(tmp_path, "a", load_s=60.0), backend=SparedBackend()) as (pool, _):
        pid = await spare_pid(pool)
        waiting = asyncio.create_task(answered_by(pool, "a"))
        await told(pool, "loading")
        await pool.unload("a")
        await gone(pid)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_failed_load_of_a_spare_is_the_models_failure(tmp_path: Path) -> None:
    configuration = spared(tmp_path, "a", failure="exit")
    async with running_pool(tmp_path, configuration, backend=SparedBackend()) as (pool, counts):
        await spare_pid(pool)
        with pytest.raises(LoadFailedError, match="out of imaginary memory"):
            await answered_by(pool, "a")
        assert counts.loads == [("a", "failed")]
