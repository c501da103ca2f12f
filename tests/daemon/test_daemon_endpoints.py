"""The other endpoints through the whole daemon: the same door, the same loads, tiny models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import pytest
from support.bert_files import write_bert
from support.gguf_files import Shape, write_model
from support.lora_files import write_lora
from support.running_daemon import RunningDaemon, running_daemon

CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: state
  runtime_dir: run
memory:
  budget: {RAM: 1GiB}
defaults: {n_threads: 1, n_ctx: 512}
models:
  code: {path: code.gguf, aliases: [copilot]}
  styled: {path: code.gguf, lora: [{path: style.gguf, scale: 2.0}]}
  mismatched: {path: code.gguf, lora: [{path: foreign.gguf}]}
  ranker: {path: rank.gguf}
"""
FIM = {f"tokenizer.ggml.fim_{part}_token_id": 5 + at for at, part in enumerate(("pre", "suf", "mid"))}
SAY = {"prompt": "a", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    shape = Shape(weight_type=gguf.GGMLQuantizationType.F32)
    write_model(tmp_path / "code.gguf", shape, metadata=FIM)
    write_lora(tmp_path / "style.gguf", shape)
    write_lora(tmp_path / "foreign.gguf", shape, architecture="qwen3")
    write_bert(tmp_path / "rank.gguf", pooling=gguf.PoolingType.RANK)
    async with running_daemon(tmp_path, CONFIG) as running:
        yield running


@pytest.fixture
async def http(daemon: RunningDaemon) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(daemon.url) as session:
        yield session


async def ask(http: aiohttp.ClientSession, path: str, model: str, **fields: Any) -> tuple[int, Any]:
    async with http.post(path, json={"model": model, **fields}) as response:
        return response.status, await response.json()


async def states(http: aiohttp.ClientSession) -> dict[str, str]:
    async with http.get("/swapd/v1/status") as response:
        return {model["id"]: model["state"] for model in (await response.json())["models"]}


async def test_a_request_for_tokens_a_template_or_a_gap_loads_the_model_it_names(http: aiohttp.ClientSession) -> None:
    status, tokens = await ask(http, "/tokenize", "copilot", content="def f(x):")
    assert (status, (await states(http))["code"]) == (200, "ready")
    assert (await ask(http, "/detokenize", "code", **tokens))[1] == {"content": "def f(x):"}
    messages = [{"role": "user", "content": "hi"}]
    _, rendered = await ask(http, "/apply-template", "code", messages=messages)
    assert "hi<|im_end|>" in rendered["prompt"]
    _, counted = await ask(http, "/v1/chat/completions/input_tokens", "code", messages=messages)
    assert counted["input_tokens"] > 5
    gap = {"input_prefix": "def f(", "input_suffix": ")", "n_predict": 4, "temperature": 0, "ignore_eos": True}
    _, filled = await ask(http, "/infill", "code", **gap)
    async with http.post("/infill", json={"model": "code", "stream": True, **gap}) as response:
        assert response.content_type == "text/event-stream"
        *chunks, done = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n") if line]
    assert done == "[DONE]"
    assert "".join(json.loads(chunk)["content"] for chunk in chunks) == filled["content"]


async def test_documents_are_reranked_at_every_path_clients_know(http: aiohttp.ClientSession) -> None:
    answers = [
        await ask(http, path, "ranker", query="a fox", documents=["bread", "the red fox"], top_n=1)
        for path in ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking")
    ]
    assert [status for status, _ in answers] == [200] * 4
    assert all(answer["results"] == answers[0][1]["results"] for _, answer in answers)
    assert len(answers[0][1]["results"]) == 1


async def test_a_model_of_another_kind_is_not_loaded_to_refuse(http: aiohttp.ClientSession) -> None:
    refused = [
        await ask(http, "/v1/rerank", "code", query="q", documents=["d"]),
        await ask(http, "/v1/embeddings", "code", input="a"),
        await ask(http, "/v1/completions", "ranker", prompt="a"),
        await ask(http, "/infill", "ranker", input_prefix="a", input_suffix="b"),
        await ask(http, "/v1/chat/completions", "ranker", messages=[{"role": "user", "content": "x"}]),
    ]
    assert [(status, answer["error"]["code"]) for status, answer in refused] == [(400, "unsupported_endpoint")] * 5
    assert "it serves /v1/rerank" in refused[-1][1]["error"]["message"]
    assert set((await states(http)).values()) == {"unloaded"}


async def test_an_adapter_changes_the_answers_and_a_mismatched_one_is_422(http: aiohttp.ClientSession) -> None:
    texts = [
        (await ask(http, "/v1/completions", model, **SAY))[1]["choices"][0]["text"] for model in ("code", "styled")
    ]
    assert texts[0] != texts[1]
    status, answer = await ask(http, "/v1/completions", "mismatched", **SAY)
    assert (status, answer["error"]["code"]) == (422, "invalid_model_file")
    assert "foreign.gguf: was made for qwen3 models" in answer["error"]["message"]
