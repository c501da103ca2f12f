"""The client of the benchmarks: one HTTP/1.1 connection per request that keeps what came, and when.

It shares the cores with the servers it measures, so while streams run it must do nothing but append: chunks are taken
apart and JSON is read when the measurement is over. Alike for every server.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

Address = tuple[str, int] | Path
"""A host and port, or a Unix socket."""

_LAST_CHUNK = b"0\r\n\r\n"
_DATA = b"data: "


class Connection(asyncio.Protocol):
    """One request on its way. `arrivals` has what came with the time it came at, in seconds of `perf_counter`."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self.started_s = perf_counter()
        self.arrivals: list[tuple[float, bytes]] = []
        self.begun: asyncio.Future[None] = loop.create_future()
        """Done at the first event of a stream, and at the end of anything."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._next: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((perf_counter(), data))
        if not self.begun.done() and _DATA in data:
            self.begun.set_result(None)
        if self._next is not None:
            self._wake()
        if data.endswith(_LAST_CHUNK):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._next is not None:
            self._wake()
        for outcome in (self.begun, self.ended):
            if not outcome.done():
                outcome.set_result(None)

    def _wake(self) -> None:
        assert self._next is not None
        self._next.set_result(None)
        self._next = None

    async def news(self) -> None:
        """Wait until more has come, or the end."""
        if not self.ended.done():
            self._next = asyncio.get_running_loop().create_future()
            await self._next

    def leave(self) -> None:
        """Hang up, as a client does that has seen enough."""
        self._transport.abort()

    def stream(self) -> Stream:
        """What has come so far."""
        return read_stream(self.started_s, self.arrivals)


async def post(address: Address, path: str, body: dict[str, Any], source: str | None = None) -> Connection:
    """Send a request, from the address `source` if it matters; the time begins before the connection is made."""
    connection = Connection(request_bytes(path, body))
    loop = asyncio.get_running_loop()
    if isinstance(address, Path):
        await loop.create_unix_connection(lambda: connection, str(address))
    else:
        local = None if source is None else (source, 0)
        await loop.create_connection(lambda: connection, *address, local_addr=local)
    return connection


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@dataclass(frozen=True, slots=True)
class Stream:
    """A streamed completion, read after its end. Times are seconds of `perf_counter`."""

    started_s: float
    status: int
    event_times_s: tuple[float, ...] = ()
    """When each event with text had come as a whole."""
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """By the server's own count."""
    finish: str | None = None
    error: str | None = None
    """What the server said went wrong, in the answer or in an event."""
    done: bool = False
    """It came to its proper end."""

    @property
    def first_s(self) -> float:
        """Seconds from the request to the first text."""
        return self.event_times_s[0] - self.started_s

    def check(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Assert that it is whole and has exactly what was asked for."""
        assert self.done, self.error or f"status {self.status}, no end after {len(self.event_times_s)} events"
        got = (self.prompt_tokens, self.completion_tokens)
        assert got == (prompt_tokens, completion_tokens), f"{got} tokens, not {(prompt_tokens, completion_tokens)}"


@dataclass(slots=True)
class _Body:
    """An answer's body without its chunks, and where each arrival ended in it."""

    content: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


def read_stream(started_s: float, arrivals: Sequence[tuple[float, bytes]]) -> Stream:
    """Take an answer apart: status, chunks, events, tokens."""
    raw = b"".join(data for _, data in arrivals)
    head, separator, _ = raw.partition(b"\r\n\r\n")
    if not separator:
        return Stream(started_s, 0, error="the server hung up before it answered")
    status = int(head.split(b" ", 2)[1])
    start = len(head) + len(separator)
    if b"transfer-encoding: chunked" not in head.lower():
        return Stream(started_s, status, error=_message(raw[start:]))
    body = _unchunked(raw, start, arrivals)
    if status != 200:
        return Stream(started_s, status, error=_message(bytes(body.content)))
    return _read_events(started_s, status, body)


def read_body(arrivals: Sequence[tuple[float, bytes]]) -> tuple[int, bytes]:
    """An answer's status (0 without any) and its body, as far as it came in whole chunks."""
    raw = b"".join(data for _, data in arrivals)
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return 0, raw
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" not in head.lower():
        return status, rest
    return status, bytes(_unchunked(raw, len(head) + len(separator), arrivals).content)


def _unchunked(raw: bytes, start: int, arrivals: Sequence[tuple[float, bytes]]) -> _Body:
    """The body's bytes; a chunk counts as come when its last byte has."""
    body, arrived = _Body(), []
    total = 0
    for _, data in arrivals:
        total += len(data)
        arrived.append(total)
    while (line_end := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line_end].split(b";")[0], 16)
        begin = line_end + 2
        if size == 0 or begin + size > len(raw):
            break
        body.content += raw[begin : begin + size]
        body.ends.append(len(body.content))
        body.times_s.append(arrivals[bisect_left(arrived, begin + size)][0])
        start = begin + size + 2
    return body


def _read_events(started_s: float, status: int, body: _Body) -> Stream:
    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, int] = {}
    finish = error = None
    done = False
    position = 0
    for event in bytes(body.content).split(b"\n\n"):
        position += len(event) + 2
        if not event.startswith(_DATA):
            continue
        if event == b"data: [DONE]":
            done = error is None
            break
        document = json.loads(event[len(_DATA) :])
        if "error" in document:
            error = str(document["error"].get("message", document["error"]))
            continue
        usage = document.get("usage") or usage
        for choice in document.get("choices", ()):
            finish = choice.get("finish_reason") or finish
            if choice.get("text"):
                texts.append(choice["text"])
                times.append(body.times_s[bisect_left(body.ends, min(position, body.ends[-1]))])
    return Stream(
        started_s,
        status,
        tuple(times),
        "".join(texts),
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", 0),
        finish,
        error,
        done,
    )


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")
