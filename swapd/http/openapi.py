"""The route of the OpenAPI document: what the application has, as `swapd.api.openapi` tells of it.

Made when it is first asked for. Must never know a route by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from aiohttp import web

from swapd import __version__
from swapd.api.openapi.document import Route, document
from swapd.http.auth import SCOPES, Open

PATH = "/swapd/v1/openapi.json"


def routes_of(app: web.Application) -> Iterator[Route]:
    """Every route of the application."""
    for route in app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        scope = SCOPES[path]
        yield Route(route.method, path, None if isinstance(scope, Open) else scope.value)


def add_routes(app: web.Application) -> None:
    """Put the route into the application."""
    made: list[bytes] = []

    async def show(request: web.Request) -> web.Response:
        if not made:
            made.append(msgspec.json.encode(document(routes_of(request.app), __version__)))
        return web.Response(body=made[0], content_type="application/json")

    app.router.add_get(PATH, show)
