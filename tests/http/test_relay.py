import asyncio
import json
import re
from pathlib import Path

import aiohttp
import pytest
from support.front_door import CHAT, DONE, Call, ScriptedDoor, chat_body, house, worker

from swapd.errors import LoadFailedError
from swapd.http.exchange import BUFFERED_BYTES, Bounds

EVENTS = [f'data: {{"choices":[{{"index":0,"delta":{{"content":"{n}"}}}}]}}\n\n'.encode() for n in range(4)]
STREAM = b"".join(EVENTS) + DONE


async def stream_text(response: aiohttp.ClientResponse) -> str:
    return (await response.read()).decode()


def errors_in(text: str) -> list[dict[str, object]]:
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(event)["error"] for event in events if "error" in json.loads(event)]


async def test_a_stream_arrives_byte_for_byte_with_the_headers_that_stop_buffering(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        for event in (*EVENTS, DONE):
            await call.chunk(event)
        await call.end()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert await response.read() == STREAM
            assert response.status == 200
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["X-Accel-Buffering"] == "no"
        assert await home.door.left() == ["finished"]


@pytest.mark.parametrize("path", ["/completion", "/infill"])
async def test_a_stream_in_llama_servers_own_dialect_is_whole_when_it_says_stop(tmp_path: Path, path: str) -> None:
    begun = b'data: {"content":"\\"stop\\":true","stop":false}\n\n'
    last = b'data: {"content":"","stop":true,"stop_type":"eos"}\n\n'
    whole = True

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(begun)
        if whole:
            await call.chunk(last)
        await call.end()

    body = {"model": "small", "prompt": "a", "input_prefix": "a", "input_suffix": "b", "stream": True}
    async with worker(tmp_path / "w", script) as socket, house(ScriptedDoor([socket])) as home:
        async with home.http.post(path, json=body) as response:
            assert await response.read() == begun + last + DONE
        whole = False
        async with home.http.post(path, json=body) as response:
            text = await stream_text(response)
        assert errors_in(text)
        assert not text.endswith(DONE.decode())
        assert await home.door.left(2) == ["finished", "failed"]


async def test_a_client_that_leaves_with_the_whole_answer_has_cancelled_nothing(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(STREAM)
        # A worker that is slow to end its side; the client has hung up by then.
        await call.closed()

    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path]), bounds=Bounds(close_s=20.0)) as home,
    ):
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.post(home.url + CHAT, json=chat_body(stream=True)) as response,
        ):
            assert await response.read() == STREAM
        assert await home.door.left() == ["finished"]
        async with home.http.get("/metrics") as response:
            metrics = await response.read()
        assert b'swapd_requests_total{code="200",endpoint="/v1/chat/completions",model="org/tiny"} 1.0' in metrics
        assert b'swapd_e2e_request_latency_seconds_count{model="org/tiny"} 1.0' in metrics


async def test_only_whole_events_are_forwarded_while_the_worker_stops_anywhere(tmp_path: Path) -> None:
    two = EVENTS[0] + EVENTS[1].replace(b"\n\n", b"\r\n\r\n")
    ends = {0, len(EVENTS[0]), len(two)}
    cut = 0

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(two[:cut])
        call.die()

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path], lost_why="it was killed")) as home,
    ):
        for cut in range(1, len(two)):  # noqa: B007 the script reads it
            async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
                body = await response.read()
            forwarded = body.split(b'data: {"error"')[0] if response.status == 200 else b""
            assert len(forwarded) in ends
            assert two.startswith(forwarded)
            assert b"[DONE]" not in body
            assert b"it was killed" in body


async def test_a_worker_killed_mid_stream_ends_it_with_an_error_event_and_no_done(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0] + EVENTS[1][:7])
        call.die()

    door = ScriptedDoor([tmp_path / "w"], lost_why="the process was killed by signal 9")
    async with worker(tmp_path / "w", script), house(door) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            text = await stream_text(response)
        assert text.startswith(EVENTS[0].decode())
        assert "[DONE]" not in text
        (error,) = errors_in(text)
        assert error["code"] == "worker_lost"
        assert "signal 9" in str(error["message"])
        assert text.endswith("\n\n")
        assert await door.left() == ["failed"]
        assert b'code="502",endpoint="/v1/chat/completions"' in home.metrics.render()


async def test_a_stream_that_ends_cleanly_but_without_done_is_an_error(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0])
        await call.end()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            text = await stream_text(response)
        assert "ended before [DONE]" in str(errors_in(text)[0]["message"])
        assert not text.rstrip().endswith("data: [DONE]")


async def test_a_workers_own_error_event_is_the_only_one(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0] + b'data: {"error":{"message":"cache is full"}}\n\n')
        await call.end()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            text = await stream_text(response)
        assert [error["message"] for error in errors_in(text)] == ["cache is full"]


