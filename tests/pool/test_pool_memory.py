"""The pool with a metered GPU and real processes: read before a load, watched, and loads that run out of memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.machines import ScriptedMeter
from support.running_pool import HOST, HOST_ONLY, MIB, ask, config, running_pool, scripted, ticket

from swapd.errors import LoadFailedError
from swapd.pool.devices import Device, Machine
from swapd.pool.learned import FILE_NAME, Lesson, Store
from swapd.pool.measure import Surplus
from swapd.pool.pool import Pool
from swapd.pool.status import DeviceStatus, ModelStatus


def machine(meter: ScriptedMeter) -> Machine:
    return Machine((Device("CUDA0", "a GPU", 1000 * MIB, 1000 * MIB), HOST), {"CUDA0": meter})


def model_of(pool: Pool, model_id: str) -> ModelStatus:
    return next(model for model in pool.status().models if model.id == model_id)


def gpu_of(pool: Pool) -> DeviceStatus:
    return next(device for device in pool.status().devices if device.name == "CUDA0")


async def one_request(pool: Pool, model_id: str) -> None:
    async with pool.lease(ticket(model_id)) as lease:
        assert await ask(lease)


async def until(pool: Pool, holds: Callable[[], bool]) -> None:
    """Let the pool's loop turn until something holds."""
    async with asyncio.timeout(20):
        while not holds():
            await pool.heartbeat()


async def test_a_gpu_is_read_before_a_load_and_the_worker_is_told_its_layers(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=900, each_mib=400)
    model = scripted(tmp_path, "a", memory_mib=400, layers=4, gpu=True)
    async with running_pool(tmp_path, config(model), machine(meter)) as (pool, _):
        assert meter.readings == 0, "nobody has asked for it yet"
        await one_request(pool, "a")
        assert meter.readings >= 1
        (worker,) = model_of(pool, "a").workers
        assert worker.reserved_bytes == {"CUDA0": 400 * MIB, "RAM": 0}
        assert worker.placement == "all layers on CUDA0, CUDA0 400 MiB"
        await until(pool, lambda: gpu_of(pool).free_bytes == 500 * MIB)
        assert gpu_of(pool).others_bytes == 100 * MIB


async def test_what_a_worker_holds_is_told_apart_from_what_others_hold(tmp_path: Path) -> None:
    """It was reserved 400 MiB and takes 450: what is over is as lost as the 50 that others have."""
    meter = ScriptedMeter(free_mib=950, each_mib=450, tells_who=True)
    models = [scripted(tmp_path, name, memory_mib=400, gpu=True) for name in ("a", "b")]
    async with running_pool(tmp_path, config(*models), machine(meter)) as (pool, _):
        await one_request(pool, "a")
        await pool._metering.sample("CUDA0")
        await pool.heartbeat()
        assert gpu_of(pool).free_bytes == 500 * MIB
        assert gpu_of(pool).others_bytes == 100 * MIB
        await one_request(pool, "b")
        assert {model_of(pool, name).state for name in "ab"} == {"ready"}


async def test_a_load_that_runs_out_of_gpu_memory_is_retried_with_fewer_layers(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=700)
    model = scripted(tmp_path, "a", memory_mib=800, layers=8, gpu=True, gpu_room_layers=7)
    async with running_pool(tmp_path, config(model, budget_mib=2000), machine(meter)) as (pool, counts):
        await one_request(pool, "a")
        assert counts.loads == [("a", "out_of_memory"), ("a", "ready")]
        (worker,) = model_of(pool, "a").workers
        assert worker.placement.startswith("the last 6 of 8 layers"), "seven and a correction are more than 700 MiB"
        assert worker.reserved_bytes == {"CUDA0": 664 * MIB, "RAM": 200 * MIB}


async def test_one_that_runs_out_twice_is_answered_with_the_sum(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=700)
    model = scripted(tmp_path, "a", memory_mib=800, layers=8, gpu=True, gpu_room_layers=0)
    async with running_pool(tmp_path, config(model, budget_mib=2000), machine(meter)) as (pool, counts):
        with pytest.raises(LoadFailedError, match="664 MiB were reserved for it on CUDA0, which showed 1,000 MiB free"):
            await one_request(pool, "a")
        assert counts.loads == [("a", "out_of_memory"), ("a", "out_of_memory")]


