"""Ollama's routes: which of its paths asks what of the pool.

Owns the table of those routes, how a model's name is understood there, and what happens to a request that only loads a
model or lets it go. Must never parse a body itself (see `swapd.api.ollama`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from aiohttp import hdrs, web

from swapd.api.ollama import listing, request
from swapd.api.ollama.request import Asked, read_name
from swapd.api.translation import Translated
from swapd.config.schema import Config
from swapd.errors import NotOfferedError, UnknownModelError
from swapd.http import limits
from swapd.http.caller import identify
from swapd.http.off_loop import OFF_LOOP_BYTES, maybe_off_loop
from swapd.http.record import RECORD, Record
from swapd.pool.door import Door
from swapd.pool.lease import Ticket

_MANAGEMENT = (
    (hdrs.METH_POST, "/api/push"),
    (hdrs.METH_POST, "/api/create"),
    (hdrs.METH_POST, "/api/copy"),
    (hdrs.METH_DELETE, "/api/delete"),
    (hdrs.METH_POST, "/api/blobs/{digest}"),
    (hdrs.METH_HEAD, "/api/blobs/{digest}"),
)


class Answering(Protocol):
    """What answers requests that are OpenAI's by now."""

    def hold_body(self) -> AbstractContextManager[limits.BodyShare]: ...

    async def body_of(self, request: web.Request, share: limits.BodyShare) -> bytes: ...

    async def answer_translated(
        self, request: web.Request, translated: Translated, *, large: bool, keep_alive_s: float | None = None
    ) -> web.StreamResponse: ...


def add_routes(app: web.Application, door: Door, config: Callable[[], Config], answering: Answering) -> None:
    """Put Ollama's routes into the application."""
    ollama = _Ollama(door, config, answering)
    app.router.add_get("/api/version", ollama.version)
    app.router.add_get("/api/tags", ollama.tags)
    app.router.add_get("/api/ps", ollama.ps)
    app.router.add_post("/api/show", ollama.show, expect_handler=limits.hold_continue)
    app.router.add_post("/api/pull", ollama.pull, expect_handler=limits.hold_continue)
    for path, read in (
        ("/api/chat", request.read_chat),
        ("/api/generate", request.read_generate),
        ("/api/embed", request.read_embed),
        ("/api/embeddings", request.read_embeddings),
    ):
        app.router.add_post(path, partial(ollama.compute, read), expect_handler=limits.hold_continue)
    for method, path in _MANAGEMENT:
        app.router.add_route(method, path, _not_offered)


class _Ollama:
    def __init__(self, door: Door, config: Callable[[], Config], answering: Answering) -> None:
        self._door = door
        self._config = config
        self._answering = answering

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": listing.API_VERSION})

    async def tags(self, _request: web.Request) -> web.Response:
        return web.json_response(listing.tags_document(self._door.listed()))

    async def ps(self, _request: web.Request) -> web.Response:
        return web.json_response(listing.ps_document(self._door.listed(), time.time()))

    async def show(self, request: web.Request) -> web.Response:
        name = await self._name_in(request)
        return web.json_response(listing.show_document(self._door.listed_as(self._resolve(name))))

    async def pull(self, request: web.Request) -> web.Response:
        """What is in the list is there already; nothing else can be had."""
        name = await self._name_in(request)
        try:
            self._resolve(name)
        except UnknownModelError as error:
            raise NotOfferedError(f"{error.message}; swapd downloads nothing: add it to the model list") from None
        return web.Response(body=b'{"status":"success"}\n', content_type="application/x-ndjson")

    async def compute(self, read: Callable[[bytes, Record], Asked], request: web.Request) -> web.StreamResponse:
        """A chat, a completion or embeddings."""
        limits.require_json_of_pages(request)
        record = request[RECORD]
        with self._answering.hold_body() as share:
            body = await self._answering.body_of(request, share)
            large = len(body) >= OFF_LOOP_BYTES
            asked = await maybe_off_loop(large, partial(read, body, record))
            model_id = record.model_id = self._resolve(asked.model_name)
            if asked.translated is None:
                return await self._keep(request, asked, model_id)
            asked.translated.fields["model"] = model_id
            return await self._answering.answer_translated(
                request, asked.translated, large=large, keep_alive_s=asked.keep_alive_s
            )

    async def _keep(self, request: web.Request, asked: Asked, model_id: str) -> web.Response:
        """Load the model, for which the request waits its turn like any other, or let it go once it runs nothing."""
        if asked.keep_alive_s == 0:
            self._door.keep(model_id, 0)
            return web.Response(body=asked.empty("unload"), content_type="application/json")
        record, caller = request[RECORD], identify(request, self._config().server.client_header)
        ticket = Ticket(
            record.request_id,
            model_id,
            caller.client,
            caller.priority,
            caller.weight,
            answer_limit=0,
            keep_alive_s=asked.keep_alive_s,
        )
        async with self._door.lease(ticket) as lease:
            record.waited_s, record.granted = lease.waited_s, True
        return web.Response(body=asked.empty("load"), content_type="application/json")

    async def _name_in(self, request: web.Request) -> str:
        """The model that the body of a request names."""
        limits.require_json_of_pages(request)
        with self._answering.hold_body() as share:
            return read_name(await self._answering.body_of(request, share))

    def _resolve(self, name: str) -> str:
        """The id of the model that a name means, with `:latest` behind it or without. Raises `UnknownModelError`."""
        first, other = listing.candidates(name)
        try:
            return self._door.resolve(first).id
        except UnknownModelError:
            try:
                return self._door.resolve(other).id
            except UnknownModelError:
                pass
            raise


async def _not_offered(request: web.Request) -> web.Response:
    raise NotOfferedError(
        f"{request.method} {request.path[:100]}: swapd serves the models of its list, and nobody changes that but "
        "the list; edit it, it is read again at once"
    )
