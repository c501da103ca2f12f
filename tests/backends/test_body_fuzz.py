"""Random bodies against everything that checks them, at the daemon's door and at the worker's.

Each is taken, or refused in a sentence that names the field where there is one; nothing else may happen.
`SWAPD_FUZZ=10` tries ten times as many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.body_fuzzer import BodyFuzzer, scaled
from worker_doubles import LIMITS, CharTokenizer, char_grammars

from backends.llama_cpp import infill, native, prompts, tokens, unsupported, vectors
from backends.llama_cpp.chat.body import ChatBody, decode_chat
from backends.llama_cpp.engine.types import SpecialTokens
from backends.llama_cpp.errors import CONTEXT_EXCEEDED, RequestError
from backends.llama_cpp.media.parts import Abilities, take_media
from backends.llama_cpp.requests import CompletionBody, decode_completion
from swapd.api import openai
from swapd.config.schema import Model
from swapd.errors import BadRequestError

SEED = 20261127
BODIES = scaled(100_000, 1.0)
LONGEST_REFUSAL = 2_000
"""Bytes; a refusal may quote a little of what it refuses."""
SPECIAL = SpecialTokens(bos=1, eos=2, add_bos=True, fim_prefix=5, fim_suffix=6, fim_middle=7)
VOCABULARY = CharTokenizer()
GRAMMARS = char_grammars()


def chat(data: bytes) -> object:
    body = decode_chat(data)
    take_media(body.messages, Abilities(sees=True, hears=True))
    return prompts.generates(body, [(1,)], VOCABULARY, LIMITS, lambda: "r")


def completion(data: bytes) -> object:
    return prompts.completion_requests(decode_completion(data), VOCABULARY, GRAMMARS, LIMITS, lambda: "r")


def embedding(data: bytes) -> object:
    return vectors.embedding_inputs(vectors.decode_embedding(data, LIMITS), VOCABULARY, LIMITS)


def rerank(data: bytes) -> object:
    return vectors.rerank_inputs(vectors.decode_rerank(data), VOCABULARY, SPECIAL, None, LIMITS)


def fill_in(data: bytes) -> object:
    return infill.infill_request(infill.decode_infill(data, LIMITS), VOCABULARY, GRAMMARS, SPECIAL, LIMITS, lambda: "r")


def go_on(data: bytes) -> object:
    return native.text_request(native.decode_text(data, LIMITS), VOCABULARY, GRAMMARS, LIMITS, lambda: "r")


@dataclass(frozen=True)
class Door:
    """What checks a kind of body, and the type it checks against."""

    shape: Any
    check: Callable[[bytes], object]
    others: Mapping[str, Any] = field(default_factory=dict)


WORKER = {
    "chat": Door(ChatBody, chat, unsupported.CHAT),
    "completion": Door(CompletionBody, completion, unsupported.COMPLETION),
    "embedding": Door(vectors.EmbeddingBody, embedding),
    "rerank": Door(vectors.RerankBody, rerank),
    "native": Door(native.TextPrompt, go_on, unsupported.NATIVE),
    "infill": Door(infill.InfillBody, fill_in, unsupported.NATIVE),
    "tokenize": Door(tokens.TokenizeBody, lambda data: tokens.tokenize(data, VOCABULARY, LIMITS)),
    "detokenize": Door(tokens.DetokenizeBody, lambda data: tokens.detokenize(data, VOCABULARY, LIMITS)),
}
AT_WORKER = {
    openai.Endpoint.CHAT_COMPLETIONS: "chat",
    openai.Endpoint.COMPLETIONS: "completion",
    openai.Endpoint.EMBEDDINGS: "embedding",
    openai.Endpoint.RERANK: "rerank",
    openai.Endpoint.COMPLETION: "native",
    openai.Endpoint.INFILL: "infill",
    openai.Endpoint.TOKENIZE: "tokenize",
    openai.Endpoint.DETOKENIZE: "detokenize",
}
PER_DOOR = BODIES // (len(WORKER) + len(AT_WORKER))


def outcome(check: Callable[[bytes], object], data: bytes) -> str | None:
    """None when it was taken, else the field at fault, or the reason where there is none."""
    try:
        check(data)
    except RequestError as refusal:
        text, status = refusal.envelope(), refusal.status
    except BadRequestError as refusal:
        text, status = json.dumps(refusal.envelope()).encode(), refusal.status
    else:
        return None
    assert status == 400
    assert len(text) < LONGEST_REFUSAL, text
    error = json.loads(text.decode())["error"]
    assert error["type"] in ("invalid_request_error", CONTEXT_EXCEEDED)
    assert len(error["message"]) > 10
    return str(error["param"] or error["message"])


def try_door(door: Door) -> None:
    fuzzer = BodyFuzzer(door.shape, SEED, others=tuple(door.others))
    print(f"seed {SEED}")
    taken, blamed = 0, set()
    for _ in range(PER_DOOR):
        data = fuzzer.body()
        fault = outcome(door.check, data)
        taken += fault is None
        if fault is not None:
            blamed.add(re.split(r"[.\[]", fault)[0])
    assert taken > PER_DOOR / 50, "hardly any body is sound: the fuzzer tries nothing deep"
    assert PER_DOOR - taken > PER_DOOR / 50
    assert fuzzer.fields <= blamed, "these were never at fault"


@pytest.mark.parametrize("kind", WORKER)
def test_the_worker_takes_a_body_or_says_what_is_wrong_with_it(kind: str) -> None:
    try_door(WORKER[kind])


@pytest.mark.parametrize("endpoint", AT_WORKER, ids=AT_WORKER.values())
def test_what_the_daemon_lets_through_the_worker_takes_or_explains(endpoint: openai.Endpoint) -> None:
    model = Model(id="m", backend="llama_cpp", settings=None)
    behind = WORKER[AT_WORKER[endpoint]].check

    def both(data: bytes) -> object:
        return behind(openai.rewrite(openai.read(endpoint, data), model).body)

    try_door(Door(openai.shape_of(endpoint), both))
