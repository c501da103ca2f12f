"""The pool with foreign programs under the guard: loaded, asked, evicted beside other backends, measured."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar

import pytest
from support.command_models import command, presets, stand_ins
from support.running_pool import HOST, MIB, Pool, alive, ask, config, running_pool, scripted, ticket

from backends.registry import installed_backends
from swapd.config.load import parse
from swapd.config.schema import Config, Memory
from swapd.core.spec import RAM
from swapd.errors import LoadFailedError, SwapdError
from swapd.pool.devices import Device, Machine
from swapd.pool.lease import TcpAddress, UnixAddress
from swapd.pool.meters import HostMeter, Reading
from swapd.pool.ports import FIRST_PORT, PORTS
from swapd.pool.status import ModelStatus


def model_of(pool: Pool, model_id: str) -> ModelStatus:
    return next(model for model in pool.status().models if model.id == model_id)


async def sampled(pool: Pool, device: str, shows: Callable[[], bool]) -> None:
    """Have a device read until that shows; the pool may be reading it already."""
    async with asyncio.timeout(10):
        while not shows():
            await pool._metering.sample(device)
            await pool.heartbeat()


async def one_answer(pool: Pool, model_id: str, words: str = "") -> dict[str, object]:
    async with pool.lease(ticket(model_id)) as lease:
        answer: dict[str, object] = json.loads(await ask(lease, words))
        return answer


async def test_it_is_loaded_asked_and_ended_on_a_socket_or_on_a_port(tmp_path: Path) -> None:
    on_port = command("port", "--uds", "", "--port", "${PORT}", proxy="http://127.0.0.1:${PORT}")
    async with running_pool(tmp_path, config(command("unix"), on_port)) as (pool, counts):
        for model_id in ("unix", "port"):
            answer = await one_answer(pool, model_id)
            (worker,) = model_of(pool, model_id).workers
            assert worker.reserved_bytes == {RAM: 50 * MIB}
            assert worker.pid is not None
            assert answer["pid"] != worker.pid, "the pool's process is the guard"
            async with pool.lease(ticket(model_id)) as lease:
                if model_id == "unix":
                    assert lease.address == UnixAddress(tmp_path / f"worker-{lease.worker_id}.sock")
                else:
                    assert isinstance(lease.address, TcpAddress)
                    assert FIRST_PORT <= lease.address.port < FIRST_PORT + PORTS
            await pool.unload(model_id)
            assert not alive(int(str(answer["pid"])))
        assert counts.loads == [("unix", "ready"), ("port", "ready")]


async def test_a_crash_while_it_loads_is_told_with_its_last_words(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(command("m", "--fail", "7"))) as (pool, _):
        with pytest.raises(
            LoadFailedError, match=r"exited with status 7 while loading; .*the imaginary engine gives up"
        ):
            await one_answer(pool, "m")


async def test_a_health_check_that_hangs_is_a_load_that_takes_too_long_and_nothing_of_it_is_left(
    tmp_path: Path,
) -> None:
    model = command("m", "--hang-health", "--children", "--ignore-sigterm", policy={"load_timeout_s": 1.0})
    async with running_pool(tmp_path, config(model)) as (pool, _):
        with pytest.raises(SwapdError, match="made no load progress for 1 s and was killed"):
            await one_answer(pool, "m")
        await pool.unload("m")
        children = [int(line.split()[1]) for line in pool.logs("m") if line.startswith("child")]
        assert len(children) == 2
        assert not [pid for pid in children if alive(pid)]


async def test_a_load_goes_on_while_the_program_prints(tmp_path: Path) -> None:
    flags = ("--load-s", "1.5", "--chatter")
    model = command("m", *flags, policy={"load_timeout_s": 1.0}, progress=(r"loading (\d+)%",))
    async with running_pool(tmp_path, config(model)) as (pool, _):
        assert await one_answer(pool, "m")
        assert "loading 0%" in pool.logs("m")


async def test_a_program_that_is_killed_while_it_serves_is_replaced(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(command("m"))) as (pool, _):
        async with pool.lease(ticket("m")) as lease:
            assert await ask(lease, "die") == b""
            assert "was killed by SIGKILL while serving" in await lease.lost
        assert await one_answer(pool, "m")


async def test_eviction_crosses_backends(tmp_path: Path) -> None:
    programs = command("m", memory={"RAM": 200 * MIB})
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"), programs)) as (pool, counts):
        await one_answer(pool, "a")
        await one_answer(pool, "m")
        await one_answer(pool, "a")
        assert [(model_id, evicted) for model_id, _, evicted in counts.departures] == [("a", True), ("m", True)]


async def test_what_is_not_declared_is_measured_with_all_its_processes_and_counts_the_next_time(tmp_path: Path) -> None:
    total, _ = HostMeter().sizes()
    machine = Machine((Device(RAM, "host memory", total, total),), {RAM: HostMeter()})
    model = command("m", "--memory-mib", "40", memory={})
    async with running_pool(tmp_path, config(model, budget_mib=600), machine) as (pool, _):
        await one_answer(pool, "m")
        (worker,) = model_of(pool, "m").workers
        assert worker.reserved_bytes == {RAM: 600 * MIB}
        assert worker.placement.startswith("as its program has it, alone on RAM until it is known what it takes")
        await sampled(pool, RAM, lambda: RAM in model_of(pool, "m").footprint.measured_bytes)
        await pool.unload("m")
        measured = model_of(pool, "m").footprint.measured_bytes[RAM]
        assert 45 * MIB < measured < 120 * MIB, "the program's 40 MiB, its interpreter and the guard's"
        await one_answer(pool, "m")
        (worker,) = model_of(pool, "m").workers
        assert worker.reserved_bytes == {RAM: measured + 128 * MIB}


class NamesNobody:
    """A GPU's meter on which 400 MiB are taken, by no process that is a worker's: a container's."""

    slow: ClassVar[bool] = False

    def read(self, pids: Collection[int]) -> Reading:
        return Reading(600 * MIB, {})