async def test_a_killed_load_without_a_lower_placement_is_answered_with_the_sum(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", memory_mib=100, failure="kill")
    async with running_pool(tmp_path, config(model)) as (pool, counts):
        with pytest.raises(LoadFailedError, match="100 MiB were reserved for it on RAM, and no placement takes less"):
            await one_request(pool, "a")
        assert counts.loads == [("a", "out_of_memory")]


async def test_a_model_waits_for_memory_that_others_hold_and_status_says_so(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=100)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True)
    async with running_pool(tmp_path, config(model, budget_mib=10), machine(meter)) as (pool, _):
        waiting = asyncio.create_task(one_request(pool, "a"))
        await until(pool, lambda: model_of(pool, "a").waits is not None and meter.readings > 0)
        await until(pool, lambda: gpu_of(pool).others_bytes > 0)
        assert model_of(pool, "a").waits == "waits for memory that other programs hold: CUDA0 900 MiB"
        meter.free_mib = 1000
        await waiting


async def test_a_meter_that_gives_no_answer_does_not_keep_a_model_out(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=None)
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", gpu=True)), machine(meter)) as (pool, counts):
        await one_request(pool, "a")
        assert counts.loads == [("a", "ready")]


async def test_a_gpu_handed_over_is_empty_once_its_memory_is_seen_back(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=400)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True)
    async with running_pool(tmp_path, config(model), machine(meter)) as (pool, _):
        await one_request(pool, "a")
        await pool._metering.sample("CUDA0")
        pausing = asyncio.create_task(pool.pause("CUDA0"))
        # The process will be gone and the driver still count its memory.
        meter.free_mib, meter.each_mib = 600, 0
        await until(pool, lambda: not model_of(pool, "a").workers)
        assert gpu_of(pool).reserved_bytes == 400 * MIB
        assert not pausing.done()
        meter.free_mib = 1000
        assert (await pausing).reserved_bytes == 0


# -- learning --------------------------------------------------------------------------------------------------------


def lessons(store: Store) -> list[Lesson]:
    """What was learned of memory."""
    return [msgspec.structs.replace(lesson, load_s=None) for lesson in store._lessons.values()]


async def test_what_a_worker_takes_beyond_the_estimate_corrects_the_next_one(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=450, tells_who=True)
    store = Store(None)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True)
    async with running_pool(tmp_path, config(model), machine(meter), store) as (pool, _):
        await one_request(pool, "a")
        await until(pool, lambda: model_of(pool, "a").footprint.measured_bytes.get("CUDA0") == 450 * MIB)
        footprint = model_of(pool, "a").footprint
        assert footprint.formula_bytes == {"CUDA0": 400 * MIB, "RAM": 0}
        assert footprint.correction_bytes == {"CUDA0": 56 * MIB}, "which is for the next one"
        assert footprint.estimated_bytes == {"CUDA0": 400 * MIB, "RAM": 0}, "what runs keeps what was reserved for it"
        await pool.unload("a")
        await until(pool, lambda: model_of(pool, "a").footprint.estimated_bytes["CUDA0"] == 456 * MIB)
        await one_request(pool, "a")
        (worker,) = model_of(pool, "a").workers
        assert worker.reserved_bytes["CUDA0"] == 456 * MIB
    assert lessons(store) == [Lesson(surplus=Surplus(gpu_bytes=56 * MIB), measured_bytes={"CUDA0": 450 * MIB})]


async def test_a_difference_in_free_memory_does_where_the_driver_does_not_tell(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=900, each_mib=420)
    store = Store(None)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True)
    async with running_pool(tmp_path, config(model), machine(meter), store) as (pool, _):
        await one_request(pool, "a")
        await until(pool, lambda: model_of(pool, "a").footprint.measured_bytes.get("CUDA0") == 420 * MIB)
    assert [lesson.surplus for lesson in lessons(store)] == [Surplus(gpu_bytes=24 * MIB)]


async def test_a_load_that_ran_out_beside_enough_free_memory_corrects_the_estimate(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=600)
    store = Store(None)
    model = scripted(tmp_path, "a", memory_mib=800, layers=8, gpu=True, gpu_room_layers=7)
    async with running_pool(tmp_path, config(model, budget_mib=2000), machine(meter), store) as (pool, _):
        await one_request(pool, "a")
        assert [lesson.surplus for lesson in lessons(store)] == [Surplus(gpu_bytes=64 * MIB)]


async def test_what_is_learned_of_a_model_is_forgotten_with_its_settings(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=450, tells_who=True)
    before, after = (scripted(tmp_path, "a", memory_mib=size, gpu=True) for size in (400, 410))
    async with running_pool(tmp_path, config(before), machine(meter)) as (pool, _):
        await one_request(pool, "a")
        await until(pool, lambda: bool(model_of(pool, "a").footprint.measured_bytes))
        await pool.configure(config(after))
        await until(pool, lambda: not model_of(pool, "a").workers)
        assert model_of(pool, "a").footprint.estimated_bytes["CUDA0"] == 410 * MIB
        assert model_of(pool, "a").footprint.measured_bytes == {}


