"""From the name in a request to the model that serves it: at once, or for a virtual model target after target.

Owns which errors of a target are a reason to try another. Must never order targets (`swapd.core.routing`), and holds no
lease: the relay has left one target before it asks for the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import structlog

from swapd.api.openai import Asked
from swapd.config.schema import Model, Virtual
from swapd.core.routing import Attempt, attempts
from swapd.errors import (
    InvalidModelFileError,
    LoadFailedError,
    LoadTimeoutError,
    ModelDoesNotFitError,
    QueueFullError,
    QueueTimeoutError,
    SwapdError,
    UnknownModelError,
    UnsupportedEndpointError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    WorkerFailedError,
    WorkerLostError,
)
from swapd.http.exchange import Outgoing
from swapd.pool.door import Door
from swapd.pool.routes import Route

log = structlog.get_logger(__name__)

PASSED_ON = (
    InvalidModelFileError,
    LoadFailedError,
    LoadTimeoutError,
    ModelDoesNotFitError,
    QueueFullError,
    QueueTimeoutError,
    UnknownModelError,
    UnsupportedEndpointError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    WorkerFailedError,
    WorkerLostError,
)
"""What is wrong with one target and may be right with another. All else is the request's, the client's or the
daemon's, and would be the same everywhere."""

Make = Callable[[Asked, Model], Awaitable[Outgoing]]
"""Makes of a request what one model's worker gets."""


async def first_outgoing(door: Door, asked: Asked, make: Make) -> Outgoing:
    """The request for the model that it is to be sent to first. Raises `SwapdError` where there is none."""
    route = door.routes.route(asked.model_name)
    if route.virtual is None:
        (name,) = route.targets
        if name != asked.model_name:
            asked = dataclasses.replace(asked, model_name=name)
        return await make(asked, door.resolve(name))
    return await Turns(door, route, route.virtual, asked, make).first()


class Turns:
    """One request's way through the targets of a virtual model; each is tried once."""

    def __init__(self, door: Door, route: Route, virtual: Virtual, asked: Asked, make: Make) -> None:
        self._door = door
        self._route = route
        self._virtual = virtual
        self._asked = asked
        self._make = make
        self._untried = route.targets
        self._trying = ""
        self._failed: list[tuple[str, SwapdError]] = []

    @property
    def more(self) -> bool:
        """Whether there is another target to try."""
        return bool(self._untried)

    async def first(self) -> Outgoing:
        """Raises what keeps the first target from such requests where it keeps all."""
        order = self._order(self._untried)
        if not order:
            raise UnknownModelError(f"no target of {self._route.asked[:200]!r} is configured any more", param="model")
        return await self._try(order)

    async def after(self, error: SwapdError) -> Outgoing:
        """The request for the next target, after one that failed. Raises what the client is told if there is none."""
        if not isinstance(error, PASSED_ON):
            raise error
        self._failed.append((self._trying, error))
        try:
            order = self._order(self._untried)
        except SwapdError:
            order = ()  # what is left cannot do what was asked; why the others failed says more
        if not order:
            raise gathered(self._route.asked, self._failed) from None
        log.info("next target", asked=self._route.asked, failed=self._trying, why=error.message, next=order[0].name)
        return await self._try(order)

    def _order(self, names: Sequence[str]) -> tuple[Attempt, ...]:
        standings = self._door.routes.standings(names, self._asked.needs, self._asked.senses)
        return attempts(self._virtual.strategy, self._virtual.max_wait_s, standings)

    async def _try(self, order: Sequence[Attempt]) -> Outgoing:
        attempt, *rest = order
        self._trying = attempt.name
        self._untried = tuple(one.name for one in rest)
        asked = dataclasses.replace(self._asked, model_name=attempt.name)
        outgoing = await self._make(asked, self._door.resolve(attempt.name))
        return dataclasses.replace(outgoing, within_s=attempt.within_s, elsewhere=self)


def gathered(asked: str, failed: Sequence[tuple[str, SwapdError]]) -> SwapdError:
    """One error for several targets': of the kind of the first that will pass by itself, else of the last."""
    if len(failed) == 1:
        return failed[0][1]
    passing = [error for _, error in failed if error.retry_after_s is not None]
    kind = passing[0] if passing else failed[-1][1]
    return type(kind)(
        f"no target of {asked[:200]!r} could serve it: "
        + "; ".join(f"{name}: {error.message}" for name, error in failed),
        param=kind.param,
        retry_after_s=min((error.retry_after_s or 0.0 for error in passing), default=None),
        details=kind.details,
    )
