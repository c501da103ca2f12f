"""What people ask for and wait until it is done: loads, unloads, devices handed over.

Owns the waiting; the core answers. Must never decide anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swapd.core.effects import Refusal
from swapd.core.events import Event
from swapd.pool.inbox import Inbox, closed
from swapd.pool.refusals import error_for


class Asks:
    """Made inside a running event loop."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._sequence = 0

    async def ask(self, event: Callable[[str], Event]) -> None:
        """Post the event made for a fresh id, and return when it is answered. Raises a `SwapdError` if by a refusal."""
        if self._inbox.closed:
            raise closed()
        self._sequence += 1
        ask_id = f"ask-{self._sequence}"
        self._waiting[ask_id] = self._loop.create_future()
        try:
            self._inbox.put(event(ask_id))
            await self._waiting[ask_id]
        finally:
            del self._waiting[ask_id]

    def answer(self, ask_id: str, refusal: Refusal | None) -> None:
        """The core's answer; that nobody waits for it any more is no error."""
        waiting = self._waiting.get(ask_id)
        if waiting is None or waiting.done():
            return
        if refusal is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error_for(refusal))

    def close(self) -> None:
        """Nothing is answered from here on: whoever waits is told."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(closed())
