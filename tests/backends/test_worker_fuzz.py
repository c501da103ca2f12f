"""Random bodies at every endpoint of real worker processes: each is answered or refused with a reason, and none dies.

`SWAPD_FUZZ=1` sends all of the 2,000 bodies instead of a tenth.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.bert_files import write_bert
from support.body_fuzzer import BodyFuzzer, scaled
from support.gguf_files import Shape, write_model
from support.mmproj_files import write_llava
from test_worker_process import Running, launched

from backends.control import Ready
from backends.llama_cpp import infill, native, tokens, unsupported, vectors
from backends.llama_cpp.chat.body import ChatBody
from backends.llama_cpp.errors import CONTEXT_EXCEEDED
from backends.llama_cpp.requests import CompletionBody
from backends.llama_cpp.server import HANDLERS

SEED = 20261128
BODIES = scaled(2_000, 0.1)
AT_ONCE = 4
ODDS = (0.0, 0.0, 0.0, 0.0, 0.02, 0.3)
"""Mostly sound: what is refused at the door never reaches the engine."""
SHAPES: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, unsupported.CHAT),
    "/v1/completions": (CompletionBody, unsupported.COMPLETION),
    "/v1/chat/completions/input_tokens": (ChatBody, unsupported.CHAT),
    "/v1/embeddings": (vectors.EmbeddingBody, {}),
    "/v1/rerank": (vectors.RerankBody, {}),
    "/completion": (native.TextPrompt, unsupported.NATIVE),
    "/infill": (infill.InfillBody, unsupported.NATIVE),
    "/apply-template": (ChatBody, unsupported.CHAT),
    "/tokenize": (tokens.TokenizeBody, {}),
    "/detokenize": (tokens.DetokenizeBody, {}),
}
POOLED = {"/v1/embeddings": gguf.PoolingType.MEAN, "/v1/rerank": gguf.PoolingType.RANK}
"""What another kind of model is needed for."""
FIM = {f"tokenizer.ggml.fim_{part}_token_id": 5 + at for at, part in enumerate(("pre", "suf", "mid"))}


async def outcome(worker: Running, path: str, data: bytes) -> str:
    """The status, checked with all that belongs to it."""
    async with worker.session.post(f"http://worker{path}", data=data) as response:
        text = await response.text()
    if response.status != 200:
        error = json.loads(text)["error"]
        assert response.status == 400, (path, data, error)
        assert error["type"] in ("invalid_request_error", CONTEXT_EXCEEDED)
        assert len(error["message"]) > 10, (path, data, error)
    elif response.content_type == "text/event-stream":
        *events, end = text.removesuffix("\n\n").split("\n\n")
        assert end == "data: [DONE]", (path, data, text[-300:])
        assert not any("error" in json.loads(event.removeprefix("data: ")) for event in events), (path, data, text)
        return "stream"
    else:
        assert "error" not in json.loads(text), (path, data, text)
    return str(response.status)


async def send_at_random(worker: Running, paths: list[str]) -> dict[str, Counter[str]]:
    """Outcomes by path, with as many requests in flight as sequences."""
    found: dict[str, Counter[str]] = {path: Counter() for path in paths}
    todo = iter([(path, index) for path in paths for index in range(BODIES // len(SHAPES))])
    fuzzers = {path: BodyFuzzer(SHAPES[path][0], SEED, others=tuple(SHAPES[path][1]), odds=ODDS) for path in paths}

    async def client() -> None:
        for path, _ in todo:
            found[path][await outcome(worker, path, fuzzers[path].body())] += 1

    async with asyncio.TaskGroup() as clients:
        for _ in range(AT_ONCE):
            clients.create_task(client())
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["generator", *POOLED])
async def test_no_body_is_left_without_an_answer_and_no_worker_dies_of_one(tmp_path: Path, kind: str) -> None:
    assert set(SHAPES) == set(HANDLERS)
    if kind in POOLED:
        paths, model = [kind], write_bert(tmp_path / "bert.gguf", pooling=POOLED[kind])
        mmproj = None
    else:
        paths = [path for path in SHAPES if path not in POOLED]
        model = write_model(tmp_path / "tiny.gguf", Shape(n_layer=1), metadata=FIM)
        mmproj = str(write_llava(tmp_path / "mmproj.gguf"))
    print(f"seed {SEED}")
    async with launched(tmp_path, model, n_threads=1, n_ctx=512, n_parallel=AT_ONCE, mmproj=mmproj) as worker:
        await worker.until(Ready)
        outcomes = await send_at_random(worker, paths)
        assert worker.process.returncode is None
        async with worker.session.get("http://worker/health") as response:
            assert response.status == 200
    for path, counted in outcomes.items():
        assert counted["400"], (path, counted)
        assert counted["200"] + counted["stream"], (path, counted)
    print(outcomes)
