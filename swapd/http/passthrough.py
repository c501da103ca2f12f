"""/upstream/{model}/{path}: whatever else a worker offers, by any method, websockets too.

Owns how model and path are told apart. Must never load a model for a request that should change nothing: GET, HEAD
and OPTIONS are refused while it is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from aiohttp import hdrs, web

from swapd.config.schema import Config
from swapd.errors import SwapdError, UnknownModelError
from swapd.http import limits
from swapd.http.caller import identify
from swapd.http.exchange import Bounds
from swapd.http.passing import Outbound, Passing, headers_to_worker
from swapd.http.record import RECORD
from swapd.http.sockets import Sockets, is_upgrade
from swapd.pool.door import Door
from swapd.pool.lease import Ticket

PREFIX = "/upstream/"
_READING = (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS)
MAX_SEGMENTS = 16
"""Of a model's id."""


def add_routes(app: web.Application, door: Door, config: Callable[[], Config], bounds: Bounds) -> None:
    """Put the routes into the application."""
    upstream = _Upstream(door, config, bounds)
    app.router.add_route("*", PREFIX + "{target:.+}", upstream.handle, expect_handler=limits.hold_continue)


def split_target(raw_path: str, door: Door) -> tuple[str, str]:
    """The model's id and the worker's path. Ids have slashes: the longest beginning that names a model is meant.

    Raises `UnknownModelError`.
    """
    segments = raw_path.removeprefix(PREFIX).split("/")
    missing: SwapdError | None = None
    for count in range(min(len(segments), MAX_SEGMENTS), 0, -1):
        try:
            model = door.resolve(unquote("/".join(segments[:count])))
        except UnknownModelError as error:
            missing = error
        else:
            return model.id, "/" + "/".join(segments[count:])
    assert missing is not None
    raise missing


class _Upstream:
    def __init__(self, door: Door, config: Callable[[], Config], bounds: Bounds) -> None:
        self._door = door
        self._config = config
        self._passing = Passing(door, bounds)
        self._sockets = Sockets(door, bounds)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        limits.refuse_foreign_page(request)
        record, server = request[RECORD], self._config().server
        model_id, path = split_target(request.rel_url.raw_path, self._door)
        record.model_id = model_id
        if request.rel_url.raw_query_string:
            path += "?" + request.rel_url.raw_query_string
        caller = identify(request, server.client_header)
        ticket = Ticket(
            record.request_id,
            model_id,
            caller.client,
            caller.priority,
            caller.weight,
            may_load=request.method not in _READING,
        )
        if is_upgrade(request):
            return await self._sockets.pass_on(request, record, ticket, path)
        outbound = Outbound(request.method, path, headers_to_worker(request.headers))
        if request.body_exists:
            await limits.expect_body(request, max_bytes=server.max_body_bytes)
            body = limits.stream_body(request, max_bytes=server.max_body_bytes)
            outbound = Outbound(request.method, path, outbound.headers, body, request.content_length)
        return await self._passing.pass_on(request, record, ticket, outbound)
