"""The benchmarks' client reads alike however an answer was cut on its way, and says when each event had come."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from benchmarks.client import post, read_stream
from benchmarks.mixed import gaps_within

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [
    b'data: {"choices": [{"text": "one"}]}\n\n',
    b": a comment\n\n",
    b'data: {"choices": [{"text": ""}]}\n\ndata: {"choices": [{"text": " two", "finish_reason": "length"}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


WHOLE = HEAD + chunked(*EVENTS) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_every_cut_of_an_answer_reads_alike(size: int) -> None:
    stream = read_stream(0.0, [(float(at), WHOLE[at : at + size]) for at in range(0, len(WHOLE), size)])
    assert (stream.status, stream.text, stream.finish, stream.done, stream.error) == (
        200,
        "one two",
        "length",
        True,
        None,
    )
    stream.check(5, 2)
    ends = [WHOLE.index(b"\r\n", WHOLE.index(text)) for text in (b'"one"', b'" two"')]
    assert list(stream.event_times_s) == [float((end - 1) // size * size) for end in ends]


@pytest.mark.parametrize("end", [0, 20, len(HEAD), len(HEAD) + 30, len(WHOLE) - 30])
def test_an_answer_that_breaks_off_is_not_whole(end: int) -> None:
    stream = read_stream(0.0, [(1.0, WHOLE[:end])])
    assert not stream.done
    with pytest.raises(AssertionError):
        stream.check(5, 2)


def test_an_error_is_told_whether_it_is_a_status_or_an_event() -> None:
    error = b'{"error": {"message": "no room"}}'
    plain = b"HTTP/1.1 500 Sorry\r\nContent-Length: %d\r\n\r\n%b" % (len(error), error)
    assert (read_stream(0.0, [(1.0, plain)]).status, read_stream(0.0, [(1.0, plain)]).error) == (500, "no room")
    late = HEAD + chunked(EVENTS[0], b"data: " + error + b"\n\n") + b"0\r\n\r\n"
    stream = read_stream(0.0, [(1.0, late)])
    assert (stream.error, stream.done, stream.text) == ("no room", False, "one")


def test_gaps_overlap_with_the_time_that_is_looked_at() -> None:
    times = [1.0, 2.0, 4.0, 5.0, 9.0, 10.0]
    assert gaps_within(times, 2.5, 5.5) == [2.0, 1.0, 4.0]
    assert gaps_within(times, 0.0, 20.0) == [later - earlier for earlier, later in pairwise(times)]


async def test_a_stream_is_read_from_a_socket_as_it_comes() -> None:
    asked: list[bytes] = []
    go_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])))
        writer.write(HEAD + chunked(EVENTS[0]))
        await go_on.wait()
        writer.write(chunked(*EVENTS[1:]) + b"0\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connection = await post(server.sockets[0].getsockname(), "/v1/completions", {"prompt": [1]})
        await connection.begun
        assert connection.stream().text == "one"
        assert not connection.ended.done()
        go_on.set()
        await connection.news()
        await connection.ended
    assert json.loads(asked[0]) == {"prompt": [1]}
    stream = connection.stream()
    assert (stream.text, stream.done) == ("one two", True)
    assert connection.started_s < stream.event_times_s[0] <= stream.event_times_s[1]
