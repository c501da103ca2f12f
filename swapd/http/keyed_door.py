"""The pool's door as a route sees it: whatever way a route takes, its key's models are the only ones it gets to.

Routes refuse early and in good words (`auth.model_for`); this is for the one that forgets. Must never let a request
past that came without the key that the daemon asks for.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, cast

from swapd.errors import ModelForbiddenError
from swapd.http.keyring import Holder
from swapd.pool.door import Door
from swapd.pool.lease import Lease, Ticket

HOLDER_OF_TASK: ContextVar[Holder | None] = ContextVar("swapd_holder_of_task", default=None)
"""Whose key the current task's request came with. aiohttp runs each request in a task of its own."""


class _KeyedDoor:
    def __init__(self, door: Door) -> None:
        self._door = door

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)

    def lease(self, ticket: Ticket) -> AbstractAsyncContextManager[Lease]:
        """As `Door.lease`. Raises `ModelForbiddenError`."""
        holder = HOLDER_OF_TASK.get()
        if holder is None or not holder.key.may_use(ticket.model_id, self._door.resolve(ticket.model_id).aliases):
            who = "a request without a key" if holder is None else f"the API key {holder.key.name}"
            raise ModelForbiddenError(f"{who} may not use the model {ticket.model_id!r}", param="model")
        return self._door.lease(ticket)


def behind_keys(door: Door) -> Door:
    """The door for routes of a daemon that asks for keys."""
    return cast(Door, _KeyedDoor(door))
