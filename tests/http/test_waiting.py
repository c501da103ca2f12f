"""What clients see of the queue: comments, reasoning text, headers, cancels. Refusals before a body is read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from support.front_door import CHAT, DONE, Call, ScriptedDoor, chat_body, house, model, worker

from swapd.http.exchange import Bounds
from swapd.http.record import Record
from swapd.http.waiting import News
from swapd.pool.lease import Place
from swapd.pool.status import RequestStatus

QUEUED = Place(3, "queued", 12.4)
LOADING = Place(1, "loading, 40 %", None)


def news(*places: Place | None, loading_text: bool = False, comment_every_s: float = 15.0) -> News:
    left = list(places)
    return News(
        Record("r1", CHAT, model_id="tiny"),
        lambda _: left.pop(0) if len(left) > 1 else left[0],
        comment_every_s=comment_every_s,
        loading_text=loading_text,
    )


# -- the words -------------------------------------------------------------------------------------------------


def test_a_comment_says_the_position_the_state_and_the_wait_if_that_is_credible() -> None:
    telling = news(QUEUED, LOADING, None)
    assert telling.every_s == 15.0
    assert telling() == b": waiting for tiny, position 3, queued, about 12 s\n\n"
    assert telling() == b": waiting for tiny, position 1, loading, 40 %\n\n"
    assert telling() == b": waiting for tiny\n\n"


def test_a_request_that_was_granted_is_no_longer_said_to_wait() -> None:
    record = Record("r1", CHAT, model_id="tiny", granted=True, place=QUEUED)
    telling = News(record, lambda _: QUEUED, comment_every_s=15.0, loading_text=False)
    assert telling() == b": running on tiny\n\n"
    assert record.place is None


def test_loading_text_is_told_when_it_changes_and_comments_fill_the_silence() -> None:
    telling = news(QUEUED, QUEUED, LOADING, LOADING, loading_text=True, comment_every_s=3.0)
    said = [telling() for _ in range(8)]
    assert telling.every_s == 1.0
    assert [event[:2] for event in said] == [b"da", b"", b"da", b"", b"", b": ", b"", b""]
    first, second = (json.loads(event.removeprefix(b"data: ")) for event in (said[0], said[2]))
    assert first["object"] == "chat.completion.chunk"
    assert first["id"] == second["id"] == "chatcmpl-r1"
    assert first["model"] == "tiny"
    assert isinstance(first["created"], int)
    (choice,) = first["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, None)
    text = "tiny: position 3, queued, about 12 s\n"
    assert choice["delta"] == {"role": "assistant", "reasoning_content": text}
    assert second["choices"][0]["delta"] == {"reasoning_content": "tiny: position 1, loading, 40 %\n"}


# -- over HTTP -------------------------------------------------------------------------------------------------


async def stream_of_two(call: Call) -> None:
    await call.start()
    await call.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n' + DONE)
    await call.end()


def gated(tmp_path: Path, **model_fields: object) -> ScriptedDoor:
    known = [model(**model_fields)]
    return ScriptedDoor([tmp_path / "w"], known=known, gate=asyncio.Event(), standing=QUEUED)


async def test_a_stream_that_begins_while_it_waits_has_its_position_in_the_headers(tmp_path: Path) -> None:
    door = gated(tmp_path)
    async with worker(tmp_path / "w", stream_of_two), house(door, bounds=Bounds(comment_every_s=0.01)) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert response.headers["X-Swapd-Position"] == "3"
            assert response.headers["X-Swapd-Expected-Wait"] == "12.4"
            assert "X-Swapd-Queue-Time" not in response.headers
            said = await response.content.readuntil(b"\n\n")
            assert said == b": waiting for org/tiny, position 3, queued, about 12 s\n\n"
            assert door.gate is not None
            door.gate.set()
            assert (await response.read()).endswith(DONE)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_how_long_it_was_queued(tmp_path: Path, stream: bool) -> None:
    async def script(call: Call) -> None:
        await (stream_of_two(call) if stream else call.whole(b"{}"))

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=stream)) as response:
            assert response.headers["X-Swapd-Queue-Time"] == "0.000"
            assert "X-Swapd-Position" not in response.headers


async def test_loading_text_comes_only_where_the_model_asks_for_it_and_only_in_chats(tmp_path: Path) -> None:
    door = gated(tmp_path, loading_text=True)
    assert door.gate is not None
    async with worker(tmp_path / "w", stream_of_two), house(door, bounds=Bounds(comment_every_s=0.01)) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            chunk = json.loads((await response.content.readuntil(b"\n\n")).removeprefix(b"data: "))
            assert chunk["choices"][0]["delta"]["reasoning_content"].startswith("org/tiny: position 3, queued")
            door.gate.set()
            assert (await response.read()).endswith(DONE)
        door.gate.clear()
        completion = {"model": "org/tiny", "prompt": "x", "stream": True}
        async with home.http.post("/v1/completions", json=completion) as response:
            assert (await response.content.readuntil(b"\n\n")).startswith(b": waiting for org/tiny")
            door.gate.set()
            await response.read()


async def test_the_ticket_has_the_client_the_lowered_priority_and_the_size(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b"{}")

    door = ScriptedDoor([tmp_path / "w"])
    async with worker(tmp_path / "w", script), house(door, client_header="X-User") as home:
        headers = {"X-User": "ann", "X-Swapd-Priority": "-7"}
        async with home.http.post(CHAT, json=chat_body(max_tokens=50, n=2), headers=headers) as response:
            assert response.status == 200
        (ticket,) = door.tickets
        assert (ticket.client, ticket.priority, ticket.weight, ticket.answer_limit) == ("user-ann", -7, 1.0, 100)
        assert 20 <= ticket.prompt_tokens <= 40
        async with home.http.post(CHAT, json=chat_body(), headers={"X-Swapd-Priority": "urgent"}) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "X-Swapd-Priority"


async def test_the_status_lists_requests_one_by_one() -> None:
    one = RequestStatus(id="r", model="m", client="c", priority=-1, state="waiting", waited_s=1.5, position=1)
    async with house(ScriptedDoor(flying=(one,))) as home:
        async with home.http.get("/swapd/v1/status") as answer:
            (listed,) = (await answer.json())["in_flight"]
    assert listed == {**msgspec.to_builtins(one), "expected_wait_s": None, "running_s": None}


# -- cancels ---------------------------------------------------------------------------------------------------


def cancel_of(request_id: str) -> str:
    return f"/swapd/v1/requests/{request_id}/cancel"


async def test_a_waiting_request_that_is_cancelled_is_told_so_and_leaves_the_queue(tmp_path: Path) -> None:
    door = gated(tmp_path)
    async with house(door) as home:
        asked = asyncio.create_task(home.http.post(CHAT, json=chat_body(), headers={"X-Request-Id": "mine"}))
        await door.asked.wait()
        async with home.http.post(cancel_of("mine")) as answer:
            assert await answer.json() == {"id": "mine", "state": "cancelled"}
        async with await asked as response:
            assert response.status == 499
            assert (await response.json())["error"]["code"] == "request_cancelled"
        assert await door.left() == ["cancelled"]


async def test_a_running_stream_that_is_cancelled_ends_with_an_error_event_and_frees_its_worker(tmp_path: Path) -> None:
    freed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(b'data: {"choices":[]}\n\n')
        await call.closed()
        freed.set()

    door = ScriptedDoor([tmp_path / "w"])
    async with worker(tmp_path / "w", script), house(door) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True), headers={"X-Request-Id": "mine"}) as response:
            await response.content.readuntil(b"\n\n")
            async with home.http.post(cancel_of("mine")) as answer:
                assert answer.status == 200
            rest = await response.read()
        assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "request_cancelled"
        assert b"[DONE]" not in rest
        async with asyncio.timeout(5):
            await freed.wait()
        assert await door.left() == ["cancelled"]
        async with home.http.post(cancel_of("mine")) as answer:
            assert answer.status == 404


async def test_a_stream_cancelled_after_its_first_comment_ends_with_an_error_event(tmp_path: Path) -> None:
    door = gated(tmp_path)
    async with house(door, bounds=Bounds(comment_every_s=0.01)) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True), headers={"X-Request-Id": "mine"}) as response:
            await response.content.readuntil(b"\n\n")
            await (await home.http.post(cancel_of("mine"))).release()
            last = (await response.read()).strip().rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "request_cancelled"


async def test_a_cancel_of_an_unknown_request_is_404_and_a_page_cannot_send_one() -> None:
    async with house(ScriptedDoor()) as home:
        async with home.http.post(cancel_of("nobody")) as answer:
            assert answer.status == 404
            assert "no request 'nobody' waits or runs" in (await answer.json())["error"]["message"]
        async with home.http.post(cancel_of("nobody"), data={"a": "b"}) as answer:
            assert answer.status == 400
        async with home.http.get(cancel_of("nobody")) as answer:
            assert answer.status == 405


# -- bodies ----------------------------------------------------------------------------------------------------


async def test_a_body_beyond_the_bound_of_all_together_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    door = gated(tmp_path)
    async with house(door, max_body_bytes=1 << 20, max_bodies_bytes=1 << 20) as home:
        held = chat_body(padding="x" * 700_000)
        asked = asyncio.create_task(home.http.post(CHAT, json=held, headers={"X-Request-Id": "held"}))
        await door.asked.wait()
        reader, writer = await asyncio.open_connection(home.host, home.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 400000\r\n"
        writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 429 ")
        assert "Retry-After: 5" in answer
        async with home.http.post(CHAT, json=chat_body(padding="x" * 400_000)) as response:
            assert response.status == 429
            assert "server.max_bodies" in (await response.json())["error"]["message"]
        await (await home.http.post(cancel_of("held"))).release()
        (await asked).release()
        assert door.gate is not None
        door.gate.set()
        door.workers = [tmp_path / "nobody"]
        async with home.http.post(CHAT, json=chat_body(padding="x" * 400_000)) as response:
            assert response.status == 502
