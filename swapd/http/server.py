"""The front door's routes: what each path asks of the pool, and in which order a request is checked.

Owns the table of routes. Must never choose workers, parse bodies itself or make an error response (see
`swapd.http.errors`). Nothing that changes state is a GET.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import structlog
from aiohttp import web

from swapd.activity.book import Book
from swapd.api import openai
from swapd.api.anthropic import request as anthropic
from swapd.api.translation import Translated, Translation
from swapd.config.schema import Config, Model
from swapd.http import administration, limits, media, native, ollama, openapi, page, passthrough, profiles
from swapd.http.auth import HOLDER, check_routes, guard
from swapd.http.caller import Caller, identify
from swapd.http.errors import Handler, add_headers, framing
from swapd.http.exchange import Bounds, Outgoing
from swapd.http.firewall import add_cors_headers, firewall
from swapd.http.keyed_door import behind_keys
from swapd.http.keyring import Keyring
from swapd.http.off_loop import OFF_LOOP_BYTES, maybe_off_loop
from swapd.http.record import RECORD
from swapd.http.relay import Relay
from swapd.http.responses import Responses
from swapd.http.routing import first_outgoing
from swapd.http.usage import UsageRoutes
from swapd.observe.metrics import Metrics
from swapd.observe.traces import Traces
from swapd.pool.door import Door
from swapd.pool.lease import Ticket

log = structlog.get_logger(__name__)


def make_app(
    door: Door,
    config: Callable[[], Config],
    metrics: Metrics,
    book: Book,
    bounds: Bounds | None = None,
    keyring: Keyring | None = None,
    traces: Traces | None = None,
) -> web.Application:
    """The daemon's HTTP application. `config` gives the current configuration, which a reload may replace.

    Without a keyring nobody is asked for a key.
    """
    bounds = bounds or Bounds()
    door = door if keyring is None else behind_keys(door)
    api = _Api(door, config, Relay(door, metrics, bounds), metrics)
    frame = framing(metrics, book, traces, write_deadline_s=bounds.write_deadline_s)
    app = web.Application(middlewares=[frame, firewall(lambda: config().server), guard(keyring)])
    app.on_response_prepare.append(add_headers)
    app.on_response_prepare.append(add_cors_headers)
    for endpoint in openai.Endpoint:
        for path in (endpoint.value, *openai.ALSO_AT.get(endpoint, ())):
            app.router.add_post(path, api.handler(endpoint), expect_handler=limits.hold_continue)
    for path, read in (
        ("/v1/messages", anthropic.read),
        ("/v1/messages/count_tokens", anthropic.read_count),
    ):
        app.router.add_post(path, api.translated(read), expect_handler=limits.hold_continue)
    responses = Responses(config)
    app.router.add_post("/v1/responses", api.translated_for(responses.reader), expect_handler=limits.hold_continue)
    app.router.add_get("/v1/responses/{id}", responses.show)
    app.router.add_delete("/v1/responses/{id}", responses.delete)
    ollama.add_routes(app, door, config, api)
    passthrough.add_routes(app, door, config, bounds)
    native.add_routes(app, door, config, bounds)
    media.add_routes(app, door, config, bounds, api.bodies)
    page.add_routes(app)
    app.router.add_get("/v1/models", api.list_models)
    app.router.add_get("/models", api.list_models)
    app.router.add_get("/v1/models/{id:.+}", api.show_model)
    UsageRoutes(book).add_to(app.router)
    administration.add_routes(app, door, api.cancel, metrics, bounds)
    profiles.add_routes(app, door)
    openapi.add_routes(app)
    check_routes(app)
    return app


class _Api:
    """OpenAI's routes."""

    def __init__(self, door: Door, config: Callable[[], Config], relay: Relay, metrics: Metrics) -> None:
        self._door = door
        self._config = config
        self._relay = relay
        self._metrics = metrics
        self.bodies = limits.BodyBudget()
        self._created = int(time.time())

    def handler(self, endpoint: openai.Endpoint) -> Handler:
        """A route of OpenAI's dialect."""
        return self._answering(partial(self._read, endpoint=endpoint))

    def translated(self, read: Callable[[bytes], Translated]) -> Handler:
        """A route of another dialect: `read` turns a body into OpenAI's fields, or raises a `SwapdError`."""
        return self._answering(partial(self._read_translated, reader=lambda _request: read, in_thread=False))

    def translated_for(self, reader: Callable[[web.Request], Callable[[bytes], Translated]]) -> Handler:
        """The same where what a body says depends on who asks. Read in a thread: a short one may stand for much."""
        return self._answering(partial(self._read_translated, reader=reader, in_thread=True))

    def _answering(self, read: Callable[[web.Request, limits.BodyShare], Awaitable[Outgoing]]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            limits.require_json(request)
            with self.hold_body() as share:
                return await self._relayed(request, await read(request, share))

        return handle

    def hold_body(self) -> AbstractContextManager[limits.BodyShare]:
        """A request's share of what all bodies in flight may take."""
        server = self._config().server
        return self.bodies.hold(max(server.max_body_bytes, server.max_bodies_bytes))

    async def body_of(self, request: web.Request, share: limits.BodyShare) -> bytes:
        return await limits.read_body(request, share, max_bytes=self._config().server.max_body_bytes)

    async def answer_translated(
        self, request: web.Request, translated: Translated, *, large: bool, keep_alive_s: float | None = None
    ) -> web.StreamResponse:
        """Check a request that was turned into OpenAI's, and answer it."""
        asked = await maybe_off_loop(large, partial(openai.check, translated.endpoint, translated.fields))
        outgoing = await self._outgoing(request, asked, large=large, translate=translated.answer)
        ticket = replace(outgoing.ticket, keep_alive_s=keep_alive_s)
        return await self._relayed(request, replace(outgoing, ticket=ticket))

    async def _relayed(self, request: web.Request, outgoing: Outgoing) -> web.StreamResponse:
        record = request[RECORD]
        response = None
        try:
            response = await self._relay.answer(request, record, outgoing)
            return response
        finally:
            if not record.granted and outgoing.ticket.counted is not None:
                outgoing.ticket.counted(0)
            status = record.whole if response is None else response.status
            if record.broken is None and status == web.HTTPOk.status_code:
                self._metrics.answered_whole(record.model_id, record.age_s())

    async def _read(self, request: web.Request, share: limits.BodyShare, *, endpoint: openai.Endpoint) -> Outgoing:
        """The client's request, checked, as a worker gets it."""
        body = await limits.read_body(request, share, max_bytes=self._config().server.max_body_bytes)
        large = len(body) >= OFF_LOOP_BYTES
        asked = await maybe_off_loop(large, partial(openai.read, endpoint, body))
        return await self._outgoing(request, asked, large=large)

    async def _read_translated(
        self,
        request: web.Request,
        share: limits.BodyShare,
        *,
        reader: Callable[[web.Request], Callable[[bytes], Translated]],
        in_thread: bool,
    ) -> Outgoing:
        body = await limits.read_body(request, share, max_bytes=self._config().server.max_body_bytes)
        large = in_thread or len(body) >= OFF_LOOP_BYTES
        read = reader(request)

        def checked() -> tuple[openai.Asked, Translated]:
            translated = read(body)
            return openai.check(translated.endpoint, translated.fields), translated

        asked, translated = await maybe_off_loop(large, checked)
        outgoing = await self._outgoing(request, asked, large=large, translate=translated.answer)
        # It may be much more than the client has sent now, if it goes on from what was stored.
        share.hold(len(outgoing.body))
        return outgoing

    async def _outgoing(
        self,
        request: web.Request,
        asked: openai.Asked,
        *,
        large: bool,
        translate: Callable[[], Translation] | None = None,
    ) -> Outgoing:
        """A checked request as a worker gets it. `large` has it rewritten in a thread."""
        caller = identify(request, self._config().server.client_header)
        if (holder := request.get(HOLDER)) is not None:
            holder.refuse_structured(asked.fields)
        make = partial(self._for_model, request, caller, large=large, translate=translate)
        return await first_outgoing(self._door, asked, make)

    async def _for_model(
        self,
        request: web.Request,
        caller: Caller,
        asked: openai.Asked,
        model: Model,
        *,
        large: bool,
        translate: Callable[[], Translation] | None,
    ) -> Outgoing:
        """The same for one model, which `asked` names."""
        record, holder = request[RECORD], request.get(HOLDER)
        record.model_id = model.id
        rewritten = await maybe_off_loop(large, partial(openai.rewrite, asked, model))
        prompt_tokens, answer_limit = rewritten.prompt_tokens, rewritten.answer_limit
        charge = None if holder is None else holder.charge(prompt_tokens, answer_limit)
        return Outgoing(
            ticket=Ticket(
                record.request_id,
                model.id,
                caller.client,
                caller.priority,
                caller.weight,
                prompt_tokens=prompt_tokens,
                answer_limit=answer_limit,
                needs=asked.needs,
                senses=asked.senses,
                counted=None if charge is None else charge.counted,
            ),
            path=asked.endpoint.value,
            body=rewritten.body,
            stream=rewritten.stream,
            loading_text=model.loading_text
            and asked.endpoint is openai.Endpoint.CHAT_COMPLETIONS
            and translate is None,
            translate=translate,
        )

    def cancel(self, request_id: str) -> bool:
        """End a request in flight; False if there is none of this id."""
        return self._relay.cancel(request_id)

    async def list_models(self, _request: web.Request) -> web.Response:
        return web.json_response(openai.models_document(self._door.listed(), self._created))

    async def show_model(self, request: web.Request) -> web.Response:
        model = self._door.listed_as(request.match_info["id"])
        return web.json_response(openai.model_document(model, self._created))
