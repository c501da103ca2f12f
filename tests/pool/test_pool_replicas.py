"""Several processes of one model: leased side by side, seen in the status, outliving each other."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from support.running_pool import ask, config, gone, running_pool, scripted, ticket

from swapd.config.schema import Model
from swapd.pool.pool import Pool
from swapd.pool.status import ModelStatus


def hot(directory: Path, replicas: int = 2) -> Model:
    return scripted(directory, "hot", {"replicas": replicas}, n_parallel=1, memory_mib=100)


def status_of(pool: Pool) -> ModelStatus:
    (model,) = pool.status().models
    return model


async def test_two_requests_run_on_two_workers_each_with_a_socket_of_its_own(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(hot(tmp_path))) as (pool, counts), AsyncExitStack() as leases:
        first = await leases.enter_async_context(pool.lease(ticket("hot", "1")))
        second = await leases.enter_async_context(pool.lease(ticket("hot", "2")))
        assert first.address != second.address
        for lease in (first, second):
            assert await ask(lease, "hello")
        model = status_of(pool)
        assert (model.replicas, model.slots, model.running) == (2, 1, 2)
        assert [worker.running for worker in model.workers] == [1, 1]
        assert len({worker.pid for worker in model.workers}) == 2
        assert counts.loads == [("hot", "ready")] * 2


async def test_one_that_is_killed_leaves_the_other_serving(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(hot(tmp_path))) as (pool, counts), AsyncExitStack() as leases:
        await leases.enter_async_context(pool.lease(ticket("hot", "1")))
        other = await leases.enter_async_context(pool.lease(ticket("hot", "2")))
        pid = status_of(pool).workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with asyncio.timeout(10):
            while not counts.departures:
                await pool.heartbeat()
        assert await ask(other, "still there?")
        assert [worker.state for worker in status_of(pool).workers] == ["ready"]


async def test_unload_takes_them_all_and_load_gives_one(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(hot(tmp_path))) as (pool, _):
        async with pool.lease(ticket("hot", "1")), pool.lease(ticket("hot", "2")):
            pass
        assert len(status_of(pool).workers) == 2
        assert (await pool.unload("hot")).workers == ()
        assert len((await pool.load("hot")).workers) == 1


async def test_a_file_that_was_replaced_is_noticed_before_one_more_is_loaded_from_it(tmp_path: Path) -> None:
    model = hot(tmp_path)
    async with running_pool(tmp_path, config(model)) as (pool, _), pool.lease(ticket("hot", "1")):
        old = status_of(pool).workers[0].pid
        (tmp_path / "hot.model").write_text("model, another one")
        async with pool.lease(ticket("hot", "2")):
            assert [(worker.pid == old, worker.state) for worker in status_of(pool).workers] == [
                (True, "draining"),
                (False, "ready"),
            ]


async def test_a_lower_number_in_the_configuration_takes_effect_without_a_new_worker(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(hot(tmp_path))) as (pool, counts):
        async with pool.lease(ticket("hot", "1")), pool.lease(ticket("hot", "2")):
            pids = [worker.pid for worker in status_of(pool).workers]
        await pool.configure(config(hot(tmp_path, replicas=1)))
        async with asyncio.timeout(10):
            while not counts.departures:
                await pool.heartbeat()
        assert [worker.pid for worker in status_of(pool).workers] == pids[:1]
        assert counts.departures == [("hot", "reload", False)]
