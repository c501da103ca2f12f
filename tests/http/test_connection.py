"""Connections that say nothing whole, or are too many: real sockets, short bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from swapd.config.schema import Server
from swapd.errors import TooManyConnectionsError
from swapd.http import connection
from swapd.http.crowd import Crowd, Limits, group_of, limits_of
from swapd.http.listen import serve

HEADERS_S = 0.15
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nHost: local"
MANY = Limits(1000, 1000)


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def asks(self) -> int:
        self.writer.write(WHOLE)
        return (await self.answer())[0]

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def served(limits: Limits = MANY, headers_s: float = HEADERS_S) -> AsyncIterator[tuple[str, int]]:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    app = web.Application()
    app.router.add_route("*", "/", handle)
    async with serve(
        app, ["127.0.0.1:0"], shutdown_timeout_s=0.1, limits=lambda: limits, headers_s=headers_s
    ) as addresses:
        host, _, port = addresses[0].rpartition(":")
        yield host, int(port)


async def connect(address: tuple[str, int], source: str = "127.0.0.1") -> Client:
    return Client(*await asyncio.open_connection(*address, local_addr=(source, 0)))


async def test_headers_that_do_not_end_are_given_up_at_their_deadline_however_they_trickle() -> None:
    async with served() as address:
        client = await connect(address)
        for byte in HALF:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(HEADERS_S / 10)
            if client.reader.at_eof():
                break
        status, headers, body = await client.answer()
        assert status == 408
        assert headers["connection"] == "close"
        assert json.loads(body)["error"]["code"] == "headers_timeout"
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
        await client.close()


async def test_neither_a_silent_connection_nor_a_slow_body_is_held_to_the_headers_deadline() -> None:
    async with served() as address:
        silent, kept, slow = await connect(address), await connect(address), await connect(address)
        assert await kept.asks() == 200
        slow.writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
        kept.writer.write(b"\r\n")  # Some clients end a body with one too many.
        gone = await connect(address)
        gone.writer.write(HALF)
        assert (await gone.answer())[0] == 408
        slow.writer.write(b"lf")
        assert (await slow.answer())[2] == b"4"
        assert await kept.asks() == 200
        assert await silent.asks() == 200
        for one in (silent, kept, slow, gone):
            await one.close()


async def test_headers_after_a_first_request_have_the_same_deadline() -> None:
    async with served() as address:
        client = await connect(address)
        assert await client.asks() == 200
        client.writer.write(HALF)
        assert (await client.answer())[0] == 408
        await client.close()


async def test_one_connection_too_many_is_told_so_whatever_it_sends_and_one_that_leaves_makes_room() -> None:
    async with served(Limits(2, 1000)) as address:
        first, second = await connect(address), await connect(address)
        assert [await first.asks(), await second.asks()] == [200, 200]
        third = await connect(address)
        third.writer.write(WHOLE)
        status, headers, body = await third.answer()
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        await third.close()
        await first.close()
        async with asyncio.timeout(5):
            while True:
                fourth = await connect(address)
                status = await fourth.asks()
                await fourth.close()
                if status == 200:
                    break
        assert await second.asks() == 200
        await second.close()


async def test_one_address_cannot_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every address that a test can come from is this machine's own, and those are not told apart.
    monkeypatch.setattr(connection, "group_of", lambda peername: peername[0])
    async with served(Limits(1000, 2)) as address:
        taken = [await connect(address, "127.0.0.2") for _ in range(2)]
        assert [await one.asks() for one in taken] == [200, 200]
        refused, other = await connect(address, "127.0.0.2"), await connect(address, "127.0.0.3")
        assert (await refused.answer())[0] == 503
        assert await other.asks() == 200
        for one in (*taken, refused, other):
            await one.close()


async def test_those_who_are_refused_and_do_not_leave_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_LINGERING", 1)
    async with served(Limits(1, 1000)) as address:
        first = await connect(address)
        assert await first.asks() == 200
        told, cut = await connect(address), await connect(address)
        assert (await told.answer())[0] == 503
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await cut.answer()
        for one in (first, told, cut):
            one.writer.close()


@pytest.mark.parametrize(
    ("peername", "group"),
    [
        (("203.0.113.7", 5), "203.0.113.7"),
        (("::ffff:203.0.113.7", 5, 0, 0), "203.0.113.7"),
        (("2001:db8:1:2:3::4", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("127.0.0.1", 5), None),
        (("::1", 5, 0, 0), None),
        (("::ffff:127.0.0.1", 5, 0, 0), None),
        ("", None),
        (None, None),
    ],
)
def test_connections_are_counted_by_address_or_site_but_for_this_machines_own(
    peername: object, group: str | None
) -> None:
    assert group_of(peername) == group


def test_a_crowd_is_as_large_as_those_who_are_in_it() -> None:
    crowd = Crowd()
    crowd.enter("a", MANY)
    crowd.enter(None, MANY)
    crowd.leave("a")
    with pytest.raises(TooManyConnectionsError, match=r"1 connections are open \(server.max_connections"):
        crowd.enter("a", Limits(1, 1000))
    crowd.leave(None)
    crowd.enter("a", Limits(1, 1))
    assert crowd.total == 1


def test_the_limit_leaves_open_files_for_workers() -> None:
    assert limits_of(Server(max_connections=3)).total == 3
    assert limits_of(Server(max_connections=10**9)).total < 10**9
