"""Streams of events: a reader that is slow or gone costs nothing lasting, and nobody else anything."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from support.front_door import House, ScriptedDoor, house

from swapd.http import administration
from swapd.http.relay import Bounds
from swapd.pool.ring import Ring
from swapd.pool.status import Happening

EVENTS = "/swapd/v1/events"


@dataclass
class Eventful(ScriptedDoor):
    """A door whose happenings are a real ring, and which counts who follows it."""

    ring: Ring[Happening] = field(default_factory=lambda: Ring(500))
    following: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def happen(self, message: str) -> None:
        self.ring.add(Happening(at=1.0, kind="evicting", model="org/tiny", message=message))

    async def happenings(self) -> AsyncGenerator[Happening, None]:
        await self._count(1)
        feed = self.ring.follow()
        try:
            async for item in feed:
                yield item
        finally:
            await feed.aclose()
            await self._count(-1)

    async def _count(self, change: int) -> None:
        async with self.news:
            self.following += change
            self.news.notify_all()

    async def followed_by(self, count: int) -> None:
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: self.following == count)


async def next_message(home: House) -> str:
    """The oldest event that a new reader is told of."""
    async with home.http.get(EVENTS) as response:
        assert response.status == 200
        event = await response.content.readuntil(b"\n\n")
    return str(json.loads(event.removeprefix(b"data: "))["message"])


async def test_a_reader_that_goes_is_forgotten_at_once() -> None:
    door = Eventful()
    async with house(door) as home:
        door.happen("it was idle")
        for _ in range(3):
            assert await next_message(home) == "it was idle"
            await door.followed_by(0)


async def test_a_reader_that_takes_nothing_is_dropped_and_others_are_told_meanwhile() -> None:
    door = Eventful()
    async with house(door, bounds=Bounds(write_deadline_s=0.2, comment_every_s=0.05)) as home:
        loop = asyncio.get_running_loop()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, (home.host, home.port))
            await loop.sock_sendall(slow, f"GET {EVENTS} HTTP/1.1\r\nHost: {home.host}\r\n\r\n".encode())
            await door.followed_by(1)
            # More than the kernel's buffers take; what happens is never held back by whoever reads of it.
            for _ in range(500):
                door.happen("x" * 50_000)
            assert await next_message(home) == "x" * 50_000
            await door.followed_by(0)
        assert await next_message(home) == "x" * 50_000


async def test_open_views_are_bounded_and_a_place_is_free_again_when_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "MAX_LIVE_VIEWS", 1)
    door = Eventful()
    async with house(door) as home:
        door.happen("first")
        async with home.http.get(EVENTS) as taken:
            assert taken.status == 200
            await door.followed_by(1)
            async with home.http.get(EVENTS) as refused:
                assert refused.status == 429
                assert "Retry-After" in refused.headers
        await door.followed_by(0)
        assert await next_message(home) == "first"