async def test_a_request_is_replayed_once_when_its_worker_dies_before_the_first_byte(tmp_path: Path) -> None:
    bodies = []

    async def dies(call: Call) -> None:
        bodies.append(call.body)
        await call.start()
        call.die()

    async def lives(call: Call) -> None:
        bodies.append(call.body)
        await call.start()
        await call.chunk(STREAM)
        await call.end()

    async with (
        worker(tmp_path / "a", dies) as a,
        worker(tmp_path / "b", lives) as b,
        house(ScriptedDoor([a, b])) as home,
    ):
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert await response.read() == STREAM
        assert await home.door.left(2) == ["failed", "finished"]
        assert bodies[0] == bodies[1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_second_loss_before_the_first_byte_is_a_502(tmp_path: Path, stream: bool) -> None:
    calls = 0

    async def dies(call: Call) -> None:
        nonlocal calls
        calls += 1
        call.die()

    async with worker(tmp_path / "w", dies) as path, house(ScriptedDoor([path], lost_why="it crashed")) as home:
        async with home.http.post(CHAT, json=chat_body(stream=stream)) as response:
            assert response.status == 502
            error = (await response.json())["error"]
        assert error["code"] == "worker_lost"
        assert "it crashed" in error["message"]
        assert calls == 2


async def test_a_worker_whose_socket_is_gone_is_a_502_in_bounded_time(tmp_path: Path) -> None:
    async with house(ScriptedDoor([tmp_path / "nothing"])) as home:
        async with home.http.post(CHAT, json=chat_body()) as response:
            assert response.status == 502
        assert await home.door.left(2) == ["failed", "failed"]


async def test_a_whole_answer_keeps_its_status_body_and_type(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"error":{"message":"too long","n_ctx":512}}', status="400 Bad Request")

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body()) as response:
            assert response.status == 400
            assert response.content_type == "application/json"
            assert (await response.json())["error"]["n_ctx"] == 512
        assert await home.door.left() == ["finished"]


async def test_a_short_answer_that_breaks_off_is_replayed(tmp_path: Path) -> None:
    async def breaks_off(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{}")
        call.die()

    async def answers(call: Call) -> None:
        await call.whole(b'{"ok":true}')

    async with (
        worker(tmp_path / "a", breaks_off) as a,
        worker(tmp_path / "b", answers) as b,
        house(ScriptedDoor([a, b])) as home,
        home.http.post(CHAT, json=chat_body()) as response,
    ):
        assert await response.json() == {"ok": True}


async def test_a_long_answer_cut_short_never_looks_whole(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start(content_type="application/json")
        await call.chunk(b"[" + b"1," * BUFFERED_BYTES)
        call.die()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body()) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert await home.door.left() == ["failed"]


async def test_a_long_answer_arrives_whole(tmp_path: Path) -> None:
    body = b"[" + b"1," * BUFFERED_BYTES + b"1]"

    async def script(call: Call) -> None:
        await call.whole(body)

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path])) as home,
        home.http.post(CHAT, json=chat_body()) as response,
    ):
        assert await response.read() == body


async def test_an_answer_without_a_length_is_not_trusted(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        call.writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":1}')
        call.die()

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path])) as home,
        home.http.post(CHAT, json=chat_body()) as response,
    ):
        assert response.status == 502
        assert "without a length" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_closes_the_worker_connection_and_cancels_the_lease(
    tmp_path: Path, stream: bool
) -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        if stream:
            await call.start()
            await call.chunk(EVENTS[0])
        arrived.set()
        await call.closed()
        closed.set()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        request = asyncio.create_task(home.http.post(CHAT, json=chat_body(stream=stream)))
        async with asyncio.timeout(5):
            await arrived.wait()
            if stream:
                response = await request
                assert await response.content.readany() == EVENTS[0]
                response.close()
            else:
                request.cancel()
            await closed.wait()
            assert await home.door.left() == ["cancelled"]


async def test_a_client_that_leaves_while_queued_leaves_the_queue(tmp_path: Path) -> None:
    door = ScriptedDoor([tmp_path / "w"], gate=asyncio.Event())
    async with house(door) as home:
        _reader, writer = await asyncio.open_connection(home.host, home.port)
        body = json.dumps(chat_body()).encode()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(5):
            await door.asked.wait()
            writer.close()
            assert await door.left() == ["cancelled"]


