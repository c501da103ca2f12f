"""Programs that sleep in place of ending: the foreign server with vLLM's endpoints, real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from support.command_models import command
from support.running_pool import MIB, Pool, alive, ask, config, gone, running_pool, ticket

from backends.command import SleepSettings
from swapd.config.schema import Model
from swapd.core.spec import RAM
from swapd.pool.status import ModelStatus

BUDGET_MIB = 75
"""Room for one that is awake, with 60 MiB, and one that sleeps, with 10."""


def sleepy(name: str, *flags: str, timeout_s: float = 10.0) -> Model:
    sleep = SleepSettings(memory={RAM: 10 * MIB}, timeout=timeout_s)
    return command(name, "--enable-sleep-mode", *flags, memory={RAM: 60 * MIB}, sleep=sleep)


def model_of(pool: Pool, model_id: str) -> ModelStatus:
    return next(model for model in pool.status().models if model.id == model_id)


async def pid_of(pool: Pool, model_id: str) -> int:
    """The program's own process, as it answers."""
    async with pool.lease(ticket(model_id)) as lease:
        return int(json.loads(await ask(lease))["pid"])


async def until(pool: Pool, model_id: str, state: str) -> None:
    async with asyncio.timeout(10):
        while model_of(pool, model_id).state != state:
            await pool.heartbeat()
            await asyncio.sleep(0.01)


async def test_one_that_makes_room_sleeps_and_is_the_same_process_when_it_is_asked_again(tmp_path: Path) -> None:
    configuration = config(sleepy("a"), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, counts):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        (sleeper,) = model_of(pool, "a").workers
        assert (model_of(pool, "a").state, sleeper.state) == ("asleep", "asleep")
        assert sleeper.reserved_bytes == {RAM: 10 * MIB}
        (ram,) = pool.status().devices
        assert ram.reserved_bytes == 70 * MIB
        assert await pid_of(pool, "a") == first
        assert model_of(pool, "b").state == "asleep"
        assert model_of(pool, "a").loads == 1
        assert counts.loads == [("a", "ready"), ("b", "ready"), ("a", "woken")]
        assert counts.departures == [("a", "idle", True), ("b", "idle", True)]
        assert [one.state for one in pool.listed()] == ["ready", "asleep"]
    assert not alive(first), "nobody sleeps on when the daemon has ended"


@pytest.mark.parametrize("how", ["refuse", "hang", "die"])
async def test_one_that_does_not_fall_asleep_is_ended_and_its_room_is_given(tmp_path: Path, how: str) -> None:
    configuration = config(sleepy("a", "--sleeps", how, timeout_s=0.5), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, counts):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        assert not alive(first)
        assert model_of(pool, "a").state == "unloaded"
        assert await pid_of(pool, "a") != first
        assert counts.loads == [("a", "ready"), ("b", "ready"), ("a", "ready")]


@pytest.mark.parametrize("how", ["refuse", "hang", "die"])
async def test_one_that_does_not_wake_is_loaded_afresh_for_the_request_that_waits(tmp_path: Path, how: str) -> None:
    configuration = config(sleepy("a", "--wakes", how, timeout_s=0.5), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, counts):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        assert await pid_of(pool, "a") != first
        assert not alive(first)
        assert counts.loads == [("a", "ready"), ("b", "ready"), ("a", "failed"), ("a", "ready")]


async def test_what_forgot_its_weights_is_given_them_again_before_it_serves(tmp_path: Path) -> None:
    wake = ("/wake_up?tags=weights", '/collective_rpc {"method": "reload_weights"}', "/wake_up?tags=kv_cache")
    sleep = SleepSettings(memory={RAM: 10 * MIB}, path="/sleep?level=2", wake=wake)
    deep = command("a", "--enable-sleep-mode", memory={RAM: 60 * MIB}, sleep=sleep)
    async with running_pool(tmp_path, config(deep, sleepy("b"), budget_mib=BUDGET_MIB)) as (pool, counts):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        assert await pid_of(pool, "a") == first
        assert counts.loads[-1] == ("a", "woken")


async def test_nobody_waits_for_one_that_does_not_fall_asleep_once_it_is_to_end(tmp_path: Path) -> None:
    configuration = config(sleepy("a", "--sleeps", "hang", timeout_s=600.0), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, _):
        first = await pid_of(pool, "a")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pid_of(pool, "b"))
            await until(pool, "a", "stopping")
            async with asyncio.timeout(10):
                assert (await pool.unload("a")).state == "unloaded"
        assert not alive(first)
        await pool.unload("b")
        await pid_of(pool, "a")
        loading_b = asyncio.create_task(pid_of(pool, "b"))
        await until(pool, "a", "stopping")
        loading_b.cancel()
        await asyncio.wait({loading_b})
    # Left with one that is falling asleep: the end of the pool has its own bound.


async def test_one_that_is_killed_while_it_sleeps_is_told_of_and_loaded_afresh(tmp_path: Path) -> None:
    configuration = config(sleepy("a"), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, _):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        os.kill(first, signal.SIGKILL)
        await gone(first)
        await until(pool, "a", "unloaded")
        assert await pid_of(pool, "a") != first


async def test_one_that_sleeps_ends_when_it_is_unloaded_and_the_answer_waits_for_that(tmp_path: Path) -> None:
    configuration = config(sleepy("a"), sleepy("b"), budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, _):
        first = await pid_of(pool, "a")
        await pid_of(pool, "b")
        assert (await pool.unload("a")).state == "unloaded"
        assert not alive(first)


async def test_one_that_sleeps_ends_for_a_model_that_needs_what_it_keeps(tmp_path: Path) -> None:
    wide = command("wide", memory={RAM: 70 * MIB})
    configuration = config(sleepy("a"), sleepy("b"), wide, budget_mib=BUDGET_MIB)
    async with running_pool(tmp_path, configuration) as (pool, _):
        first, second = await pid_of(pool, "a"), await pid_of(pool, "b")
        await pid_of(pool, "wide")
        assert not alive(first)
        assert not alive(second)
