"""Logprobs as a client reads them, in OpenAI's two shapes and llama-server's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai.types
import openai.types.chat
import pytest
from worker_doubles import Worker, events, serving

from backends.llama_cpp.calls import merged
from backends.llama_cpp.engine.types import (
    Ended,
    Finish,
    Generate,
    Logprob,
    Output,
    Piece,
    Prefilled,
    SpecialTokens,
    TokenLogprobs,
)

CHAT, COMPLETE, INFILL = "/v1/chat/completions", "/v1/completions", "/infill"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
TEMPLATE = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ messages[0].content }}<tool_call><think>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
FIM = SpecialTokens(fim_prefix=200, fim_suffix=201, fim_middle=202)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


def told(text: bytes, offset: int) -> TokenLogprobs:
    """A token of this text, -0.5, and a likelier one beside it."""
    token = text[0]
    return TokenLogprobs(
        Logprob(token, text, -0.5), (Logprob(9, b"<|end|>", -0.25), Logprob(token, text, -0.5)), offset
    )


def saying(*pieces: tuple[str, list[TokenLogprobs]]) -> Callable[[Generate], list[list[Output]]]:
    """An engine that says this in every choice, a piece per batch."""

    def script(request: Generate) -> list[list[Output]]:
        rid, count = request.request_id, len(request.prompt)
        batches: list[list[Output]] = [[Prefilled(rid, count, 0)]]
        for position, (text, entries) in enumerate(pieces):
            last = Finish.STOP if position == len(pieces) - 1 else None
            batches.append([Piece(rid, k, text, 1, last, tuple(entries)) for k in range(request.n)])
        return [*batches, [Ended(rid, count, 0, len(pieces))]]

    return script


SAID = saying(("a", [told(b"a", 0)]), ("é.", [told(b"\xc3", 1), told(b"\xa9", 1), told(b".", 2)]), ("", []))


async def whole(worker: Worker, path: str, body: dict[str, Any]) -> Any:
    async with worker.post(path, body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def streamed(worker: Worker, path: str, body: dict[str, Any]) -> list[Any]:
    async with worker.post(path, {**body, "stream": True}) as response:
        *chunks, done = events(await response.text())
    assert done == "[DONE]"
    return chunks


def chat_entry(text: str, raw: bytes) -> dict[str, Any]:
    beside = [
        {"token": "<|end|>", "logprob": -0.25, "bytes": list(b"<|end|>")},
        {"token": text, "logprob": -0.5, "bytes": list(raw)},
    ]
    return {"token": text, "logprob": -0.5, "bytes": list(raw), "top_logprobs": beside}


ENTRIES = [chat_entry("a", b"a"), chat_entry("\ufffd", b"\xc3"), chat_entry("\ufffd", b"\xa9"), chat_entry(".", b".")]


async def test_a_chats_logprobs_are_openais(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = SAID
        answer = await whole(worker, CHAT, {**ASK, "logprobs": True, "top_logprobs": 2, "n": 2})
        generate: Generate = worker.engine.submitted.get_nowait()
    assert generate.logprobs == 2
    assert [choice["logprobs"] for choice in answer["choices"]] == [{"content": ENTRIES, "refusal": None}] * 2
    openai.types.chat.ChatCompletion.model_validate(answer, strict=True)


async def test_a_chats_chunks_tell_of_the_tokens_of_their_text(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = SAID
        chunks = await streamed(worker, CHAT, {**ASK, "logprobs": True, "top_logprobs": 2})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(choice["delta"].get("content"), choice["logprobs"]) for choice in choices] == [
        ("", None),
        ("a", {"content": ENTRIES[:1], "refusal": None}),
        ("é.", {"content": ENTRIES[1:], "refusal": None}),
        (None, None),
    ]
    for chunk in chunks:
        openai.types.chat.ChatCompletionChunk.model_validate(chunk, strict=True)


async def test_logprobs_of_reasoning_and_calls_are_told_too_and_wait_with_text_that_is_held_back(
    socket_path: Path,
) -> None:
    said = saying(
        ("Hm.", [told(b"Hm.", 0)]),
        ("</thi", [told(b"</thi", 3)]),
        ("nk>", [told(b"nk>", 8)]),
        ('<tool_call>{"name": "add", ', [told(b"<tool_call>", 11)]),
        ('"arguments": {}}</tool_call>', [told(b"x", 40), told(b"y", 50)]),
        ("", [told(b"z", 60)]),
    )
    body = {**ASK, "tools": [TOOL], "logprobs": True, "enable_thinking": True}
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = said
        chunks = await streamed(worker, CHAT, body)
        (choice,) = (await whole(worker, CHAT, body))["choices"]
    seen = [
        (
            next(iter(chunk["choices"][0]["delta"]), None),
            [entry["token"] for entry in (chunk["choices"][0]["logprobs"] or {"content": ()})["content"]],
        )
        for chunk in chunks
    ]
    assert seen[:2] == [("role", []), ("reasoning_content", ["Hm."])]
    everything = [token for _, tokens in seen for token in tokens]
    assert everything == ["Hm.", "</thi", "nk>", "<tool_call>", "x", "y", "z"]
    held = [tokens for kind, tokens in seen if kind == "tool_calls"]
    assert held[0] == ["</thi", "nk>", "<tool_call>", "x", "y"], "nothing was shown in between"
    assert seen[-1] == (None, ["z"])
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == everything


async def test_without_being_asked_for_logprobs_are_null(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = saying(("a", []), ("", []))
        for path, body in ((CHAT, ASK), (COMPLETE, {"prompt": "x"})):
            assert (await whole(worker, path, body))["choices"][0]["logprobs"] is None
            assert {chunk["choices"][0]["logprobs"] for chunk in await streamed(worker, path, body)} == {None}


async def test_an_answer_without_a_token_has_no_entries(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = saying(("", []))
        chat = await whole(worker, CHAT, {**ASK, "logprobs": True})
        text = await whole(worker, COMPLETE, {"prompt": "x", "logprobs": 0})
    assert chat["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert text["choices"][0]["logprobs"] == {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }


async def test_a_completions_logprobs_are_openais_lists(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = SAID
        answer = await whole(worker, COMPLETE, {"prompt": "x", "logprobs": 2})
        chunks = await streamed(worker, COMPLETE, {"prompt": "x", "n_probs": 2})
    tokens = ["a", "bytes:\\xc3", "bytes:\\xa9", "."]
    assert answer["choices"][0]["logprobs"] == {
        "tokens": tokens,
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"<|end|>": -0.25, token: -0.5} for token in tokens],
        "text_offset": [0, 1, 1, 2],
    }
    openai.types.Completion.model_validate(answer, strict=True)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [part and part["tokens"] for part in parts] == [tokens[:1], tokens[1:], None]
    assert [part and part["text_offset"] for part in parts] == [[0], [1, 1, 2], None]


async def test_a_token_that_is_not_among_the_likely_is_told_beside_them(socket_path: Path) -> None:
    entry = TokenLogprobs(Logprob(1, b"x", -3.0), (Logprob(2, b"y", -0.1), Logprob(3, b"y", -4.0)), 0)
    async with serving(socket_path) as worker:
        worker.engine.script = saying(("x", [entry]), ("", []))
        answer = await whole(worker, COMPLETE, {"prompt": "x", "logprobs": 2})
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"y": -0.1, "x": -3.0}], "the likelier of two alike"


async def test_a_gap_tells_probabilities_as_llama_server_does(socket_path: Path) -> None:
    gap = {"input_prefix": "a", "input_suffix": "b", "n_probs": 2}
    native = {**ENTRIES[0], "id": 97}
    native["top_logprobs"] = [{**one, "id": token} for one, token in zip(native["top_logprobs"], (9, 97), strict=True)]
    async with serving(socket_path, special_tokens=FIM) as worker:
        worker.engine.script = SAID
        answer = await whole(worker, INFILL, gap)
        chunks = await streamed(worker, INFILL, gap)
    assert answer["completion_probabilities"][0] == native
    assert len(answer["completion_probabilities"]) == 4
    assert [len(chunk.get("completion_probabilities", ())) for chunk in chunks] == [1, 3, 0]


async def test_a_gap_that_its_indentation_ends_tells_nothing_of_what_is_cut(socket_path: Path) -> None:
    async with serving(socket_path, special_tokens=FIM) as worker:
        worker.engine.script = saying(("a\nb", [told(b"a", 0), told(b"\n", 1), told(b"b", 2)]), ("", []))
        answer = await whole(worker, INFILL, {"input_prefix": "a", "input_suffix": "b", "n_probs": 2, "n_indent": 4})
    assert answer["content"] == "a\n"
    assert [entry["token"] for entry in answer["completion_probabilities"]] == ["a", "\n"]


def test_pieces_that_nobody_has_read_are_joined_with_all_their_entries() -> None:
    first = Piece("r", 0, "a", 1, None, (told(b"a", 0),))
    other = Piece("r", 1, "b", 1, None, (told(b"b", 0),))
    last = Piece("r", 0, "c", 2, Finish.STOP, (told(b"c", 1),))
    assert merged([first, other, last]) == [
        Piece("r", 0, "ac", 3, Finish.STOP, (told(b"a", 0), told(b"c", 1))),
        other,
    ]
