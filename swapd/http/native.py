"""llama-server's own GET /props and GET /slots, for each model by `?model=`.

Answered from what is known where the worker is none that has them, passed to the worker where it has. Must never load
a model.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web

from swapd.api import native
from swapd.config.schema import Config, Model
from swapd.errors import BadRequestError, UnknownModelError
from swapd.http.caller import identify
from swapd.http.exchange import Bounds
from swapd.http.passing import Outbound, Passing, headers_to_worker
from swapd.http.record import RECORD
from swapd.pool.door import Door
from swapd.pool.lease import Ticket
from swapd.pool.status import ModelStatus

HAVE_THEM = frozenset(("llama_server",))
"""Backends whose workers answer these themselves."""


def add_routes(app: web.Application, door: Door, config: Callable[[], Config], bounds: Bounds) -> None:
    """Put the routes into the application."""
    routes = _Native(door, config, bounds)
    app.router.add_get("/props", routes.props)
    app.router.add_get("/slots", routes.slots)


class _Native:
    def __init__(self, door: Door, config: Callable[[], Config], bounds: Bounds) -> None:
        self._door = door
        self._config = config
        self._passing = Passing(door, bounds)

    async def props(self, request: web.Request) -> web.StreamResponse:
        model = self._model_of(request)
        if model.backend in HAVE_THEM:
            return await self._ask(request, model, "/props")
        return web.json_response(native.props_document(self._status_of(model)))

    async def slots(self, request: web.Request) -> web.StreamResponse:
        model = self._model_of(request)
        if model.backend in HAVE_THEM:
            return await self._ask(request, model, "/slots")
        return web.json_response(native.slots_document(self._status_of(model)))

    def _model_of(self, request: web.Request) -> Model:
        name = request.query.get("model")
        if name is None:
            listed = self._door.listed()
            if len(listed) != 1:
                raise BadRequestError("model: say which one, as in ?model=NAME", param="model")
            name = listed[0].id
        model = self._door.resolve(name)
        request[RECORD].model_id = model.id
        return model

    def _status_of(self, model: Model) -> ModelStatus:
        for status in self._door.status().models:
            if status.id == model.id:
                return status
        raise UnknownModelError(f"model {model.id!r} was removed from the configuration", param="model")

    async def _ask(self, request: web.Request, model: Model, path: str) -> web.StreamResponse:
        record, caller = request[RECORD], identify(request, self._config().server.client_header)
        ticket = Ticket(
            record.request_id, model.id, caller.client, caller.priority, caller.weight, answer_limit=0, may_load=False
        )
        outbound = Outbound(hdrs.METH_GET, path, headers_to_worker(request.headers))
        return await self._passing.pass_on(request, record, ticket, outbound)
