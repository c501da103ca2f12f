"""The pool's door as routes see it where keys are asked for: whatever way one takes, its key's models are all there is.

Owns which names a key gets to. Must never let a request past that came without the key that the daemon asks for.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

from swapd.config.schema import Model
from swapd.errors import ModelForbiddenError, UnknownModelError
from swapd.http.keyring import Holder
from swapd.pool.door import Door
from swapd.pool.lease import Lease, Ticket
from swapd.pool.routes import Route
from swapd.pool.status import ListedModel

HOLDER_OF_TASK: ContextVar[Holder | None] = ContextVar("swapd_holder_of_task", default=None)
"""Whose key the current task's request came with. aiohttp runs each request in a task of its own."""


class _KeyedDoor:
    """What is not here is the door's own. A virtual model is as much of a key's as its targets are."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.routes = _KeyedRoutes(door)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door, name)

    def resolve(self, name: str) -> Model:
        """As `Door.resolve`. Raises `ModelForbiddenError`, the same for a model that does not exist."""
        with _hidden():
            model = self._door.resolve(name)
            if _may_use(model):
                return model
        raise _forbidden(name)

    def listed(self) -> list[ListedModel]:
        """As `Door.listed`, without those that are not the key's."""
        return [one for one in self._door.listed() if self._shows(one)]

    def listed_as(self, name: str) -> ListedModel:
        """As `Door.listed_as`. Raises `ModelForbiddenError`, the same for a model that does not exist."""
        with _hidden():
            found = self._door.listed_as(name)
            if self._shows(found):
                return found
        raise _forbidden(name)

    def lease(self, ticket: Ticket) -> AbstractAsyncContextManager[Lease]:
        """As `Door.lease`. Raises `ModelForbiddenError`."""
        if not _may_use(self._door.resolve(ticket.model_id)):
            raise _forbidden(ticket.model_id)
        return self._door.lease(ticket)

    def _shows(self, one: ListedModel) -> bool:
        if one.virtual is None:
            return _may_use(one)
        return any(_may_get_to(self._door, target) for target in one.virtual.targets)


class _KeyedRoutes:
    def __init__(self, door: Door) -> None:
        self._door = door

    def __getattr__(self, name: str) -> Any:
        return getattr(self._door.routes, name)

    def route(self, name: str) -> Route:
        """As `Routes.route`, without targets that are not the key's. Raises `ModelForbiddenError`."""
        with _hidden():
            route = self._door.routes.route(name)
            targets = tuple(target for target in route.targets if _may_get_to(self._door, target))
            if targets:
                return replace(route, targets=targets)
        raise _forbidden(name)


def behind_keys(door: Door) -> Door:
    """The door for routes of a daemon that asks for keys."""
    return cast(Door, _KeyedDoor(door))


def _hidden() -> AbstractContextManager[None]:
    """A key for some models alone cannot look around: to it, what does not exist is forbidden like what is others'."""
    holder = HOLDER_OF_TASK.get()
    return nullcontext() if holder is not None and holder.key.models is None else suppress(UnknownModelError)


def _may_use(model: Model | ListedModel) -> bool:
    holder = HOLDER_OF_TASK.get()
    return holder is not None and holder.key.may_use(model.id, model.aliases)


def _may_get_to(door: Door, name: str) -> bool:
    with suppress(UnknownModelError):
        return _may_use(door.resolve(name))
    return False


def _forbidden(name: str) -> ModelForbiddenError:
    holder = HOLDER_OF_TASK.get()
    if holder is None:
        return ModelForbiddenError(f"a request without a key may not use the model {name[:100]!r}", param="model")
    return ModelForbiddenError(
        f"the API key {holder.key.name} may not use a model {name[:100]!r}; see GET /v1/models", param="model"
    )
