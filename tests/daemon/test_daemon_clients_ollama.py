"""The official Ollama client, and what Open WebUI and Home Assistant send, against a daemon with real models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import ollama
import pytest
import pytest_asyncio
from pydantic import BaseModel
from support.client_daemon import client_daemon
from support.running_daemon import RunningDaemon

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK: Any = [{"role": "user", "content": "What is the capital of France?"}]
SHORT: Any = {"temperature": 0, "num_predict": 16}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningDaemon]:
    async with client_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(daemon: RunningDaemon) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=daemon.url) as one:
        yield one


async def loaded(daemon: RunningDaemon) -> dict[str, Any]:
    """What GET /api/ps has, by name."""
    async with aiohttp.ClientSession(daemon.url) as session, session.get("/api/ps") as answer:
        return {one["name"]: one for one in (await answer.json())["models"]}


async def test_a_conversation_streams_and_adds_up_to_the_whole_answer(client: ollama.AsyncClient) -> None:
    whole = await client.chat("smol", messages=ASK, options=SHORT)
    parts = [part async for part in await client.chat("smol:latest", messages=ASK, options=SHORT, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert "Paris" in (whole.message.content or "")
    last = parts[-1]
    assert (last.done, last.done_reason) == (True, whole.done_reason)
    assert [part.done for part in parts[:-1]] == [False] * (len(parts) - 1)
    for answer in (whole, last):
        assert answer.prompt_eval_count == whole.prompt_eval_count
        assert 0 < (answer.eval_count or 0) <= 16
        assert answer.total_duration is not None
        assert answer.load_duration is not None
        assert answer.prompt_eval_duration is not None
        assert answer.eval_duration is not None
        parts_ns = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
        assert parts_ns == pytest.approx(answer.total_duration, abs=5)
    follow_up = [*ASK, whole.message, {"role": "user", "content": "And of Italy?"}]
    assert (await client.chat("smol", messages=follow_up, options=SHORT)).message.content


async def test_generate_is_a_chat_of_one_message_or_the_bare_text(client: ollama.AsyncClient) -> None:
    chat = await client.chat("smol", messages=ASK, options=SHORT)
    asked = await client.generate("smol", prompt=ASK[0]["content"], options=SHORT)
    assert asked.response == chat.message.content
    raw = [
        part async for part in await client.generate("smol", prompt="One, two,", raw=True, options=SHORT, stream=True)
    ]
    text = "".join(part.response or "" for part in raw)
    assert "three" in text
    assert raw[-1].done_reason in ("stop", "length")


class Verdict(BaseModel):
    animal: str
    sure: bool


async def test_a_format_is_kept_to(client: ollama.AsyncClient) -> None:
    ask: Any = [{"role": "user", "content": "It purrs. Which animal is it?"}]
    options = {"temperature": 0, "num_predict": 60}
    answer = await client.chat("smol", messages=ask, format=Verdict.model_json_schema(), options=options)
    Verdict.model_validate_json(answer.message.content or "")
    answer = await client.chat("smol", messages=ask, format="json", options={**options, "stop": ["}"]})
    assert (answer.message.content or "").lstrip().startswith("{")


async def test_calls_of_tools_go_both_ways_as_objects(client: ollama.AsyncClient) -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    history: Any = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "Snow, minus 3 degrees."},
    ]
    answer = await client.chat("smol", messages=history, tools=[WEATHER], options=SHORT)
    assert answer.message.content or answer.message.tool_calls
    # The model is small: it is told to write a call in so many words.
    said = 'Write exactly this and nothing else: <tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    options = {"temperature": 0, "num_predict": 48}
    answer = await client.chat("smol", messages=[{"role": "user", "content": said}], tools=[WEATHER], options=options)
    for made in answer.message.tool_calls or ():
        assert isinstance(made.function.arguments, dict)


async def test_embeddings_in_both_forms(client: ollama.AsyncClient) -> None:
    both = await client.embed("vectors", input=["a red fox", "bread"])
    assert len(both.embeddings) == 2
    assert (both.prompt_eval_count or 0) > 0
    old = await client.embeddings("vectors", prompt="bread")
    assert list(old.embedding) == pytest.approx(list(both.embeddings[1]), abs=1e-6)
    with pytest.raises(ollama.ResponseError, match="does not serve"):
        await client.chat("vectors", messages=ASK)


async def test_models_are_listed_shown_and_named_in_errors(client: ollama.AsyncClient) -> None:
    listed = {model.model: model for model in (await client.list()).models}
    assert list(listed) == ["smol:latest", "vectors:latest"]
    smol = listed["smol:latest"]
    assert (smol.size or 0) > 50e6
    assert smol.details is not None
    assert (smol.details.family, smol.details.format, smol.details.quantization_level) == ("llama", "gguf", "Q4_1")
    assert smol.details.parameter_size == "134.52M"
    shown = await client.show("smol")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 2048
    assert shown.capabilities == ["completion", "tools"]
    assert (await client.show("vectors")).capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError, match="smol") as caught:
        await client.chat("smoll", messages=ASK)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        await client.delete("smol")
    assert caught.value.status_code == 501
    assert (await client.pull("smol")).status == "success"


async def test_open_webui_joins_its_lists_loads_and_unloads(daemon: RunningDaemon) -> None:
    async with aiohttp.ClientSession(daemon.url) as session:

        async def wish(**fields: object) -> Any:
            async with session.post("/api/generate", json={"model": "smol:latest", **fields}) as answer:
                return await answer.json()

        assert (await wish(keep_alive="10m"))["done_reason"] == "load"
        one = (await loaded(daemon))["smol:latest"]
        left = datetime.fromisoformat(one["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=9) < left <= timedelta(minutes=10)
        assert one["size"] > 50e6
        assert (one["size_vram"], one["context_length"]) == (0, 2048)
        assert (await wish(keep_alive=0, prompt=""))["done_reason"] == "unload"
        await daemon.logged(event="worker stopped", model="smol")
        assert "smol:latest" not in await loaded(daemon)


async def test_a_worker_is_reached_past_the_daemon_once_it_is_loaded(
    client: ollama.AsyncClient, daemon: RunningDaemon
) -> None:
    await client.generate("smol", keep_alive="10m")
    async with aiohttp.ClientSession(daemon.url) as session:
        async with session.get("/upstream/smol/health") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        async with session.post("/upstream/smol/tokenize", json={"content": "hello"}) as answer:
            assert len((await answer.json())["tokens"]) > 0
        async with session.get("/slots", params={"model": "smol"}) as answer:
            assert [slot["is_processing"] for slot in await answer.json()] == [False, False]
        async with session.post("/swapd/v1/models/vectors/unload") as answer:
            assert answer.status == 200
        async with session.get("/upstream/vectors/health") as answer:
            assert answer.status == 409
        async with session.get("/props", params={"model": "vectors"}) as answer:
            assert (await answer.json())["is_sleeping"] is True
        async with session.post("/v1/audio/speech", json={"model": "smol", "input": "x"}) as answer:
            assert answer.status == 400
            assert "/v1/chat/completions" in (await answer.json())["error"]["message"]


async def test_home_assistants_requests_reload_nothing_and_keep_the_model(daemon: RunningDaemon) -> None:
    body = {
        "model": "smol:latest",
        "messages": [{"role": "system", "content": "You are a home assistant."}, *ASK],
        "tools": None,
        "stream": True,
        "keep_alive": -1,
        "think": False,
        "format": None,
        "options": {"num_ctx": 8192, "num_predict": 8},
    }
    async with aiohttp.ClientSession(daemon.url) as session:
        for _ in range(2):
            async with session.post("/api/chat", json=body) as answer:
                told = [json.loads(line) for line in (await answer.read()).splitlines()]
            assert told[-1]["done"] is True
            loads = (await daemon.model("smol"))["loads"]
            body["options"] = {"num_ctx": 4096, "num_predict": 8}
        assert (await daemon.model("smol"))["loads"] == loads
    left = datetime.fromisoformat((await loaded(daemon))["smol:latest"]["expires_at"]) - datetime.now(UTC)
    assert left > timedelta(days=365)
