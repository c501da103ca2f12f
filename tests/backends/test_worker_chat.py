"""Tools and reasoning through the worker's HTTP side, with a scripted engine behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_doubles import Worker, events, serving

from backends.llama_cpp.engine.types import Ended, Finish, Generate, Output, Piece, Prefilled

CHAT = "/v1/chat/completions"
TEMPLATE = """\
{%- for tool in tools %}{{ tool.function.name }}{% endfor %}
{%- for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}
{%- endfor %}{{ '<think>' if enable_thinking }}"""
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ASK = {"messages": [{"role": "user", "content": "2+3?"}], "tools": [TOOL]}
CALL = '{"name": "add", "arguments": {"a": 2}}'


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


def saying(*texts: str, finish: Finish = Finish.STOP) -> Callable[[Generate], list[list[Output]]]:
    """An engine that says this in every choice, a piece per batch."""

    def script(request: Generate) -> list[list[Output]]:
        rid, count = request.request_id, len(request.prompt)
        batches: list[list[Output]] = [[Prefilled(rid, count, 0)]]
        for position, text in enumerate(texts):
            last = finish if position == len(texts) - 1 else None
            batches.append([Piece(rid, k, text, 1, last) for k in range(request.n)])
        return [*batches, [Ended(rid, count, 0, len(texts))]]

    return script


async def whole(worker: Worker, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with worker.post(CHAT, body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        choices: list[dict[str, Any]] = answer["choices"]
        return choices


async def streamed(worker: Worker, body: dict[str, Any]) -> list[tuple[dict[str, Any], str | None]]:
    async with worker.post(CHAT, {**body, "stream": True}) as response:
        *chunks, done = events(await response.text())
    assert done == "[DONE]"
    return [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]


async def test_a_whole_answer_has_reasoning_content_and_calls_apart(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("<think>Hm.</think>Let me", f" see.\n<tool_call>{CALL}</tool_call>", "")
        (choice,) = await whole(worker, ASK)
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
            ],
        },
        "finish_reason": "tool_calls",
        "logprobs": None,
    }


async def test_content_beside_calls_is_null_when_there_is_none(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying(f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>")
        choices = await whole(worker, {**ASK, "n": 2})
    assert [choice["message"]["content"] for choice in choices] == [None, None]
    ids = [call["id"] for choice in choices for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 4


async def test_a_stream_tells_of_a_call_and_then_of_its_arguments(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("<tool", '_call>{"name": "add", "argu', 'ments": {"a"', ": 2}}", "</tool_call>")
        deltas = await streamed(worker, ASK)
    start = {"index": 0, "id": "call00001", "type": "function", "function": {"name": "add", "arguments": ""}}
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"tool_calls": [start]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}, None),
        ({"tool_calls": [{"index": 0, "function": {"arguments": ": 2}"}}]}, None),
        ({}, "tool_calls"),
    ]


async def test_a_call_that_max_tokens_cut_off_says_so(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying('<tool_call>{"name": "add", "arguments": {"a', finish=Finish.LENGTH)
        deltas = await streamed(worker, ASK)
        assert deltas[-2:] == [
            ({"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]}, None),
            ({}, "length"),
        ]
        worker.engine.script = saying("<tool_", finish=Finish.LENGTH)
        assert (await streamed(worker, ASK))[1:] == [({"content": "<tool_"}, None), ({}, "length")]


async def test_without_tools_what_looks_like_a_call_is_content(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying(f"<tool_call>{CALL}")
        for body in ({"messages": ASK["messages"]}, {**ASK, "tool_choice": "none"}):
            (choice,) = await whole(worker, body)
            assert choice["message"]["content"] == f"<tool_call>{CALL}"
            assert choice["finish_reason"] == "stop"


async def test_a_prompt_that_begins_the_reasoning_is_read_so(socket_path: Path) -> None:
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("Hm.", "</think>", "Five.")
        deltas = await streamed(worker, {**ASK, "enable_thinking": True})
        assert deltas[1:] == [({"reasoning_content": "Hm."}, None), ({"content": "Five."}, None), ({}, "stop")]
        (choice,) = await whole(worker, {**ASK, "enable_thinking": True, "reasoning_format": "none"})
        assert choice["message"] == {"role": "assistant", "content": "<think>Hm.</think>Five."}


async def test_the_familys_markers_are_made_visible_and_no_others(socket_path: Path) -> None:
    """The tokenizer of these tests has a token per character, so that only a marker of one character is a token."""
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("ok")
        await whole(worker, ASK)
        generate: Generate = worker.engine.submitted.get_nowait()
    assert generate.visible_tokens == frozenset()


async def test_a_history_with_calls_and_results_is_rendered(socket_path: Path) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "5"},
    ]
    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("Five.")
        (choice,) = await whole(worker, {**ASK, "messages": messages})
        generate: Generate = worker.engine.submitted.get_nowait()
    assert choice["message"]["content"] == "Five."
    text = "".join(map(chr, generate.prompt[1:]))
    assert text == 'add2+3?<tool_call>{"name": "add", "arguments": {"a": 2}}5'


async def test_usage_tells_how_many_tokens_were_reasoning_where_there_was_any(socket_path: Path) -> None:
    async def usages(body: dict[str, Any]) -> list[dict[str, Any]]:
        """Of the same answer, whole and streamed."""
        async with worker.post(CHAT, body) as response:
            answered = (await response.json())["usage"]
        async with worker.post(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}}) as response:
            return [answered, events(await response.text())[-2]["usage"]]

    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = saying("<think>", "Hm", ".", "</think>", "Five", ".")
        for usage in await usages(ASK):
            assert usage["completion_tokens_details"] == {"reasoning_tokens": 3}
        worker.engine.script = saying("Five", ".")
        for usage in await usages(ASK):
            assert "completion_tokens_details" not in usage


async def test_the_stop_string_that_ended_a_choice_is_told_with_its_end(socket_path: Path) -> None:
    def script(request: Generate) -> list[list[Output]]:
        rid = request.request_id
        ends = [Piece(rid, k, "Five", 1, Finish.STOP, (), ("END", None)[k]) for k in range(2)]
        return [[Prefilled(rid, 1, 0)], [*ends], [Ended(rid, 1, 0, 2)]]

    async with serving(socket_path, template=TEMPLATE) as worker:
        worker.engine.script = script
        choices = await whole(worker, {**ASK, "n": 2})
        assert (choices[0]["stop_reason"], "stop_reason" in choices[1]) == ("END", False)
        async with worker.post(CHAT, {**ASK, "n": 2, "stream": True}) as response:
            *chunks, _ = events(await response.text())
    told = [chunk["choices"][0] for chunk in chunks if "stop_reason" in chunk["choices"][0]]
    assert [(choice["index"], choice["finish_reason"], choice["stop_reason"]) for choice in told] == [
        (0, "stop", "END")
    ]
