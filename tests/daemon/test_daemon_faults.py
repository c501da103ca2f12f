"""The whole daemon under faults: kills, stops, reloads, shutdowns. Real processes, real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from support.running_daemon import chat, running_daemon, scripted_yaml, start, stop, streaming
from support.running_pool import gone

TWO = "  a: {path: a.model, memory_mib: 100}\n  b: {path: b.model, memory_mib: 100}\n"


async def test_a_killed_workers_stream_ends_with_an_error_event_and_the_others_go_on(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        broken, broken_task = await streaming(daemon, "a", "tokens=100 gap_s=0.05")
        _, other_task = await streaming(daemon, "b", "tokens=20 gap_s=0.05")
        os.kill(await daemon.pid("a"), signal.SIGKILL)
        await broken_task
        assert not broken.done
        assert broken.error is not None
        assert broken.error["code"] == "worker_lost"
        assert "SIGKILL" in broken.error["message"]
        other = await other_task
        assert other.done
        assert other.error is None
        assert len(other.events) == 21
        assert (await chat(daemon.url, "a", "tokens=1")).done
        assert (await daemon.model("a"))["loads"] == 2


async def test_a_stopped_worker_is_killed_after_its_stall_timeout_and_replaced(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100, stall_timeout: 1s}\n")
    async with running_daemon(tmp_path, yaml) as daemon:
        stream, task = await streaming(daemon, "a", "tokens=100 gap_s=0.05")
        pid = await daemon.pid("a")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.wait_for(task, 10)
        assert stream.error is not None
        assert not stream.done
        await asyncio.wait_for(gone(pid), 5)
        assert (await chat(daemon.url, "a", "tokens=1")).done


@pytest.mark.parametrize("how", ["idle", "busy", "loading", "stopped worker"])
async def test_nothing_outlives_a_daemon_that_is_killed(tmp_path: Path, how: str) -> None:
    slow = "load_s: 30" if how == "loading" else "load_s: 0"
    model = f"  a: {{path: a.model, memory_mib: 100, {slow}}}\n"
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, model)) as daemon:
        task = asyncio.create_task(chat(daemon.url, "a", "tokens=1" if how == "idle" else "tokens=1000 gap_s=0.05"))
        await daemon.logged(kind="loading" if how == "loading" else "loaded")
        if how == "idle":
            await task
        while not daemon.descendants():
            await daemon.status()
        children = daemon.descendants()
        if how == "stopped worker":
            os.kill(await daemon.pid("a"), signal.SIGSTOP)
        daemon.process.kill()
        started = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*(gone(pid) for pid in children)), 10)
        assert time.monotonic() - started < 1.0
        await asyncio.gather(task, return_exceptions=True)


async def test_sigterm_lets_streams_finish_refuses_the_rest_and_exits_0(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        tasks = [(await streaming(daemon, "a", "tokens=30 gap_s=0.05"))[1] for _ in range(3)]
        stop(daemon)
        await daemon.logged(event="draining")
        late = await chat(daemon.url, "a", "tokens=1")
        assert late.status == 503
        assert json.loads(late.body)["error"]["code"] == "shutting_down"
        for stream in await asyncio.gather(*tasks):
            assert stream.done
            assert len(stream.events) == 31
        assert await asyncio.wait_for(daemon.process.wait(), 10) == 0


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        _, task = await streaming(daemon, "a", "tokens=1000 gap_s=0.05")
        stop(daemon, signal.SIGINT)
        await daemon.logged(event="draining")
        children = daemon.descendants()
        stop(daemon, signal.SIGINT)
        assert await asyncio.wait_for(daemon.process.wait(), 10) != 0
        await asyncio.wait_for(asyncio.gather(*(gone(pid) for pid in children)), 5)
        await asyncio.gather(task, return_exceptions=True)


async def test_an_edit_of_one_model_leaves_the_others_process_and_stream_alone(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        assert (await chat(daemon.url, "b", "tokens=1")).done
        _, task = await streaming(daemon, "a", "tokens=40 gap_s=0.05")
        pid_a, pid_b = await daemon.pid("a"), await daemon.pid("b")
        edited = daemon.config.read_text().replace("b.model, memory_mib: 100", "b.model, memory_mib: 120")
        daemon.config.write_text(edited)
        await daemon.logged(event="configuration reloaded")
        await asyncio.wait_for(gone(pid_b), 10)
        assert (await task).done
        assert await daemon.pid("a") == pid_a
        assert (await chat(daemon.url, "b", "tokens=1")).done
        assert (await daemon.model("b"))["workers"][0]["reserved_bytes"] == {"RAM": 120 * 1024 * 1024}


async def test_a_broken_edit_keeps_the_old_configuration_and_shows_line_and_key(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        good = daemon.config.read_text()
        daemon.config.write_text(good.replace("b: {path", "b: {pth"))
        await daemon.logged(kind="config_refused")
        error = (await daemon.status())["config"]["error"]
        line = good[: good.index("  b: {path")].count("\n") + 1
        assert f"{daemon.config}:{line}: models.b.pth: is not a key of this block; did you mean path?" in error
        assert (await chat(daemon.url, "b", "tokens=1")).done
        async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
            assert 'swapd_config_reloads_total{outcome="refused"} 1.0' in await answer.text()
        daemon.config.write_text(good + "  c: {path: c.model, memory_mib: 10}\n")
        await daemon.logged(event="configuration reloaded")
        assert (await daemon.status())["config"]["error"] is None
        assert (await chat(daemon.url, "c", "tokens=1")).done


async def test_every_gauge_is_exported_once(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as answer:
            samples = [line.rpartition(" ")[0] for line in (await answer.text()).splitlines() if line[0] != "#"]
        assert 'swapd_device_memory_bytes{device="RAM",kind="budget"}' in samples
        assert len(samples) == len(set(samples))


async def test_an_edit_between_the_first_reading_and_the_watch_is_not_missed(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, TWO)
    (tmp_path / "swapd.yaml.edited").write_text(yaml + "  c: {path: c.model, memory_mib: 10}\n")
    async with running_daemon(tmp_path, yaml, program="support.edited_daemon") as daemon:
        await daemon.logged(event="configuration reloaded", changes="added c")
        assert (await chat(daemon.url, "c", "tokens=1")).done


async def test_sighup_reloads(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        stop(daemon, signal.SIGHUP)
        await daemon.logged(event="configuration reloaded")


async def test_an_edit_of_the_body_limit_counts_from_the_next_request_on(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, TWO, server="  max_body: 2KiB\n")
    words = "tokens=1 " + "x" * 4096
    async with running_daemon(tmp_path, yaml) as daemon:
        refused = await chat(daemon.url, "a", words)
        assert refused.status == 413
        assert "larger than 2048 bytes" in refused.body
        daemon.config.write_text(yaml.replace("max_body: 2KiB", "max_body: 8KiB"))
        await daemon.logged(event="configuration reloaded", changes="changed server.max_body")
        assert (await chat(daemon.url, "a", words)).done


async def test_a_live_cut_of_the_budget_sends_an_idle_model_away(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        for name in ("a", "b"):
            assert (await chat(daemon.url, name, "tokens=1")).done
        daemon.config.write_text(daemon.config.read_text().replace("RAM: 250MiB", "RAM: 150MiB"))
        await daemon.logged(kind="unloading")
        while True:
            states = [model["state"] for model in (await daemon.status())["models"]]
            if states.count("unloaded") == 1:
                break
        (device,) = (await daemon.status())["devices"]
        assert device["reserved_bytes"] <= device["budget_bytes"] == 150 * 1024 * 1024


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100, n_parallel: 1}\n")
    async with running_daemon(tmp_path, yaml) as daemon:
        _, task = await streaming(daemon, "a", "tokens=1000 gap_s=0.05")
        waiting = asyncio.create_task(chat(daemon.url, "a", "tokens=1"))
        while (await daemon.model("a"))["waiting"] != 1:
            pass
        task.cancel()
        assert (await asyncio.wait_for(waiting, 5)).done
        counts = (await daemon.status())["requests"]
        assert counts["cancelled"] == 1


async def test_a_second_daemon_on_the_same_state_is_refused_in_one_line(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        second = await start(tmp_path, daemon.config)
        _, said = await second.communicate()
        assert second.returncode == 1
        assert said.decode().count("\n") == 1
        assert str(daemon.process.pid) in said.decode()


async def test_an_occupied_port_is_one_clear_line(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, scripted_yaml(tmp_path, TWO)) as daemon:
        port = daemon.url.rpartition(":")[2].rstrip("/")
        other = tmp_path / "other"
        other.mkdir()
        config = other / "swapd.yaml"
        config.write_text(scripted_yaml(other, TWO).replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        second = await start(other, config)
        _, said = await second.communicate()
        assert second.returncode == 1
        assert port in said.decode().splitlines()[-1]
        assert "Traceback" not in said.decode()


async def test_a_runtime_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a directory")
    config = tmp_path / "swapd.yaml"
    config.write_text(scripted_yaml(tmp_path, TWO))
    process = await start(tmp_path, config)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert "runtime_dir" in said.decode().splitlines()[-1]
    assert "Traceback" not in said.decode()
