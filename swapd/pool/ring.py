"""A bounded memory of the newest items, which can be followed. Never blocks whoever adds to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ring(Generic[Item]):
    """Keeps the newest `capacity` items. A follower that is too slow loses items; the writer never waits."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[Item] = deque(maxlen=capacity)
        self._capacity = capacity
        self._followers: set[asyncio.Queue[Item]] = set()

    def add(self, item: Item) -> None:
        self._items.append(item)
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(item)

    def newest(self) -> list[Item]:
        """Everything kept, oldest first."""
        return list(self._items)

    async def follow(self, *, kept: bool = True) -> AsyncGenerator[Item, None]:
        """Everything kept, unless that is not wanted, then each further item, until the iterator is closed."""
        queue: asyncio.Queue[Item] = asyncio.Queue(self._capacity)
        for item in self._items if kept else ():
            queue.put_nowait(item)
        self._followers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)
