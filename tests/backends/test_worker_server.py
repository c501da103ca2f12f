"""The worker's HTTP side on a real Unix socket, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from worker_doubles import ScriptedEngine, events, hello, serving

from backends.control import Usage
from backends.llama_cpp.calls import Switchboard
from backends.llama_cpp.engine.types import Embed, Ended, Finish, Generate, Output, Piece, Prefilled
from backends.llama_cpp.errors import engine_unavailable

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
CREATED = 1735787045


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "worker.sock"


async def test_a_chat_is_rendered_tokenized_and_answered_whole(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = hello
        async with worker.post(CHAT, {**ASK, "max_tokens": 7, "stop": "x", "n": 2, "cache_prompt": False}) as response:
            answer = await response.json()
        generate: Generate = worker.engine.submitted.get_nowait()
        prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        assert generate.prompt == (1, *map(ord, prompt))
        assert (generate.max_tokens, generate.stop, generate.n, generate.cache_prompt) == (7, ("x",), 2, False)
        assert response.status == 200
        answer.pop("created")
        message = {"role": "assistant", "content": "héllo"}
        assert answer == {
            "id": "chatcmpl-r1",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": k, "message": message, "finish_reason": "stop", "logprobs": None} for k in range(2)],
            "usage": {
                "prompt_tokens": 53,
                "completion_tokens": 4,
                "total_tokens": 57,
                "prompt_tokens_details": {"cached_tokens": 1},
            },
        }
        assert worker.usages == [Usage("r1", 53, 1, 4)]


async def test_a_chat_streams_role_text_finish_usage_and_done(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = hello
        body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
        async with worker.post(CHAT, body) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.headers["X-Accel-Buffering"] == "no"
            *chunks, usage, done = events(await response.text())
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "hé"},
        {"content": "llo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 55


async def test_a_stream_without_include_usage_never_mentions_it(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = hello
        async with worker.post(COMPLETE, {"prompt": "ab", "stream": True}) as response:
            *chunks, done = events(await response.text())
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        ("hé", None),
        ("llo", "stop"),
    ]
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {("cmpl-r1", "text_completion")}


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(socket_path: Path) -> None:
    def script(request: Generate) -> list[list[Output]]:
        rid, first = request.request_id, chr(request.prompt[-1])
        pieces = [Piece(rid, k, f"{first}{k}", 1, Finish.LENGTH) for k in range(2)]
        return [[Prefilled(rid, 2, 0), *pieces, Ended(rid, 2, 0, 2)]]

    async with serving(socket_path) as worker:
        worker.engine.script = script
        async with worker.post(COMPLETE, {"prompt": ["a", [98]], "n": 2}) as response:
            answer = await response.json()
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "a0"),
            (1, "a1"),
            (2, "b0"),
            (3, "b1"),
        ]
        assert worker.usages == [Usage("r1", 4, 0, 4)]


async def test_the_usage_is_reported_before_the_last_chunk_can_be_read(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        request = asyncio.ensure_future(worker.post(CHAT, {**ASK, "stream": True}))
        generate: Generate = await worker.engine.submitted.get()
        rid = generate.request_id
        worker.engine.emit([Prefilled(rid, 5, 0), Piece(rid, 0, "x", 1)])
        async with await request as response:
            assert b'"x"' in await response.content.readany()
            assert worker.usages == []
            worker.engine.emit([Piece(rid, 0, "", 1, Finish.STOP), Ended(rid, 5, 0, 2)])
            assert b"[DONE]" in await response.content.readany()
            assert worker.usages == [Usage("r1", 5, 0, 2)]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_in_the_engine_and_its_usage_is_still_told(
    socket_path: Path, stream: bool
) -> None:
    async with serving(socket_path) as worker:
        request = asyncio.ensure_future(worker.post(CHAT, {**ASK, "stream": stream}))
        generate: Generate = await worker.engine.submitted.get()
        rid = generate.request_id
        if stream:
            worker.engine.emit([Prefilled(rid, 5, 0), Piece(rid, 0, "x", 1)])
            (await request).close()
        else:
            request.cancel()
        assert await worker.engine.cancelled.get() == rid
        assert worker.usages == []
        worker.engine.emit([Piece(rid, 0, "y", 1), Ended(rid, 5, 0, 2)])
        await asyncio.sleep(0)
        assert worker.usages == [Usage("r1", 5, 0, 2)]


async def test_a_failure_before_the_first_byte_is_a_status(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = lambda request: [[Ended(request.request_id, 0, 0, 0, "no room")]]
        for stream in (True, False):
            status, error = await worker.error(CHAT, {**ASK, "stream": stream})
            assert (status, error["type"], error["message"]) == (500, "server_error", "no room")


async def test_a_failure_after_the_first_byte_is_the_last_event_and_never_done(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        request = asyncio.ensure_future(worker.post(COMPLETE, {"prompt": ["a", "b"], "stream": True}))
        first: Generate = await worker.engine.submitted.get()
        second: Generate = await worker.engine.submitted.get()
        worker.engine.emit([Prefilled(first.request_id, 2, 0), Piece(first.request_id, 0, "x", 1)])
        async with await request as response:
            received = await response.content.readany()
            late = Piece(second.request_id, 0, "late", 1)
            worker.engine.emit([Ended(first.request_id, 2, 0, 1, "the batch broke"), late])
            received += await response.content.read()
        *_, last = events(received.decode())
        assert last["error"]["message"] == "the batch broke"
        assert b"late" not in received
        assert await worker.engine.cancelled.get() == second.request_id


async def test_outputs_that_pile_up_unread_keep_their_text_and_order(socket_path: Path) -> None:
    numbers = [f"{i} " for i in range(3000)]

    def script(request: Generate) -> list[list[Output]]:
        rid = request.request_id
        pieces = [Piece(rid, k, number, 1) for number in numbers for k in range(2)]
        finish = [Piece(rid, k, "", 0, Finish.STOP) for k in range(2)]
        return [[Prefilled(rid, 5, 0), *pieces, *finish, Ended(rid, 5, 0, 6000)]]

    async with serving(socket_path) as worker:
        worker.engine.script = script
        async with worker.post(CHAT, {**ASK, "stream": True, "n": 2}) as response:
            *chunks, _done = events(await response.text())
    assert len(chunks) < 1500
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "".join(numbers)
        assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {**ASK, "n": 9}, "n"),
        (CHAT, {**ASK, "tools": [{}]}, "tools[0].function"),
        (COMPLETE, {}, "prompt"),
        (COMPLETE, {"prompt": ""}, "prompt"),
        (COMPLETE, {"prompt": [256]}, "prompt"),
        (COMPLETE, {"prompt": [[]]}, "prompt"),
        (COMPLETE, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (COMPLETE, {"prompt": "a", "logit_bias": {"256": 1}}, "logit_bias"),
        (COMPLETE, b"{", None),
    ],
)
async def test_a_bad_request_is_400_with_the_field_and_reaches_no_engine(
    socket_path: Path, path: str, body: object, param: str | None
) -> None:
    async with serving(socket_path) as worker:
        status, error = await worker.error(path, body)
        assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert worker.engine.submitted.empty()
        assert worker.usages == [Usage("r1", 0, 0, 0)]


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), (COMPLETE, "prompt")])
async def test_a_prompt_over_the_context_is_400_with_both_numbers(socket_path: Path, path: str, field: str) -> None:
    long = "x" * 199
    body = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    async with serving(socket_path) as worker:
        status, error = await worker.error(path, body)
    assert (status, error["type"], error["param"]) == (400, "exceed_context_size_error", field)
    assert error["n_prompt_tokens"] >= error["n_ctx"] == 200


async def test_a_template_that_writes_the_first_token_gets_no_second_one(socket_path: Path) -> None:
    async with serving(socket_path, template="{{ bos_token }}{{ messages[0].content }}") as worker:
        worker.engine.script = hello
        async with worker.post(CHAT, ASK):
            generate: Generate = worker.engine.submitted.get_nowait()
    assert generate.prompt == tuple(map(ord, "<s>hi"))


async def test_a_template_that_refuses_is_400_and_one_that_is_broken_500(socket_path: Path) -> None:
    async with serving(socket_path, template="{{ raise_exception('be polite') }}") as worker:
        status, error = await worker.error(CHAT, ASK)
    assert (status, error["code"], error["param"]) == (400, "chat_template_error", "messages")
    assert error["message"].endswith("be polite")
    async with serving(socket_path, template="{% for %}") as worker:
        status, error = await worker.error(CHAT, ASK)
    assert (status, error["code"]) == (500, "chat_template_error")


async def test_an_engine_that_takes_nothing_is_503(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.refusal = engine_unavailable("stopping")
        status, error = await worker.error(COMPLETE, {"prompt": "a"})
        assert (status, error["type"]) == (503, "unavailable_error")
        assert worker.usages == [Usage("r1", 0, 0, 0)]


async def test_a_defect_is_a_500_that_says_nothing_of_the_request(
    socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(socket_path) as worker:
        worker.engine.refusal = RuntimeError("secret prompt")
        status, error = await worker.error(COMPLETE, {"prompt": "a"})
    assert status == 500
    assert "secret" not in error["message"]
    assert "RuntimeError" in caplog.text


async def test_unknown_paths_and_methods_answer_in_the_envelope(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        status, error = await worker.error("/v1/nothing", {})
        assert (status, error["type"]) == (404, "not_found_error")
        async with worker.session.get(f"http://worker{CHAT}") as response:
            assert response.status == 405
            assert "error" in await response.json()
        async with worker.session.get("http://worker/health") as response:
            assert await response.json() == {"status": "ok"}


async def test_two_requests_with_one_id_are_told_apart(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        first = asyncio.ensure_future(worker.post(COMPLETE, {"prompt": "a"}))
        second = asyncio.ensure_future(worker.post(COMPLETE, {"prompt": "b"}))
        generates: list[Generate] = [await worker.engine.submitted.get() for _ in range(2)]
        assert len({generate.request_id for generate in generates}) == 2
        for generate in generates:
            rid, text = generate.request_id, chr(generate.prompt[-1]).upper()
            worker.engine.emit([Prefilled(rid, 2, 0), Piece(rid, 0, text, 1, Finish.STOP), Ended(rid, 2, 0, 1)])
        texts = [json.loads(await (await request).read())["choices"][0]["text"] for request in (first, second)]
        assert texts == ["A", "B"]


async def test_a_request_id_that_is_missing_or_strange_is_replaced(socket_path: Path) -> None:
    async with serving(socket_path) as worker:
        worker.engine.script = hello
        async with worker.post(COMPLETE, {"prompt": "a"}, **{"X-Request-Id": "a b\tc"}) as response:
            made = (await response.json())["id"].removeprefix("cmpl-")
        assert len(made) == 32
        assert worker.usages[0].request_id == made


async def test_the_switchboard_is_busy_exactly_while_the_engine_has_work() -> None:
    reported: list[Usage] = []
    switchboard = Switchboard(asyncio.get_running_loop(), reported.append)
    engine = ScriptedEngine(switchboard.emit)
    switchboard.connect(engine)
    with switchboard.call("r") as call:
        assert not switchboard.busy.is_set()
        call.submit([Embed(switchboard.new_id("r"), ((1,),))])
        assert switchboard.busy.is_set()
    rid = engine.cancelled.get_nowait()
    assert switchboard.busy.is_set()
    engine.emit([Ended(rid, 1, 0, 0)])
    await asyncio.sleep(0)
    assert not switchboard.busy.is_set()
    assert reported == [Usage("r", 1, 0, 0)]