async def test_a_waiting_stream_gets_comments_and_then_its_answer(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(STREAM)
        await call.end()

    door = ScriptedDoor([tmp_path / "w"], gate=asyncio.Event())
    bounds = Bounds(comment_every_s=0.01)
    async with worker(tmp_path / "w", script), house(door, bounds=bounds) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert response.status == 200
            assert await response.content.readuntil(b"\n\n") == b": waiting for org/tiny\n\n"
            assert door.gate is not None
            door.gate.set()
            rest = await response.read()
        assert re.fullmatch(rb"(: (waiting for|running on) org/tiny\n\n)*" + re.escape(STREAM), rest)


async def test_a_refusal_after_the_first_comment_is_an_error_event(tmp_path: Path) -> None:
    door = ScriptedDoor([tmp_path / "w"], gate=asyncio.Event(), refusal=LoadFailedError("the load failed: no memory"))
    async with house(door, bounds=Bounds(comment_every_s=0.01)) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            await response.content.readuntil(b"\n\n")
            assert door.gate is not None
            door.gate.set()
            text = await stream_text(response)
        assert errors_in(text)[0]["code"] == "model_load_failed"
        assert "[DONE]" not in text


async def test_a_workers_refusal_after_the_first_comment_is_an_error_event_in_its_words(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"error":{"message":"prompt too long","n_ctx":512}}', status="400 Bad Request")

    door = ScriptedDoor([tmp_path / "w"], gate=asyncio.Event())
    async with worker(tmp_path / "w", script), house(door, bounds=Bounds(comment_every_s=0.01)) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            await response.content.readuntil(b"\n\n")
            assert door.gate is not None
            door.gate.set()
            text = await stream_text(response)
        assert errors_in(text) == [{"message": "prompt too long", "n_ctx": 512}]


async def test_a_workers_refusal_of_a_stream_keeps_its_status(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"error":{"message":"prompt too long"}}', status="400 Bad Request")

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert response.status == 400
            assert (await response.json())["error"]["message"] == "prompt too long"
        assert b'code="400",endpoint="/v1/chat/completions",model="org/tiny"' in home.metrics.render()


async def test_other_streams_go_on_when_one_worker_dies(tmp_path: Path) -> None:
    died, told = asyncio.Event(), asyncio.Event()

    async def dies(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0])
        await died.wait()
        call.die()

    async def lives(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0])
        await told.wait()
        await call.chunk(b"".join(EVENTS[1:]) + DONE)
        await call.end()

    async with (
        worker(tmp_path / "a", dies) as a,
        worker(tmp_path / "b", lives) as b,
        house(ScriptedDoor([a, b])) as home,
    ):
        broken = await home.http.post(CHAT, json=chat_body(stream=True))
        whole = await home.http.post(CHAT, json=chat_body(stream=True))
        died.set()
        assert "worker_lost" in await stream_text(broken)
        told.set()
        assert await whole.read() == STREAM


@pytest.mark.parametrize("event_bytes", [3_000, 60_000])
async def test_a_reader_that_takes_nothing_is_dropped_and_the_worker_held_back(
    tmp_path: Path, event_bytes: int
) -> None:
    sent_bytes = 0
    big = b"data: " + b"x" * event_bytes + b"\n\n"

    async def script(call: Call) -> None:
        nonlocal sent_bytes
        await call.start()
        while True:
            await call.chunk(big)
            sent_bytes += len(big)

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path]), bounds=Bounds(write_deadline_s=0.3)) as home,
    ):
        _reader, writer = await asyncio.open_connection(home.host, home.port, limit=1024)
        body = json.dumps(chat_body(stream=True)).encode()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(10):
            assert await home.door.left() == ["cancelled"]
        assert sent_bytes < 32 * 1024 * 1024
        writer.close()


async def test_a_connection_held_open_by_a_lost_workers_child_does_not_hold_the_client(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(EVENTS[0])
        await call.closed()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            assert await response.content.readuntil(b"\n\n") == EVENTS[0]
            home.door.lost[0].set_result("it was stuck and was killed")
            text = await stream_text(response)
        assert "stuck" in str(errors_in(text)[0]["message"])


async def test_an_event_without_end_is_bounded(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(b"data: " + b"x" * (1 << 21))
        await call.closed()

    async with (
        worker(tmp_path / "w", script) as path,
        house(ScriptedDoor([path])) as home,
        home.http.post(CHAT, json=chat_body(stream=True)) as response,
    ):
        assert response.status == 502
        assert "larger than" in (await response.json())["error"]["message"]


async def test_a_worker_sees_only_known_headers_and_the_request_id(tmp_path: Path) -> None:
    heads = []

    async def script(call: Call) -> None:
        heads.append(call.head.lower())
        await call.whole(b"{}")

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        headers = {"Authorization": "Bearer secret", "X-Request-Id": "abc-1", "Cookie": "a=b", "traceparent": "00-1"}
        async with home.http.post(CHAT, json=chat_body(), headers=headers) as response:
            assert response.headers["X-Request-Id"] == "abc-1"
        assert "secret" not in heads[0]
        assert "cookie" not in heads[0]
        assert "x-request-id: abc-1" in heads[0]
        assert "traceparent: 00-1" in heads[0]
        assert home.door.tickets[0].client.startswith("key-")
        assert "secret" not in home.door.tickets[0].client


async def test_a_stream_is_timed_per_event(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.start()
        for event in (*EVENTS, DONE):
            await call.chunk(event)
        await call.end()

    async with worker(tmp_path / "w", script) as path, house(ScriptedDoor([path])) as home:
        async with home.http.post(CHAT, json=chat_body(stream=True)) as response:
            await response.read()
        await home.door.left()
        text = home.metrics.render().decode()
        assert 'swapd_time_to_first_token_seconds_count{model="org/tiny"} 1.0' in text
        assert 'swapd_inter_token_latency_seconds_count{model="org/tiny"} 3.0' in text
