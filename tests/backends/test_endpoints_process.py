"""The other endpoints of the worker program: a real process, the real engine, real and tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from support.bert_files import write_bert
from support.gguf_files import Shape, write_model
from test_worker_process import Running, launched

from backends.control import Ready, Usage

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 世界!"}]}
REPOSITORY = 4
"""llama.cpp finds `<reponame>` in this vocabulary by its name."""
FIM = {
    "tokenizer.ggml.fim_pre_token_id": 5,
    "tokenizer.ggml.fim_suf_token_id": 6,
    "tokenizer.ggml.fim_mid_token_id": 7,
}


async def ask(worker: Running, path: str, body: dict[str, Any]) -> Any:
    async with worker.post(path, body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_text_goes_through_tokens_and_back_and_is_counted_as_a_chat_counts_it(tmp_path: Path) -> None:
    async with launched(tmp_path, n_threads=1) as worker:
        await worker.until(Ready)
        text = (await ask(worker, "/apply-template", CHAT))["prompt"]
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
        tokens = (await ask(worker, "/tokenize", {"content": text, "add_special": True}))["tokens"]
        assert (await ask(worker, "/detokenize", {"tokens": tokens}))["content"] == text
        counted = (await ask(worker, "/v1/chat/completions/input_tokens", CHAT))["input_tokens"]
        answer = await ask(worker, "/v1/chat/completions", {**CHAT, "max_tokens": 1})
        assert counted == len(tokens) == answer["usage"]["prompt_tokens"]
        pieces = (await ask(worker, "/tokenize", {"content": "世", "with_pieces": True}))["tokens"]
        raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
        assert raw.decode() == "世"
        plain = await ask(worker, "/tokenize", {"content": "<|im_end|>", "parse_special": False})
        assert len(plain["tokens"]) > 1
        assert (await ask(worker, "/tokenize", {"content": "<|im_end|>"}))["tokens"] == [2]
        async with worker.post("/infill", {"input_prefix": "a", "input_suffix": "b"}) as response:
            assert response.status == 400
            assert "cannot fill in the middle" in (await response.json())["error"]["message"]


async def test_a_gap_is_filled_by_a_model_that_has_the_tokens_for_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "code.gguf", metadata=FIM)
    body = {"input_prefix": "def f(", "input_suffix": "return x", "n_predict": 8, "temperature": 0, "ignore_eos": True}
    async with launched(tmp_path, path, n_threads=1) as worker:
        await worker.until(Ready)
        filled = await ask(worker, "/infill", body)
        usage = (await worker.until(Usage))[-1]
        assert isinstance(usage, Usage)
        assert (filled["tokens_predicted"], filled["stop_type"]) == (8, "limit")
        assert (filled["tokens_evaluated"], usage.completion_tokens) == (usage.prompt_tokens, 8)
        sides = [
            (await ask(worker, "/tokenize", {"content": body[key]}))["tokens"]
            for key in ("input_prefix", "input_suffix")
        ]
        header = (await ask(worker, "/tokenize", {"content": "myproject\n"}))["tokens"]
        prompt = [REPOSITORY, *header, 5, *sides[0], 6, *sides[1], 7]
        plain = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        assert (await ask(worker, "/v1/completions", plain))["choices"][0]["text"] == filled["content"]


async def test_documents_are_reranked_and_nothing_else_is_served(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "rank.gguf", pooling=gguf.PoolingType.RANK)
    async with launched(tmp_path, path, n_threads=1, n_ctx=512) as worker:
        await worker.until(Ready)
        body = {"query": "which fox?", "documents": ["a red fox", "", "bread " * 40], "return_documents": True}
        answer = await ask(worker, "/v1/rerank", body)
        scores = [result["relevance_score"] for result in answer["results"]]
        assert sorted(scores, reverse=True) == scores
        assert len(set(scores)) == 3
        assert {result["index"]: result["document"]["text"] for result in answer["results"]} == dict(
            enumerate(body["documents"])
        )
        assert (await worker.until(Usage))[-1] == Usage("r1", answer["usage"]["prompt_tokens"], 0, 0)
        for other, fields in (("/v1/embeddings", {"input": "a"}), ("/v1/chat/completions", CHAT)):
            async with worker.post(other, fields) as response:
                assert response.status == 400
                assert "/v1/rerank" in (await response.json())["error"]["message"]
        async with worker.post("/v1/rerank", {"query": "q", "documents": ["x", "y " * 600]}) as response:
            error = (await response.json())["error"]
        assert (error["param"], error["n_ctx"]) == ("documents[1]", 512)
        assert error["n_prompt_tokens"] > 512


@pytest.mark.parametrize("dimensions", [1, 100, 576])
async def test_the_openai_client_reads_shortened_embeddings(tmp_path: Path, dimensions: int) -> None:
    path = write_model(tmp_path / "tiny.gguf", Shape(n_embd=576, n_head=9, n_head_kv=3))
    async with launched(tmp_path, path, embeddings=True, n_threads=1) as worker:
        await worker.until(Ready)
        async with worker.client() as client:
            whole, short = [
                (await client.embeddings.create(model="m", input="a cat", dimensions=size)).data[0].embedding
                for size in (576, dimensions)
            ]
    length = sum(value * value for value in whole[:dimensions]) ** 0.5
    assert short == pytest.approx([value / length for value in whole[:dimensions]], abs=1e-5)
