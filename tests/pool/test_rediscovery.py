"""Devices looked for again: a scripted NVIDIA driver and a scripted engine's list, a real pool with real workers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from support.machines import GIB, NvidiaGpu, ScriptedNvml
from support.running_pool import HOST, Counts, config, running_pool, scripted

from backends.base import ProbedDevice
from swapd.core.events import DevicesFound
from swapd.pool import nvml, rediscovery
from swapd.pool.devices import Machine, Sight, join
from swapd.pool.pool import Pool
from swapd.pool.rediscovery import Rediscovery, still_there

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"


class Box:
    """Two NVIDIA GPUs of different kinds, as the engine and the driver show them at this moment."""

    def __init__(self) -> None:
        self.gpus = [NvidiaGpu(f"0000{pci}") for pci in (FIRST, SECOND)]
        self.listed = {"CUDA0": FIRST, "CUDA1": SECOND}
        self.looks = 0

    def see(self) -> Machine:
        self.looks += 1
        driver = ScriptedNvml(*self.gpus)
        listed = tuple(ProbedDevice(name, "a GPU", "gpu", 24 * GIB, 23 * GIB, pci) for name, pci in self.listed.items())
        found = join(Sight(listed, nvml.cards(driver), ()), driver, dict)
        return Machine((*found.devices, HOST), found.meters, found.remarks)


def test_a_machine_that_is_as_it_was_has_everything() -> None:
    box = Box()
    assert still_there(box.see(), box.see()) == {"CUDA0", "CUDA1", "RAM"}


def test_a_gpu_that_the_engine_lists_no_more_is_missing() -> None:
    box = Box()
    known = box.see()
    del box.listed["CUDA1"]
    assert still_there(known, box.see()) == {"CUDA0", "RAM"}


def test_a_gpu_whose_driver_answers_no_more_is_missing_though_the_engine_lists_it_and_the_other_is_there() -> None:
    box = Box()
    known = box.see()
    box.gpus[0].lost = True
    assert still_there(known, box.see()) == {"CUDA1", "RAM"}


def test_a_name_that_means_another_gpu_now_is_not_the_one_it_was() -> None:
    """When the first GPU falls off the bus, CUDA calls the second one CUDA0."""
    box = Box()
    known = box.see()
    box.listed = {"CUDA0": SECOND}
    assert still_there(known, box.see()) == {"RAM"}


async def test_the_machine_is_looked_at_after_a_sleep_and_then_until_nothing_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rediscovery, "EVERY_S", 0.001)
    monkeypatch.setattr(rediscovery, "MISSING_EVERY_S", 0.002)
    box, sleeps = Box(), [0.0, 3600.0]
    posted: asyncio.Queue[DevicesFound] = asyncio.Queue()
    looking = Rediscovery(box.see(), box.see, lambda: sleeps.pop(0) if sleeps else 0.0, bool, posted.put_nowait)
    box.gpus[0].lost = True
    task = asyncio.create_task(looking.run())
    try:
        async with asyncio.timeout(5):
            assert await posted.get() == DevicesFound(frozenset({"CUDA1", "RAM"}), 3600.0)
            assert await posted.get() == DevicesFound(frozenset({"CUDA1", "RAM"}))
            box.gpus[0].lost = False
            while (await posted.get()).present != {"CUDA0", "CUDA1", "RAM"}:
                pass
        looks = box.looks
        await asyncio.sleep(0.05)
        assert box.looks == looks
        assert posted.empty()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_machine_is_looked_at_when_a_device_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rediscovery, "EVERY_S", 0.001)
    monkeypatch.setattr(rediscovery, "MISSING_EVERY_S", 0.002)
    box, posted = Box(), asyncio.Queue[DevicesFound]()
    looking = Rediscovery(box.see(), box.see, float, lambda: box.gpus[1].lost, posted.put_nowait)
    task = asyncio.create_task(looking.run())
    try:
        box.gpus[1].lost = True
        assert await asyncio.wait_for(posted.get(), 5) == DevicesFound(frozenset({"CUDA0", "RAM"}))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_idle_workers_leave_after_a_sleep_and_a_lost_gpus_requests_wait_until_it_is_back(tmp_path: Path) -> None:
    box = Box()
    known = box.see()
    there = scripted(tmp_path, "x", gpu=True, memory_mib=100, layers=4)
    async with running_pool(tmp_path, config(there), known) as (pool, counts):
        looking = Rediscovery(known, box.see, float, bool, pool.post)
        await pool.load("x")
        on = next(iter(set(pool.status().models[0].workers[0].reserved_bytes) - {"RAM"}))
        await looking.look(60.0)
        await until_left(pool, counts, ("x", "machine_slept", False))
        await pool.load("x")
        for gpu in box.gpus:
            gpu.lost = True
        await looking.look()
        await until_left(pool, counts, ("x", "device_lost", False))
        assert {device.name for device in pool.status().devices if device.lost} == {"CUDA0", "CUDA1"}
        waiting = asyncio.create_task(pool.load("x"))
        await pool.heartbeat()
        assert pool.status().models[0].workers == ()
        assert not waiting.done()
        box.gpus[0].lost = box.gpus[1].lost = False
        await looking.look()
        assert (await asyncio.wait_for(waiting, 20)).state == "ready"
        assert on in pool.status().models[0].workers[0].reserved_bytes
        kinds = await told(pool, until="loaded")
        assert kinds.count("device_lost") == kinds.count("device_found") == 2
        assert kinds.count("machine_slept") == 1


async def told(pool: Pool, until: str) -> list[str]:
    """The kinds of what has happened, up to the third of that kind."""
    kinds: list[str] = []
    async with asyncio.timeout(5), aclosing(pool.happenings()) as happenings:
        async for one in happenings:
            kinds.append(one.kind)
            if kinds.count(until) == 3:
                return kinds
    raise AssertionError


async def until_left(pool: Pool, counts: Counts, departure: tuple[str, str, bool]) -> None:
    async with asyncio.timeout(20):
        while departure not in counts.departures:
            await pool.heartbeat()
