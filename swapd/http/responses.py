"""The routes of `/v1/responses` beside its translation: who asks, what is stored for them.

Owns the store for as long as the daemon runs. Must never show a client another one's responses.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial

from aiohttp import web

from swapd.api.responses import request as responses
from swapd.api.responses.store import ResponseStore
from swapd.api.translation import Translated
from swapd.config.schema import Config
from swapd.errors import BadRequestError, NotFoundError
from swapd.http.caller import identify


class Responses:
    """Handlers, and the reader of requests that go on from stored responses."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._store = ResponseStore()

    def reader(self, request: web.Request) -> Callable[[bytes], Translated]:
        """What reads the body of POST /v1/responses for this client."""
        client = self._client(request)
        shelf = responses.Shelf(find=partial(self._store.find, client), keep=partial(self._store.keep, client))
        return partial(
            responses.read, response_id=f"resp_{secrets.token_hex(16)}", created_at=int(time.time()), shelf=shelf
        )

    async def show(self, request: web.Request) -> web.Response:
        if request.query.get("stream", "false") not in ("false", "0"):
            raise BadRequestError("stream: a stored response is not streamed again; leave it out", param="stream")
        stored = self._store.find(self._client(request), request.match_info["id"])
        if stored is None:
            raise _unknown(request)
        return web.Response(body=stored.document, content_type="application/json")

    async def delete(self, request: web.Request) -> web.Response:
        response_id = request.match_info["id"]
        if not self._store.forget(self._client(request), response_id):
            raise _unknown(request)
        return web.json_response({"id": response_id, "object": "response", "deleted": True})

    def _client(self, request: web.Request) -> str:
        return identify(request, self._config().server.client_header).client


def _unknown(request: web.Request) -> NotFoundError:
    return NotFoundError(
        f"no response {request.match_info['id'][:64]!r} is stored for this client; it may have had to make room",
        param="response_id",
    )