async def test_how_long_loads_take_is_remembered_over_a_restart(tmp_path: Path) -> None:
    settings = config(scripted(tmp_path, "a"))
    store = Store.opened(tmp_path / FILE_NAME)
    async with running_pool(tmp_path, settings, store=store) as (pool, _):
        await one_request(pool, "a")
        load_s = model_of(pool, "a").load_s
    store.close()
    again = Store.opened(tmp_path / FILE_NAME)
    async with running_pool(tmp_path, settings, store=again) as (pool, _):
        assert pool._ledger.models["a"].spec.learned_load_s == load_s
        assert model_of(pool, "a").load_s is None, "of this run there was none"


async def test_a_device_that_was_handed_over_still_is_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True)
    meter = ScriptedMeter(free_mib=1000)
    async with running_pool(tmp_path, config(model), machine(meter), Store.opened(path)) as (pool, _):
        await pool.pause("CUDA0")
    async with running_pool(tmp_path, config(model), machine(meter), Store.opened(path)) as (pool, _):
        assert gpu_of(pool).paused
        waiting = asyncio.create_task(one_request(pool, "a"))
        await until(pool, lambda: model_of(pool, "a").waits is not None)
        await pool.resume("CUDA0")
        await waiting
    store = Store.opened(path)
    assert store.paused() == frozenset()
    store.close()


# -- probes ----------------------------------------------------------------------------------------------------------


async def test_a_worker_for_which_too_little_was_reserved_is_not_started_before_that_is_corrected(
    tmp_path: Path,
) -> None:
    meter, store = ScriptedMeter(free_mib=1000, each_mib=430, tells_who=True), Store(None)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True, probed_gpu_mib=430)
    async with running_pool(tmp_path, config(model), machine(meter), store) as (pool, counts):
        await one_request(pool, "a")
        (worker,) = model_of(pool, "a").workers
        assert worker.reserved_bytes["CUDA0"] == 432 * MIB
        assert model_of(pool, "a").footprint.probed_bytes == {"CUDA0": 430 * MIB, "RAM": 0}
        assert counts.loads == [("a", "ready")], "what was not started is no load that failed"
        kinds = [one.kind for one in pool._happenings.newest()]
        assert kinds[:4] == ["loading", "estimate_corrected", "loading", "loaded"]


async def test_a_probe_that_agrees_lets_the_worker_start_and_is_asked_once(tmp_path: Path) -> None:
    meter, store = ScriptedMeter(free_mib=1000, each_mib=400), Store(None)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True, probed_gpu_mib=390)
    async with running_pool(tmp_path, config(model), machine(meter), store) as (pool, counts):
        await one_request(pool, "a")
        assert len(store._probes) == 1
        await pool.unload("a")
        await one_request(pool, "a")
        assert counts.loads == [("a", "ready"), ("a", "ready")]
        assert model_of(pool, "a").footprint.estimated_bytes["CUDA0"] == 400 * MIB


async def test_without_a_probes_answer_the_formulas_count(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=400)
    model = scripted(tmp_path, "a", memory_mib=400, gpu=True, probed_gpu_mib=-1)
    async with running_pool(tmp_path, config(model), machine(meter)) as (pool, counts):
        await one_request(pool, "a")
        assert counts.loads == [("a", "ready")]


async def test_a_model_that_by_its_probe_does_not_fit_is_placed_elsewhere(tmp_path: Path) -> None:
    meter = ScriptedMeter(free_mib=1000, each_mib=0)
    model = scripted(tmp_path, "a", memory_mib=900, layers=9, gpu=True, probed_gpu_mib=1100)
    async with running_pool(tmp_path, config(model, budget_mib=2000), machine(meter)) as (pool, counts):
        await one_request(pool, "a")
        (worker,) = model_of(pool, "a").workers
        assert 0 < worker.reserved_bytes["CUDA0"] <= 1000 * MIB
        assert counts.loads == [("a", "ready")]


async def test_models_in_ram_are_not_probed(tmp_path: Path) -> None:
    store = Store(None)
    model = scripted(tmp_path, "a", memory_mib=100, probed_gpu_mib=430)
    async with running_pool(tmp_path, config(model), HOST_ONLY, store) as (pool, _):
        await one_request(pool, "a")
        assert store._probes == {}
