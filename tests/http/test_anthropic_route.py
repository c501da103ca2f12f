"""Anthropic's dialect through the front door, with a worker that answers byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from support.chat_answers import USAGE, chunk, read_events, whole
from support.front_door import DONE, Call, ScriptedDoor, house, worker

from swapd.errors import LoadFailedError

MESSAGES = "/v1/messages"
ASK: dict[str, Any] = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
CHUNKS = [
    chunk(role="assistant", content=""),
    chunk(content="Hel"),
    chunk(content="lo"),
    chunk("stop"),
    chunk(usage=USAGE),
]
STREAM = b"".join(b"data: " + one + b"\n\n" for one in CHUNKS) + DONE


async def test_the_worker_gets_a_chat_and_the_client_a_message(tmp_path: Path) -> None:
    seen: list[Call] = []

    async def script(call: Call) -> None:
        seen.append(call)
        await call.whole(whole(content="Hello"))

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(MESSAGES, json=ASK) as response:
            message = await response.json()
            assert (response.status, response.content_type) == (200, "application/json")
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert seen[0].head.startswith("POST /v1/chat/completions ")
    assert json.loads(seen[0].body) == {"model": "org/tiny", "max_tokens": 9, "messages": ASK["messages"]}
    (ticket,) = home.door.tickets
    assert (ticket.needs, ticket.answer_limit) == ("chat", 9)


async def test_however_the_workers_stream_is_cut_the_events_are_the_same(tmp_path: Path) -> None:
    size = 1

    async def script(call: Call) -> None:
        await call.start()
        for start in range(0, len(STREAM), size):
            await call.chunk(STREAM[start : start + size])
        await call.end()

    told = []
    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        for size in (7, 100, 1000, len(STREAM)):  # noqa: B007 the script reads it
            async with home.http.post(MESSAGES, json={**ASK, "stream": True}) as response:
                told.append(read_events(await response.read()))
                assert response.content_type == "text/event-stream"
    assert [event["type"] for event in told[0]][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert told[0] == told[1] == told[2] == told[3]


async def test_a_worker_that_dies_ends_the_stream_with_an_error_event(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(STREAM[: STREAM.index(b"lo")])
        call.die()

    door = ScriptedDoor([tmp_path / "w"], lost_why="it was killed")
    async with worker(tmp_path / "w", script), house(door) as home:
        async with home.http.post(MESSAGES, json={**ASK, "stream": True}) as response:
            events = read_events(await response.read())
    assert [event["type"] for event in events[-2:]] == ["content_block_delta", "error"]
    assert events[-1]["error"]["type"] == "api_error"
    assert "it was killed" in events[-1]["error"]["message"]


async def test_a_worker_that_talks_nonsense_is_an_error_before_the_stream_begins_and_in_it(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(b"data: " + chunk(content="Hel") + b"\n\n")
        await go.wait()
        await call.chunk(b"data: {\n\n")
        await call.closed()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(MESSAGES, json={**ASK, "stream": True}) as response:
            begun = await response.content.readuntil(b"content_block_delta")
            # From here on the relay passes chunks on as they come.
            go.set()
            events = read_events(begun + await response.read())
        assert events[-1]["type"] == "error"
        assert "cannot be translated" in events[-1]["error"]["message"]
        async with home.http.post(MESSAGES, json={**ASK, "stream": True}) as response:
            assert (response.status, (await response.json())["error"]["type"]) == (502, "api_error")
        assert await home.door.left(2) == ["failed", "failed"]


async def test_refusals_of_the_daemon_and_of_the_worker_are_anthropics_objects(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        error = {"message": "messages has 300 tokens", "type": "exceed_context_size_error", "n_prompt_tokens": 300}
        await call.whole(json.dumps({"error": {**error, "n_ctx": 256}}).encode(), status="400 Bad Request")

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        for body, status, kind, word in (
            ({**ASK, "model": "nobody"}, 404, "not_found_error", "close: org/tiny"),
            ({**ASK, "max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
            (ASK, 400, "invalid_request_error", "prompt is too long: 300 tokens > 256 maximum"),
            ({**ASK, "stream": True}, 400, "invalid_request_error", "prompt is too long"),
        ):
            async with home.http.post(MESSAGES, json=body) as response:
                document = await response.json()
                assert response.status == status
            assert (document["type"], document["error"]["type"]) == ("error", kind)
            assert word in document["error"]["message"]
        home.door.refusal = LoadFailedError("it did not load", retry_after_s=2)
        async with home.http.post(MESSAGES, json=ASK) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "2")
            assert (await response.json())["error"]["type"] == "overloaded_error"
        async with home.http.get(MESSAGES) as response:
            assert (response.status, (await response.json())["type"]) == (405, "error")


async def test_tokens_are_counted_without_any_limit_on_the_answer(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        assert re.match(r"POST /v1/chat/completions/input_tokens ", call.head)
        await call.whole(b'{"object": "response.input_tokens", "input_tokens": 12}')

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        ask = {name: value for name, value in ASK.items() if name != "max_tokens"}
        async with home.http.post(f"{MESSAGES}/count_tokens", json=ask) as response:
            assert await response.json() == {"input_tokens": 12}
