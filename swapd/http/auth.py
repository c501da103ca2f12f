"""Who may use which route: denied by default, decided on the matched route, never on the path as text.

Owns the table of scopes and the reading of keys from requests. A route without an entry in the table is a mistake of
the programmer, found when the application is made. Must never keep or log a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from swapd.api import openai
from swapd.config.keys import Scope
from swapd.errors import ForbiddenError, UnauthorizedError
from swapd.http.errors import Handler
from swapd.http.keyed_door import HOLDER_OF_TASK
from swapd.http.keyring import Holder, Keyring
from swapd.http.record import RECORD

API_KEY_HEADER = "X-Api-Key"
"""Anthropic's clients send it in place of a bearer token."""

HOLDER = web.RequestKey("swapd_holder", Holder)
"""Whose key a request came with. Absent where the daemon asks for none."""


class Open(Enum):
    """For routes that nobody needs a key for."""

    OPEN = "open"


SCOPES: Mapping[str, Scope | Open] = {
    "/health": Open.OPEN,
    "/metrics": Scope.METRICS,
    "/swapd/v1/openapi.json": Open.OPEN,
    **{
        path: Scope.INFERENCE
        for endpoint in openai.Endpoint
        for path in (endpoint.value, *openai.ALSO_AT.get(endpoint, ()))
    },
    "/v1/messages": Scope.INFERENCE,
    "/v1/messages/count_tokens": Scope.INFERENCE,
    "/v1/responses": Scope.INFERENCE,
    "/v1/responses/{id}": Scope.INFERENCE,
    "/v1/models": Scope.INFERENCE,
    "/models": Scope.INFERENCE,
    "/v1/models/{id}": Scope.INFERENCE,
    "/v1/audio/transcriptions": Scope.INFERENCE,
    "/v1/audio/translations": Scope.INFERENCE,
    "/v1/audio/speech": Scope.INFERENCE,
    "/v1/audio/voices": Scope.INFERENCE,
    "/v1/images/generations": Scope.INFERENCE,
    "/v1/images/edits": Scope.INFERENCE,
    "/v1/images/variations": Scope.INFERENCE,
    "/sdapi/v1/txt2img": Scope.INFERENCE,
    "/sdapi/v1/img2img": Scope.INFERENCE,
    "/sdapi/v1/loras": Scope.INFERENCE,
    "/audioapi/v1/tasks/run": Scope.INFERENCE,
    "/": Open.OPEN,
    "/ui/{name}": Open.OPEN,
    "/api/version": Open.OPEN,
    "/api/tags": Scope.INFERENCE,
    "/api/ps": Scope.INFERENCE,
    "/api/show": Scope.INFERENCE,
    "/api/chat": Scope.INFERENCE,
    "/api/generate": Scope.INFERENCE,
    "/api/embed": Scope.INFERENCE,
    "/api/embeddings": Scope.INFERENCE,
    "/api/pull": Scope.ADMIN,
    "/api/push": Scope.ADMIN,
    "/api/create": Scope.ADMIN,
    "/api/copy": Scope.ADMIN,
    "/api/delete": Scope.ADMIN,
    "/api/blobs/{digest}": Scope.ADMIN,
    "/props": Scope.INFERENCE,
    "/slots": Scope.INFERENCE,
    # It goes past the types and ranges of every field.
    "/upstream/{target}": Scope.ADMIN,
    "/swapd/v1/status": Scope.METRICS,
    "/swapd/v1/profiles": Scope.METRICS,
    "/swapd/v1/profiles/active": Scope.ADMIN,
    "/swapd/v1/events": Scope.METRICS,
    "/swapd/v1/requests": Scope.METRICS,
    "/swapd/v1/usage": Scope.METRICS,
    "/swapd/v1/activity": Scope.METRICS,
    "/swapd/v1/logs/{id}": Scope.ADMIN,
    "/swapd/v1/models/{id}/load": Scope.ADMIN,
    "/swapd/v1/models/{id}/unload": Scope.ADMIN,
    "/swapd/v1/models/{id}/pin": Scope.ADMIN,
    "/swapd/v1/models/{id}/unpin": Scope.ADMIN,
    "/swapd/v1/unload": Scope.ADMIN,
    "/swapd/v1/requests/{id}/cancel": Scope.ADMIN,
    "/swapd/v1/devices/{name}/pause": Scope.ADMIN,
    "/swapd/v1/devices/{name}/resume": Scope.ADMIN,
}
"""What a key must be for, by a route's pattern as aiohttp writes it (`canonical`)."""


def check_routes(app: web.Application) -> None:
    """Raises `RuntimeError` if a route has no entry in the table: without one, nobody has thought about who may."""
    missing = sorted({_pattern(route) for route in app.router.routes()} - set(SCOPES))
    if missing:
        raise RuntimeError(f"routes without a scope in {__name__}.SCOPES: {', '.join(missing)}")


def guard(keyring: Keyring | None) -> Middleware:
    """Lets a request through to its route if its key is for that, and has not too many already.

    None: no keys, and all are let through.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if keyring is not None:
            scope = _admit(request, keyring)
            if scope is Scope.INFERENCE and request.method == hdrs.METH_POST:
                with request[HOLDER].running():
                    return await handler(request)
        return await handler(request)

    return check


def _admit(request: web.Request, keyring: Keyring) -> Scope | Open | None:
    """What the route is for; None where there is no route. Raises `UnauthorizedError`, `ForbiddenError`."""
    route = request.match_info.route
    # What matches no route gets its 404 or 405, but only for somebody who may be here.
    scope = SCOPES[_pattern(route)] if route.resource is not None else None
    if scope is Open.OPEN:
        return scope
    holder = keyring.find(presented_key(request))
    key = holder.key
    request[RECORD].key_name = key.name
    if isinstance(scope, Scope) and not key.allows(scope):
        held = ", ".join(key.scopes) or "nothing"
        raise ForbiddenError(f"the API key {key.name} is for {held}, and this needs {scope} (scopes)")
    request[HOLDER] = holder
    HOLDER_OF_TASK.set(holder)
    return scope


def presented_key(request: web.Request) -> str:
    """The bearer token, else what `X-Api-Key` says. Raises `UnauthorizedError` if there is none, or several."""
    bearer = [
        token.strip()
        for scheme, _, token in (
            value.strip().partition(" ") for value in request.headers.getall(hdrs.AUTHORIZATION, ())
        )
        if scheme.lower() == "bearer" and token.strip()
    ]
    found = bearer or [value.strip() for value in request.headers.getall(API_KEY_HEADER, ()) if value.strip()]
    if len(found) != 1:
        what = "has several API keys" if found else "has no API key"
        raise UnauthorizedError(f"the request {what}; send one as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")
    return found[0]


def _pattern(route: web.AbstractRoute) -> str:
    assert route.resource is not None
    return route.resource.canonical
