"""The one inbox of the scheduler: events, and jobs that make their event when their turn comes.

Owns the queue and its end. Must never look into an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from swapd.core.events import Event
from swapd.errors import ShuttingDownError


@dataclass(frozen=True, slots=True)
class Job:
    """An event that is made when its turn comes, by code that may change what the loop owns."""

    make: Callable[[], Event]
    done: asyncio.Future[None]

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def closed() -> ShuttingDownError:
    """What those are told who come after the end."""
    return ShuttingDownError("swapd is shutting down; try again in a moment", retry_after_s=5.0)


class Inbox:
    """Made inside a running event loop."""

    def __init__(self) -> None:
        self.closed = False
        self._queue: asyncio.Queue[Event | Job] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    async def get(self) -> Event | Job:
        return await self._queue.get()

    async def do(self, make: Callable[[], Event]) -> None:
        """Have the loop make an event and take it; return when it has. Raises `ShuttingDownError` after the end."""
        if self.closed:
            raise closed()
        job = Job(make, self._loop.create_future())
        self._queue.put_nowait(job)
        await job.done

    def close(self) -> None:
        """Nothing is taken from here on; whoever waits for it is told."""
        self.closed = True
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Job) and not item.done.done():
                item.done.set_exception(closed())
