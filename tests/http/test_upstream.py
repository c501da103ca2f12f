"""One exchange with a worker: real sockets, scripted bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.front_door import Call, Script, worker

from swapd.http.upstream import MAX_HEAD_BYTES, MAX_UNREAD_BYTES, Upstream, UpstreamError, post


@asynccontextmanager
async def asking(tmp_path: Path, script: Script, body: bytes = b"{}") -> AsyncIterator[Upstream]:
    async with worker(tmp_path / "w", script) as path, asyncio.timeout(10):
        async with post(path, "/x", {"X-Request-Id": "r1"}, body, connect_s=5.0) as upstream:
            yield upstream


def saying(*parts: bytes) -> Script:
    """Write the parts and close."""

    async def script(call: Call) -> None:
        for part in parts:
            call.writer.write(part)
            await call.writer.drain()
        call.die()

    return script


async def read_all(upstream: Upstream) -> bytes:
    parts = []
    while data := await upstream.read():
        parts.append(data)
    return b"".join(parts)


async def test_the_request_arrives_whole_and_asks_for_the_connection_to_be_closed(tmp_path: Path) -> None:
    heads = []
    body = b"b" * 3_000_000

    async def script(call: Call) -> None:
        heads.append(call.head)
        await call.whole(b"%d" % len(call.body))

    async with asking(tmp_path, script, body) as upstream:
        assert await read_all(upstream) == b"3000000"
    assert heads[0].startswith("POST /x HTTP/1.1\r\nHost: worker\r\nX-Request-Id: r1\r\n")
    assert "Connection: close" in heads[0]


async def test_status_type_and_headers_are_read_in_any_case(tmp_path: Path) -> None:
    head = b"HTTP/1.1 429 Slow\r\nCONTENT-TYPE: Text/Event-Stream; charset=utf-8\r\nretry-after: 7\r\n"
    async with asking(tmp_path, saying(head + b"Content-Length: 0\r\n\r\n")) as upstream:
        assert upstream.status == 429
        assert upstream.content_type == "text/event-stream"
        assert upstream.headers["retry-after"] == "7"
        assert upstream.ended


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_chunked_answer_is_the_same_however_it_is_cut(tmp_path: Path, size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\n\r\n"
    parts = [answer[at : at + size] for at in range(0, len(answer), size)]
    async with asking(tmp_path, saying(*parts)) as upstream:
        assert upstream.has_length
        assert await read_all(upstream) == b"abcdefgh"
        assert upstream.ended


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    async with asking(tmp_path, saying(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def")) as upstream:
        assert not upstream.has_length
        assert await read_all(upstream) == b"abcdef"


@pytest.mark.parametrize(
    ("answer", "arrived"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", b"abc"),
    ],
)
async def test_what_came_of_a_broken_answer_is_read_and_then_it_is_an_error(
    tmp_path: Path, answer: bytes, arrived: bytes
) -> None:
    async with asking(tmp_path, saying(answer)) as upstream:
        assert await upstream.read() == arrived
        assert not upstream.ended
        for _ in range(2):
            with pytest.raises(UpstreamError):
                await upstream.read()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 20", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES, "headers are larger"),
    ],
)
async def test_an_answer_without_a_sound_head_is_an_error(tmp_path: Path, answer: bytes, why: str) -> None:
    with pytest.raises(UpstreamError, match=why):
        async with asking(tmp_path, saying(answer)):
            pytest.fail("there is no answer")


async def test_what_follows_a_whole_answer_is_no_part_of_it(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\nx"
    async with asking(tmp_path, saying(answer)) as upstream:
        assert await read_all(upstream) == b"abc"
        assert upstream.status == 200


async def test_a_worker_that_is_not_read_is_held_back(tmp_path: Path) -> None:
    part, sent = b"x" * 65_536, 0
    stuck = asyncio.Event()

    async def script(call: Call) -> None:
        nonlocal sent
        await call.start()
        for _ in range(1000):
            try:
                async with asyncio.timeout(0.2):
                    await call.chunk(part)
            except TimeoutError:
                stuck.set()
                await call.writer.drain()
            sent += len(part)
        await call.end()

    async with asking(tmp_path, script) as upstream:
        await stuck.wait()
        # What is unread, one read of asyncio's, both sides' socket buffers, the writer's own.
        assert sent < MAX_UNREAD_BYTES + 2_000_000
        assert len(await read_all(upstream)) == 1000 * len(part)


async def test_leaving_cuts_the_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start()
        await call.closed()
        closed.set()

    async with worker(tmp_path / "w", script) as path, asyncio.timeout(10):
        async with post(path, "/x", {}, b"{}", connect_s=5.0) as upstream:
            assert upstream.status == 200
        await closed.wait()


async def test_a_socket_that_nobody_serves_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="no connection"):
        async with post(tmp_path / "none", "/x", {}, b"", connect_s=5.0):
            pytest.fail("there is no worker")
