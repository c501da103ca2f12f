"""The service manager's end of sd_notify: a real datagram socket, and what came over it, from whom and when."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

CREDENTIALS = struct.Struct("iII")
"""Linux's `struct ucred`: process, user, group."""


@dataclass(frozen=True)
class Message:
    at_s: float
    """By `time.monotonic`, as received."""
    pid: int
    fields: dict[str, str]


@dataclass
class Manager:
    path: Path
    messages: list[Message] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def env(self, **further: str) -> dict[str, str]:
        """What the manager puts into the service's environment."""
        return {"NOTIFY_SOCKET": str(self.path), **further}

    async def first(self, matches: Callable[[Message], bool], after: int = 0) -> int:
        """The index of the first message from `after` on that matches, now or later."""

        def found() -> int | None:
            return next((i for i, one in enumerate(self.messages[after:], after) if matches(one)), None)

        async with asyncio.timeout(30), self.news:
            await self.news.wait_for(lambda: found() is not None)
        index = found()
        assert index is not None
        return index

    async def said(self, name: str, value: str | None = None, after: int = 0) -> int:
        """The index of the first message that has this field, perhaps with this value."""
        return await self.first(lambda one: name in one.fields and value in (None, one.fields[name]), after)

    def pings(self) -> list[float]:
        """When the watchdog was told that all is well."""
        return [one.at_s for one in self.messages if "WATCHDOG" in one.fields]

    async def receive(self, receiver: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(receiver, ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                async with self.news:
                    while (message := _received(receiver)) is not None:
                        self.messages.append(message)
                    self.news.notify_all()
        finally:
            loop.remove_reader(receiver)


def _received(receiver: socket.socket) -> Message | None:
    try:
        data, ancillary, _, _ = receiver.recvmsg(65536, socket.CMSG_SPACE(CREDENTIALS.size))
    except BlockingIOError:
        return None
    ((_, _, credentials),) = ancillary
    fields = dict(line.split("=", 1) for line in data.decode().split("\n"))
    return Message(time.monotonic(), CREDENTIALS.unpack(credentials)[0], fields)


@asynccontextmanager
async def service_manager(directory: Path) -> AsyncIterator[Manager]:
    path = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.setblocking(False)
        receiver.bind(str(path))
        manager = Manager(path)
        receiving = asyncio.create_task(manager.receive(receiver))
        try:
            yield manager
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
