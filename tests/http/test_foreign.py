"""The front door with workers that report nothing themselves, here and elsewhere: real sockets, scripted bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from support.front_door import CHAT, DONE, Call, House, Script, ScriptedDoor, chat_body, house, tcp_worker

from swapd.http.foreign import ForeignAnswer
from swapd.http.sse import Framer
from swapd.pool.lease import Lease, Patience, TokenCounts, UrlAddress

KEY = "canary-key"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
TOKENS = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(2)]


@asynccontextmanager
async def foreign(script: Script, *, elsewhere: bool = False, **patience: float) -> AsyncIterator[House]:
    """The door with one worker on a port, or one that counts as elsewhere and has a key."""
    async with tcp_worker(script) as address:
        if not elsewhere:
            door = ScriptedDoor([address], reports_usage=False)
        else:
            url = UrlAddress(address.host, address.port, headers={"Authorization": f"Bearer {KEY}"})
            bounds = {"connect_s": 5.0, "first_token_s": 5.0, "silence_s": 5.0, **patience}
            door = ScriptedDoor([url], reports_usage=False, patience=Patience(**bounds))
        async with house(door) as running:
            yield running


async def stream(running: House, **fields: object) -> tuple[int, bytes]:
    async with running.http.post(CHAT, json=chat_body(stream=True, **fields)) as answer:
        return answer.status, await answer.read()


def telling(*parts: bytes, seen: list[dict[str, object]] | None = None) -> Script:
    async def script(call: Call) -> None:
        if seen is not None:
            seen.append(json.loads(call.body))
        await call.start()
        for part in parts:
            await call.chunk(part)
        await call.end()

    return script


async def test_a_stream_is_asked_for_its_usage_which_the_client_never_sees() -> None:
    seen: list[dict[str, object]] = []
    async with foreign(telling(*TOKENS, USAGE, DONE, seen=seen)) as running:
        assert await stream(running) == (200, b"".join(TOKENS) + DONE)
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert running.door.counted == [TokenCounts(7, 0, 2)]
    assert running.door.moves[:2] == [False, True]
    assert running.door.moves.count(True) == 1


async def test_a_client_that_asks_for_usage_gets_it_and_it_counts_once() -> None:
    async with foreign(telling(*TOKENS, USAGE, DONE)) as running:
        _, body = await stream(running, stream_options={"include_usage": True})
    assert body == b"".join(TOKENS) + USAGE + DONE
    assert running.door.counted == [TokenCounts(7, 0, 2)]


def test_every_split_of_a_stream_gives_the_same_bytes_and_counts() -> None:
    whole = b": hello\n\n" + b"\r\n".join((b"".join(TOKENS) + USAGE).split(b"\n")) + DONE
    outcomes = set()
    for cut in range(len(whole)):
        for second in range(cut, len(whole), 97):
            door = ScriptedDoor()
            lease = Lease("r", "m", 1, UrlAddress("h", 1), 0.0, None, reports_usage=False)  # type: ignore[arg-type]
            answer, framer, sent, events = ForeignAnswer(door, lease, CHAT, b"{}", stream=True), Framer(), b"", 0
            for part in (whole[:cut], whole[cut:second], whole[second:]):
                frames = framer.feed(part)
                kept, data_events = answer.events(frames.whole, frames.data_events)
                sent, events = sent + kept, events + data_events
            answer.close()
            outcomes.add((sent, events, *door.counted))
    ((sent, events, counts),) = outcomes
    assert (events, counts) == (2, TokenCounts(7, 0, 2))
    assert b"usage" not in sent
    assert sent.endswith(DONE)


async def test_a_whole_answer_is_counted_and_unchanged() -> None:
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()

    async def script(call: Call) -> None:
        assert "stream_options" not in json.loads(call.body)
        await call.whole(body)

    async with foreign(script) as running, running.http.post(CHAT, json=chat_body()) as answer:
        assert await answer.read() == body
    assert running.door.counted == [TokenCounts(3, 0, 1)]


async def test_the_clients_key_never_goes_upstream_and_the_servers_own_does() -> None:
    heads: list[str] = []

    async def script(call: Call) -> None:
        heads.append(call.head)
        await call.whole(b"{}")

    async with foreign(script, elsewhere=True) as running:
        mine = {"Authorization": "Bearer client-canary", "Cookie": "client-canary", "X-Api-Key": "client-canary"}
        async with running.http.post(CHAT, json=chat_body(), headers=mine) as answer:
            assert answer.status == 200
    assert "client-canary" not in heads[0]
    assert heads[0].count(f"Authorization: Bearer {KEY}\r\n") == 1


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("status", ["401 No", "403 No", "307 Elsewhere"])
async def test_what_a_server_elsewhere_says_of_the_key_is_not_for_clients(status: str, is_stream: bool) -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"error":{"message":"no such key: %s"}}' % KEY.encode(), status=status)

    async with foreign(script, elsewhere=True) as running:
        async with running.http.post(CHAT, json=chat_body(stream=is_stream)) as answer:
            assert answer.status == 502
            text = await answer.text()
    # Not an answer: as many of them as of any other failure give the server up, and its key is read again.
    assert running.door.moves == []
    assert len(running.door.broken) == (0 if status.startswith("307") else 1)
    error = json.loads(text)["error"]
    assert error["code"] == "upstream_refused"
    assert "org/tiny" in error["message"]
    assert KEY not in text


async def test_other_errors_come_in_its_own_words_without_the_key() -> None:
    async def script(call: Call) -> None:
        await call.whole(b'{"error":{"message":"you sent %s"}}' % KEY.encode(), status="400 Bad")

    async with foreign(script, elsewhere=True) as running:
        async with running.http.post(CHAT, json=chat_body()) as answer:
            assert (answer.status, await answer.json()) == (400, {"error": {"message": "you sent ***"}})


async def test_so_does_an_error_in_a_stream() -> None:
    async with foreign(
        telling(TOKENS[0], b'data: {"error":{"message":"%s"}}\n\n' % KEY.encode()), elsewhere=True
    ) as one:
        _, body = await stream(one)
    assert body == TOKENS[0] + b'data: {"error":{"message":"***"}}\n\n'


@pytest.mark.parametrize("begun", [False, True])
async def test_silence_ends_the_request_alone_and_is_told(begun: bool) -> None:
    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(TOKENS[0] if begun else b": loading\n\n")
        await call.closed()

    bounds = {"silence_s": 0.05, "first_token_s": 20.0} if begun else {"first_token_s": 0.05}
    async with foreign(script, elsewhere=True, **bounds) as running:
        status, body = await stream(running)
    # A comment that was passed on has committed the status.
    assert status == 200
    assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "upstream_timeout"
    assert DONE not in body
    assert len(running.door.broken) == len(running.door.tickets) == 1


async def test_comments_do_not_end_the_patience_for_a_first_token() -> None:
    async def script(call: Call) -> None:
        await call.start()
        for _ in range(4):
            await asyncio.sleep(0.05)
            await call.chunk(b": loading\n\n")
        await call.chunk(TOKENS[0] + DONE)
        await call.end()

    async with foreign(script, elsewhere=True, first_token_s=5.0, silence_s=0.02) as running:
        _, body = await stream(running)
    assert body.endswith(TOKENS[0] + DONE)


async def test_a_client_that_reads_slowly_is_not_the_servers_silence() -> None:
    part = b'data: {"choices":[{"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'

    async def script(call: Call) -> None:
        await call.start()
        for _ in range(200):
            await call.chunk(part)
        await call.chunk(DONE)
        await call.end()

    async with foreign(script, elsewhere=True, silence_s=0.3) as running:
        async with running.http.post(CHAT, json=chat_body(stream=True)) as answer:
            await answer.content.readany()
            await asyncio.sleep(0.6)
            rest = await answer.read()
    assert rest.endswith(DONE)
    assert running.door.broken == []


async def test_one_that_breaks_off_before_a_byte_is_asked_again_and_after_one_is_an_error_event() -> None:
    calls = 0

    async def script(call: Call) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            await call.start()
            await call.chunk(TOKENS[0])
        call.die()

    async with foreign(script, elsewhere=True) as running:
        _, body = await stream(running)
    assert body.startswith(TOKENS[0])
    assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "worker_lost"
    assert len(running.door.broken) == calls == 2


async def test_a_client_that_leaves_is_the_servers_fault_in_no_way() -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start()
        await call.chunk(TOKENS[0])
        await call.closed()
        gone.set()

    async with foreign(script, elsewhere=True) as running:
        async with aiohttp.ClientSession(running.url) as leaving:
            async with leaving.post(CHAT, json=chat_body(stream=True)) as answer:
                await answer.content.readany()
        await asyncio.wait_for(gone.wait(), 10)
        await running.door.left()
    assert running.door.broken == []


@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/upstream/org/tiny/v1/chat/completions"])
async def test_a_server_elsewhere_hears_of_a_clients_trace_only_where_that_is_configured(
    path: str, takes: bool
) -> None:
    heads: list[str] = []

    async def script(call: Call) -> None:
        heads.append(call.head.lower())
        await call.whole(b"{}")

    async with tcp_worker(script) as address:
        url = UrlAddress(address.host, address.port, takes_traces=takes)
        door = ScriptedDoor([url], reports_usage=False, patience=Patience(5.0, 5.0, 5.0))
        headers = {"traceparent": "00-1", "tracestate": "a=b"}
        async with house(door) as running, running.http.post(path, json=chat_body(), headers=headers) as answer:
            assert answer.status == 200
    assert ("traceparent: 00-1" in heads[0], "tracestate: a=b" in heads[0]) == (takes, takes)
