"""The pool with real processes: leases, loads, crashes, evictions, reloads, shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from support.running_pool import alive, ask, config, gone, model_file, running_pool, scripted, ticket

from swapd.errors import (
    BadRequestError,
    InvalidModelFileError,
    LoadFailedError,
    LoadTimeoutError,
    ModelDoesNotFitError,
    QueueFullError,
    ShuttingDownError,
    UnknownDeviceError,
    UnknownModelError,
    UnsupportedEndpointError,
)
from swapd.pool.pool import Pool
from swapd.pool.ring import Ring
from swapd.pool.status import ModelStatus
from swapd.pool.worker import WorkerProcess


def status_of(pool: Pool, model_id: str) -> ModelStatus:
    return next(model for model in pool.status().models if model.id == model_id)


def pid_of(pool: Pool, model_id: str) -> int:
    (worker,) = status_of(pool, model_id).workers
    assert worker.pid is not None
    return worker.pid


async def one_request(pool: Pool, model_id: str, words: str = "", request_id: str = "r") -> bytes:
    async with pool.lease(ticket(model_id, request_id)) as lease:
        answer = await ask(lease, words)
    await pool.heartbeat()  # The end of the lease is an event too; after this it has been taken.
    return answer


async def until(pool: Pool, kind: str) -> None:
    """Wait until the scheduler has told this kind of happening."""
    happenings = pool.happenings()
    async for happening in happenings:
        if happening.kind == kind:
            break
    await happenings.aclose()


async def test_a_request_loads_its_model_and_is_answered(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        answer = json.loads(await one_request(pool, "a", "tokens=2"))
        assert answer["choices"][0]["message"]["content"] == "t0 t1 "
        status = status_of(pool, "a")
        assert (status.state, status.loads, status.running) == ("ready", 1, 0)
        assert status.workers[0].reserved_bytes == {"RAM": 100 * 1024 * 1024}
        assert counts.loads == [("a", "ready")]


async def test_a_request_that_the_kind_of_model_cannot_answer_loads_nothing(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        with pytest.raises(UnsupportedEndpointError, match=r"does not serve /v1/rerank, it serves /v1/chat") as refusal:
            async with pool.lease(dataclasses.replace(ticket("a", "r"), needs="rerank")):
                pass
        assert (refusal.value.status, refusal.value.param) == (400, "model")
        assert status_of(pool, "a").state == "unloaded"
        assert counts.loads == []


async def test_a_request_with_media_that_the_model_does_not_take_loads_nothing(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        looking = dataclasses.replace(ticket("a", "r"), senses=(("vision", "messages[3].content[0].image_url"),))
        with pytest.raises(BadRequestError, match=r"model 'a' takes text only") as refusal:
            async with pool.lease(looking):
                pass
        assert (refusal.value.status, refusal.value.param) == (400, "messages[3].content[0].image_url")
        assert counts.loads == []


async def test_a_thousand_cold_requests_cause_one_load(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", load_s=0.3, n_parallel=100)
    async with running_pool(tmp_path, config(model, max_waiting=2000)) as (pool, counts):
        answers = await asyncio.gather(*(one_request(pool, "a", request_id=f"r{n}") for n in range(1000)))
        assert len({json.loads(answer)["pid"] for answer in answers}) == 1
        assert counts.loads == [("a", "ready")]
        assert pool.status().requests.finished == 1000


async def test_two_models_that_do_not_fit_together_take_turns_and_the_reason_is_told(tmp_path: Path) -> None:
    models = [scripted(tmp_path, name, memory_mib=150) for name in ("a", "b")]
    async with running_pool(tmp_path, config(*models)) as (pool, counts):
        for name in ("a", "b", "a"):
            await one_request(pool, name)
        assert [name for name, _ in counts.loads] == ["a", "b", "a"]
        assert [evicted for _, _, evicted in counts.departures] == [True, True]
        eviction = status_of(pool, "b").last_eviction
        assert eviction is not None
        assert eviction.why.startswith("'b' leaves for 'a'")
        assert status_of(pool, "b").state == "unloaded"


async def test_a_load_goes_on_when_the_client_that_asked_for_it_leaves(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", load_s=0.2))) as (pool, counts):
        first = asyncio.create_task(one_request(pool, "a"))
        await until(pool, "loading")
        first.cancel()
        await until(pool, "loaded")
        with pytest.raises(asyncio.CancelledError):
            await first
        assert counts.loads == [("a", "ready")]
        assert pool.status().requests.cancelled == 1


async def test_a_cancelled_request_gives_its_place_back(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", n_parallel=1))) as (pool, _):
        async with pool.lease(ticket("a", "holder")):
            waiting = asyncio.create_task(one_request(pool, "a", request_id="waiting"))
            while not pool.status().requests.waiting:
                await pool.heartbeat()
            waiting.cancel()
        assert await one_request(pool, "a", request_id="next")
        counts = pool.status().requests
        assert (counts.finished, counts.cancelled, counts.running, counts.waiting) == (2, 1, 0, 0)


async def test_a_killed_worker_is_an_event_and_the_next_request_loads_again(tmp_path: Path) -> None:
    models = [scripted(tmp_path, "a"), scripted(tmp_path, "b")]
    async with running_pool(tmp_path, config(*models)) as (pool, counts):
        await one_request(pool, "b")
        untouched = pid_of(pool, "b")
        async with pool.lease(ticket("a")) as lease:
            answer = await ask(lease, "tokens=5 die_after=2", stream=True)
            assert b"[DONE]" not in answer
            assert await asyncio.wait_for(asyncio.shield(lease.lost), 5) == (
                "the worker of model 'a' was killed by SIGKILL while serving, most likely by the kernel for want of RAM"
            )
        assert b"t0" in await one_request(pool, "a")
        assert [load for load in counts.loads if load[0] == "a"] == [("a", "ready")] * 2
        assert pid_of(pool, "b") == untouched


async def test_a_stopped_worker_is_noticed_by_its_stall_timeout_killed_and_replaced(tmp_path: Path) -> None:
    policy: dict[str, object] = {"stall_timeout_s": 0.5}
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", policy))) as (pool, counts):
        started = time.monotonic()
        async with pool.lease(ticket("a")) as lease:
            pid = pid_of(pool, "a")
            await ask(lease, "tokens=5 stop_after=2", stream=True)
            await asyncio.wait_for(asyncio.shield(lease.lost), 5)
        assert 0.5 <= time.monotonic() - started < 4.0
        assert not alive(pid)
        assert b"t0" in await one_request(pool, "a")
        assert ("a", "stuck", False) in counts.departures


async def test_a_failing_load_answers_with_the_output_and_then_at_once(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", failure="exit"))) as (pool, counts):
        with pytest.raises(LoadFailedError, match="out of imaginary memory") as first:
            await one_request(pool, "a")
        with pytest.raises(LoadFailedError, match="exited with status 3") as second:
            await one_request(pool, "a")
        assert first.value.retry_after_s == 2.0
        assert second.value.retry_after_s is not None
        assert 0 < second.value.retry_after_s <= 2.0
        assert counts.loads == [("a", "failed")]
        status = status_of(pool, "a")
        assert status.error is not None
        assert "imaginary" in status.error


async def test_asking_for_a_load_by_hand_does_not_sit_out_the_back_off(tmp_path: Path) -> None:
    marker = tmp_path / "broken"
    marker.touch()
    model = scripted(tmp_path, "a", failure="exit", fail_while_exists=str(marker))
    async with running_pool(tmp_path, config(model)) as (pool, _):
        with pytest.raises(LoadFailedError):
            await pool.load("a")
        marker.unlink()
        assert (await pool.load("a")).state == "ready"


async def test_a_worker_that_finds_the_file_invalid_makes_the_verdict_permanent(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", failure="invalid"))) as (pool, counts):
        for _ in range(3):
            with pytest.raises(InvalidModelFileError, match="the scripted file is no model"):
                await one_request(pool, "a")
        assert len(counts.loads) == 1


async def test_a_crash_in_the_warm_up_is_retried_once_in_portable_mode(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", failure="segv"))) as (pool, counts):
        assert b"t0" in await one_request(pool, "a")
        assert counts.loads == [("a", "crashed"), ("a", "ready")]
        assert status_of(pool, "a").workers[0].portable


async def test_a_load_without_progress_is_killed(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", {"load_timeout_s": 0.4}, failure="hang")
    async with running_pool(tmp_path, config(model)) as (pool, counts):
        with pytest.raises(LoadTimeoutError, match="no load progress"):
            await one_request(pool, "a")
        assert counts.loads == [("a", "stuck")]


async def test_a_worker_that_breaks_the_control_protocol_is_stopped(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", failure="nonsense"))) as (pool, _):
        with pytest.raises(LoadFailedError, match="SIGKILL"):
            await one_request(pool, "a")


async def test_a_worker_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", ignore_sigterm=True, grandchild=True)
    async with running_pool(tmp_path, config(model)) as (pool, _):
        await pool.load("a")
        pid = pid_of(pool, "a")
        (line,) = [line for line in pool.logs("a") if line.startswith("grandchild")]
        grandchild = int(line.split()[1])
        assert alive(pid)
        assert alive(grandchild)
        async with asyncio.timeout(15):
            await pool.unload("a")
        assert not alive(pid)
        await asyncio.wait_for(gone(grandchild), 5)


async def test_a_mountain_of_output_blocks_nothing_and_only_the_newest_lines_are_kept(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", chatter_lines=20_000)
    async with running_pool(tmp_path, config(model)) as (pool, _):
        await one_request(pool, "a")
        lines = pool.logs("a")
        assert len(lines) == 1000
        assert lines[-1].endswith(" 19999")


async def test_a_bad_file_is_refused_without_a_process_and_a_mended_one_is_picked_up(tmp_path: Path) -> None:
    path = model_file(tmp_path, "a", "rubbish")
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        with pytest.raises(InvalidModelFileError, match="this is no model file"):
            await one_request(pool, "a")
        assert counts.loads == []
        path.write_text("model, mended")
        assert b"t0" in await one_request(pool, "a")


async def test_a_file_replaced_while_unloaded_is_read_again_before_the_next_load(tmp_path: Path) -> None:
    path = model_file(tmp_path, "a")
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        await one_request(pool, "a")
        await pool.unload("a")
        path.write_text("no longer one")
        with pytest.raises(InvalidModelFileError):
            await one_request(pool, "a")


async def test_a_model_over_the_budget_is_refused_with_the_sum(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a", memory_mib=300))) as (pool, counts):
        with pytest.raises(ModelDoesNotFitError, match="RAM needs 300 MiB of a budget of 250 MiB"):
            await one_request(pool, "a")
        assert counts.loads == []


async def test_an_unknown_model_is_refused_with_close_names(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "qwen3-8b"))) as (pool, _):
        with pytest.raises(UnknownModelError, match="did you mean 'qwen3-8b'"):
            pool.resolve("qwen-8b")


async def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    model = scripted(tmp_path, "a", n_parallel=1)
    async with running_pool(tmp_path, config(model, max_waiting=1)) as (pool, _):
        async with pool.lease(ticket("a", "holder")):
            waiting = asyncio.create_task(one_request(pool, "a", request_id="waiting"))
            while not pool.status().requests.waiting:
                await pool.heartbeat()
            with pytest.raises(QueueFullError) as refused:
                await one_request(pool, "a", request_id="one too many")
            assert refused.value.retry_after_s is not None
        await waiting


async def test_a_reload_of_one_model_leaves_the_others_worker_and_stream_alone(tmp_path: Path) -> None:
    a, b = scripted(tmp_path, "a"), scripted(tmp_path, "b")
    async with running_pool(tmp_path, config(a, b)) as (pool, _):
        await one_request(pool, "b")
        before_b = pid_of(pool, "b")
        async with pool.lease(ticket("a")) as lease:
            before_a = pid_of(pool, "a")
            stream = asyncio.create_task(ask(lease, "tokens=20 gap_s=0.05", stream=True))
            changed = msgspec.structs.replace(b, env={"CHANGED": "1"})
            await pool.configure(config(a, changed))
            await asyncio.wait_for(gone(before_b), 5)
            assert (await stream).count(b"data:") == 21
        assert pid_of(pool, "a") == before_a
        await one_request(pool, "b")
        assert pid_of(pool, "b") != before_b


async def test_a_reload_lets_the_changed_models_running_stream_finish(tmp_path: Path) -> None:
    a = scripted(tmp_path, "a")
    async with running_pool(tmp_path, config(a)) as (pool, counts):
        async with pool.lease(ticket("a")) as lease:
            stream = asyncio.create_task(ask(lease, "tokens=10 gap_s=0.05", stream=True))
            await pool.configure(config(msgspec.structs.replace(a, env={"CHANGED": "1"})))
            assert b"[DONE]" in await stream
        await one_request(pool, "a")
        while not counts.departures:
            await pool.heartbeat()
        assert counts.departures == [("a", "reload", False)]


async def test_models_come_and_go_with_the_list(tmp_path: Path) -> None:
    a, b = scripted(tmp_path, "a"), scripted(tmp_path, "b")
    async with running_pool(tmp_path, config(a)) as (pool, _):
        await one_request(pool, "a")
        await pool.configure(config(b))
        assert [model.id for model in pool.listed()] == ["b"]
        with pytest.raises(UnknownModelError):
            await one_request(pool, "a")
        assert await one_request(pool, "b")


async def test_a_pinned_model_is_loaded_without_being_asked_and_not_evicted(tmp_path: Path) -> None:
    pinned = scripted(tmp_path, "a", {"pin": True}, memory_mib=150)
    other = scripted(tmp_path, "b", memory_mib=150)
    async with running_pool(tmp_path, config(pinned, other)) as (pool, _):
        await until(pool, "loaded")
        with pytest.raises(ModelDoesNotFitError):
            await one_request(pool, "b")
        assert status_of(pool, "a").state == "ready"


async def test_tokens_are_booked_from_the_control_channel(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        await one_request(pool, "a", "tokens=4")
        while not counts.tokens:
            await pool.heartbeat()
        assert counts.tokens == [("a", 7, 0, 4)]


async def test_ended_requests_are_told_with_times_and_tokens(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        feed = pool.requests_ended()
        following = asyncio.ensure_future(anext(feed))
        await one_request(pool, "a", "tokens=4")
        ended = await following
        assert (ended.model, ended.outcome, ended.prompt_tokens, ended.completion_tokens) == ("a", "finished", 7, 4)
        assert ended.waited_s is not None
        assert ended.service_s is not None
        with pytest.raises(UnknownModelError):
            async with pool.lease(ticket("nowhere")):
                raise AssertionError
        refused = await anext(feed)
        assert (refused.outcome, refused.waited_s, refused.service_s) == ("failed", None, None)
        await feed.aclose()


async def test_a_shutdown_lets_streams_finish_and_refuses_the_rest(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        async with pool.lease(ticket("a")) as lease:
            stream = asyncio.create_task(ask(lease, "tokens=10 gap_s=0.05", stream=True))
            pool.shutdown()
            with pytest.raises(ShuttingDownError):
                await one_request(pool, "a", request_id="late")
            assert not pool.ready()
            assert b"[DONE]" in await stream


async def test_a_shutdown_cuts_what_outlasts_the_drain_time(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"), drain_s=0.3)) as (pool, _):
        async with pool.lease(ticket("a")) as lease:
            stream = asyncio.create_task(ask(lease, "tokens=1000 gap_s=0.05", stream=True))
            pool.shutdown()
            assert b"[DONE]" not in await stream


async def test_two_requests_with_the_same_client_chosen_id_do_not_meet(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        answers = await asyncio.gather(*(one_request(pool, "a", request_id="same") for _ in range(5)))
        assert len(answers) == 5
        assert pool.status().requests.finished == 5


async def test_a_worker_that_cannot_be_started_fails_the_load(tmp_path: Path) -> None:
    gone_dir = tmp_path / "runtime"
    gone_dir.mkdir()
    model = scripted(tmp_path, "a", {"env": {"PATH": "/nowhere"}})
    async with running_pool(gone_dir, config(model)) as (pool, _):
        gone_dir.rmdir()
        with pytest.raises(LoadFailedError):
            await one_request(pool, "a")


async def test_a_worker_killed_by_a_person_while_idle_is_loaded_again(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        await one_request(pool, "a")
        pid = pid_of(pool, "a")
        os.kill(pid, signal.SIGKILL)
        await until(pool, "worker_lost")
        assert await one_request(pool, "a")
        assert [outcome for _, outcome in counts.loads] == ["ready", "ready"]


async def test_the_heartbeat_proves_that_the_loop_takes_events(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        await asyncio.wait_for(pool.heartbeat(), 1)


async def test_after_the_end_whoever_asks_is_told_so_at_once(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, _):
        pass
    for asking in (pool.load("a"), pool.unload("a"), one_request(pool, "a"), pool.heartbeat()):
        with pytest.raises(ShuttingDownError):
            await asyncio.wait_for(asking, 5)


async def test_a_letter_that_arrives_in_two_reads_is_kept_whole_in_the_log(tmp_path: Path) -> None:
    output: Ring[str] = Ring(10)
    worker = WorkerProcess(1, "a", tmp_path / "s", output, lambda event: None, lambda usage: None)
    reads = [b"caf\xc3", b"\xa9\n", b""]

    async def read(size_bytes: int) -> bytes:
        return reads.pop(0)

    await worker._drain(SimpleNamespace(stdout=SimpleNamespace(read=read)))  # type: ignore[arg-type]
    assert output.newest() == ["café"]


async def test_a_device_handed_over_is_empty_and_what_needs_it_waits_for_the_resume(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(scripted(tmp_path, "a"))) as (pool, counts):
        await one_request(pool, "a")
        pid = pid_of(pool, "a")
        device = await pool.pause("RAM")
        assert (device.paused, device.reserved_bytes) == (True, 0)
        assert not alive(pid)
        waiting = asyncio.create_task(one_request(pool, "a", request_id="waiting"))
        while not pool.status().requests.waiting:
            await pool.heartbeat()
        assert status_of(pool, "a").waits == "waits for RAM, handed over to others until it is resumed"
        assert (await pool.resume("RAM")).paused is False
        assert b"t0" in await waiting
        assert counts.departures == [("a", "paused", False)]
        assert counts.loads == [("a", "ready"), ("a", "ready")]


async def test_a_device_nobody_has_cannot_be_handed_over(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config()) as (pool, _):
        with pytest.raises(UnknownDeviceError, match="there is no device 'CUDA0'; this machine has RAM"):
            await pool.pause("CUDA0")


async def test_a_person_pins_and_unpins_whatever_the_file_says_and_a_reload_keeps_that(tmp_path: Path) -> None:
    models = (scripted(tmp_path, "a", memory_mib=200), scripted(tmp_path, "b", memory_mib=200, policy={"pin": True}))
    async with running_pool(tmp_path, config(*models)) as (pool, _):
        assert (await pool.unload("b")).state == "unloaded"
        assert not (await pool.pin("b", pinned=False)).pin
        assert (await pool.pin("a", pinned=True)).pin
        await pool.load("a")
        with pytest.raises(ModelDoesNotFitError):
            await pool.load("b")
        await pool.configure(config(*models))
        assert [model.pin for model in pool.status().models] == [True, False]
        await pool.pin("a", pinned=False)
        await pool.load("b")
        assert [model.state for model in pool.status().models] == ["unloaded", "ready"]