async def test_what_a_container_takes_is_its_workers_by_the_settings_word(tmp_path: Path) -> None:
    machine = Machine((Device("CUDA0", "a GPU", 1000 * MIB, 1000 * MIB), HOST), {"CUDA0": NamesNobody()})
    model = command("m", memory={"CUDA0": 400 * MIB, "RAM": 50 * MIB})
    async with running_pool(tmp_path, config(model), machine) as (pool, _):
        await pool._metering.sample("CUDA0")
        await pool.heartbeat()
        assert others_mib(pool, "CUDA0") == 400
        await one_answer(pool, "m")
        await sampled(pool, "CUDA0", lambda: others_mib(pool, "CUDA0") == 0)


def others_mib(pool: Pool, device: str) -> int:
    return next(one.others_bytes // MIB for one in pool.status().devices if one.name == device)


async def test_a_port_that_is_lost_to_somebody_is_a_failed_load_and_the_next_one_has_another(tmp_path: Path) -> None:
    flags = ("--uds", "", "--port", "${PORT}", "--load-s", "0.3", "--listen-late", "--chatter")
    model = command("m", *flags, proxy="http://127.0.0.1:${PORT}")
    async with running_pool(tmp_path, config(model)) as (pool, _):
        asked = asyncio.create_task(one_answer(pool, "m"))
        async with asyncio.timeout(10):
            while not pool.logs("m"):
                await pool.heartbeat()
        (lost,) = pool._crew._ports._taken
        with socket.create_server(("127.0.0.1", lost)):
            with pytest.raises(LoadFailedError, match=f"cannot listen on 127.0.0.1:{lost}: .*Address already in use"):
                await asked
            await pool.load("m")
            async with pool.lease(ticket("m")) as lease:
                assert isinstance(lease.address, TcpAddress)
                assert lease.address.port != lost
                assert await ask(lease)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The presets of the documentation, with the foreign server for their programs."""
    stand_ins(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    models = {}
    for name, text in presets().items():
        local = text.replace("/opt/tabbyAPI", str(tmp_path / "bin"))
        models |= parse(local, tmp_path / f"{name}.yaml", installed_backends()).models
    return Config(memory=Memory(reserve_bytes=0), models=models)


async def test_every_preset_runs(tmp_path: Path, configured: Config) -> None:
    gpu = Device("CUDA0", "a GPU", 64 * 1024 * MIB, 64 * 1024 * MIB)
    host = Device(RAM, HOST.description, 64 * 1024 * MIB, 64 * 1024 * MIB)
    assert len(configured.models) == 5
    async with running_pool(tmp_path, configured, Machine((gpu, host))) as (pool, counts):
        for model_id, model in configured.models.items():
            answer = await one_answer(pool, model_id)
            assert "choices" in answer
            (worker,) = model_of(pool, model_id).workers
            assert worker.reserved_bytes == model.settings.memory  # type: ignore[attr-defined]
        assert [outcome for _, outcome in counts.loads] == ["ready"] * 5
        await pool.unload("containered")
        assert re.fullmatch(r"stop -t 5 swapd-containered\n", noted(tmp_path / "bin" / "stopped"))


def noted(path: Path) -> str:
    return path.read_text()
