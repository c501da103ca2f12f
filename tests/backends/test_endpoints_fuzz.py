"""Random bodies for the other endpoints, sound and broken: every answer is explained and no worker dies of one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.bert_files import write_bert
from support.gguf_files import Shape, write_model
from test_worker_process import Running, launched

from backends.control import Ready

SEED = 20260801
ROUNDS = 150
"""Bodies per endpoint."""
TEXTS = ("", "a", "def f(x):", "émigré 世界 🙂", "<|im_end|>", "\0", "\ud800", "x " * 700, "{query}{document}", "<|im_")
ODD = (None, True, False, 0, -1, 1.5, 1e308, float("nan"), 2**31, 2**70, "", "x", [], {}, [[]], [None], {"a": 1})

Make = Callable[[random.Random], Any]


def text(rng: random.Random) -> Any:
    return rng.choice(TEXTS)


def token(rng: random.Random) -> Any:
    return rng.choice((0, 1, 5, 300, 511, 512, 2**31 - 1, -1))


def several(*kinds: Make) -> Make:
    return lambda rng: [rng.choice(kinds)(rng) for _ in range(rng.choice((0, 1, 2, 5)))]


def flag(rng: random.Random) -> Any:
    return rng.choice((True, False, None))


def number(*choices: float) -> Make:
    return lambda rng: rng.choice(choices)


def mixed(rng: random.Random) -> Any:
    return rng.choice((text, several(text, token)))(rng)


def message(rng: random.Random) -> Any:
    return {"role": rng.choice(("system", "user", "assistant", "tool", "x")), "content": text(rng)}


def document(rng: random.Random) -> Any:
    return rng.choice((text, lambda rng: {"text": text(rng)}))(rng)


def extra(rng: random.Random) -> Any:
    return {"text": text(rng), "filename": text(rng)}


CHAT: dict[str, Make] = {"messages": several(message)}
GENERATOR: dict[str, dict[str, Make]] = {
    "/tokenize": {"content": mixed, "add_special": flag, "parse_special": flag, "with_pieces": flag},
    "/detokenize": {"tokens": several(token)},
    "/apply-template": CHAT,
    "/v1/chat/completions/input_tokens": CHAT,
    "/infill": {
        "input_prefix": mixed,
        "input_suffix": mixed,
        "input_extra": several(extra),
        "prompt": text,
        "n_predict": number(1, 2, 0, -2),
        "n_indent": number(0, 1, 4, -1),
        "t_max_predict_ms": number(-1, 1, 2**40),
        "stream": flag,
        "temperature": number(0, 1, -1),
    },
}
EMBEDDER: dict[str, dict[str, Make]] = {
    "/v1/embeddings": {
        "input": lambda rng: rng.choice((text, several(text), several(token), several(several(token))))(rng),
        "encoding_format": lambda rng: rng.choice(("float", "base64", "hex", None)),
        "dimensions": number(1, 7, 64, 65, 0),
    }
}
RANKER: dict[str, dict[str, Make]] = {
    "/v1/rerank": {
        "query": text,
        "documents": several(document),
        "texts": lambda rng: rng.choice((None, None, ["a"])),
        "top_n": number(1, 2, 99, 0),
        "return_documents": flag,
    }
}


def body(rng: random.Random, fields: dict[str, Make]) -> bytes:
    """Each field is there most of the time, and now and then something else altogether."""
    made = {name: make(rng) for name, make in fields.items() if rng.random() < 0.85}
    if rng.random() < 0.3:
        made[rng.choice(tuple(fields))] = rng.choice(ODD)
    raw = json.dumps(made).encode()
    return raw[: rng.randrange(len(raw))] if rng.random() < 0.05 else raw


async def ask_at_random(worker: Running, endpoints: dict[str, dict[str, Make]]) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    answered = dict.fromkeys(endpoints, 0)
    for path, fields in endpoints.items():
        for _ in range(ROUNDS):
            sent = body(rng, fields)
            async with worker.session.post(f"http://worker{path}", data=sent) as response:
                answer = await response.text()
            if response.status == 200:
                answered[path] += 1
                assert '"error"' not in answer, sent
            else:
                error = json.loads(answer)["error"]
                assert (response.status, error["type"]) in (
                    (400, "invalid_request_error"),
                    (400, "exceed_context_size_error"),
                ), (sent, answer)
                assert len(error["message"]) > 10, (sent, answer)
    assert min(answered.values()) > 0, answered
    assert worker.process.returncode is None


@pytest.mark.parametrize(("kind", "endpoints"), [("generate", GENERATOR), ("embed", EMBEDDER), ("rank", RANKER)])
async def test_whatever_is_sent_is_answered_with_a_reason_and_the_worker_lives(
    tmp_path: Path, kind: str, endpoints: dict[str, dict[str, Make]]
) -> None:
    if kind == "generate":
        fim = {f"tokenizer.ggml.fim_{part}_token_id": 5 + at for at, part in enumerate(("pre", "suf", "mid"))}
        path = write_model(tmp_path / "tiny.gguf", Shape(n_layer=1), metadata=fim)
    else:
        pooling = gguf.PoolingType.MEAN if kind == "embed" else gguf.PoolingType.RANK
        path = write_bert(tmp_path / "bert.gguf", pooling=pooling)
    async with launched(tmp_path, path, n_threads=1, n_ctx=512) as worker:
        await worker.until(Ready)
        await ask_at_random(worker, endpoints)
