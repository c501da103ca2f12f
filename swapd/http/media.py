"""OpenAI's endpoints for sounds and images: forms with files and JSON, passed to workers that can answer them.

Owns the table of those endpoints. A form is read up to the field `model` and streamed from there on; an answer is
streamed as it comes. Must never interpret a file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import msgspec
from aiohttp import hdrs, web

from swapd.api import size, strict_json
from swapd.api.media import MediaBody
from swapd.api.multipart import ModelFinder
from swapd.api.shapes import shaped
from swapd.config.schema import Config
from swapd.errors import BadRequestError
from swapd.http import limits
from swapd.http.caller import identify
from swapd.http.exchange import Bounds
from swapd.http.passing import Outbound, Passing, headers_to_worker
from swapd.http.record import RECORD
from swapd.pool.door import Door
from swapd.pool.lease import Ability, Ticket

FORMS: Mapping[str, Ability] = {
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/audio/translations": "transcriptions",
    "/v1/images/edits": "images",
    "/v1/images/variations": "images",
}
DOCUMENTS: Mapping[str, Ability] = {
    "/v1/audio/speech": "speech",
    "/v1/audio/voices": "speech",
    "/v1/images/generations": "images",
    "/sdapi/v1/txt2img": "images",
    "/sdapi/v1/img2img": "images",
    "/audioapi/v1/tasks/run": "speech",
}
"""OpenAI's, and of other interfaces what servers of images and sounds have: stable-diffusion-webui's, audio.cpp's."""
QUESTIONS: Mapping[str, Ability] = {
    "/v1/audio/voices": "speech",
    "/sdapi/v1/loras": "images",
}
"""GETs, which name their model as in `?model=` and load none."""


def add_routes(
    app: web.Application, door: Door, config: Callable[[], Config], bounds: Bounds, bodies: limits.BodyBudget
) -> None:
    """Put the routes into the application."""
    media = _Media(door, config, bounds, bodies)
    for path, ability in FORMS.items():
        app.router.add_post(path, partial(media.form, path, ability), expect_handler=limits.hold_continue)
    for path, ability in QUESTIONS.items():
        app.router.add_get(path, partial(media.question, path, ability))
    for path, ability in DOCUMENTS.items():
        app.router.add_post(path, partial(media.document, path, ability), expect_handler=limits.hold_continue)


class _Media:
    def __init__(self, door: Door, config: Callable[[], Config], bounds: Bounds, bodies: limits.BodyBudget) -> None:
        self._door = door
        self._config = config
        self._bodies = bodies
        self._passing = Passing(door, bounds)

    async def form(self, path: str, ability: Ability, request: web.Request) -> web.StreamResponse:
        """A form with files. What has to be held until the model is known counts as a body in flight."""
        limits.refuse_foreign_page(request)
        finder = ModelFinder(request.headers.get(hdrs.CONTENT_TYPE, ""))
        server = self._config().server
        await limits.expect_body(request, max_bytes=server.max_body_bytes)
        body = limits.stream_body(request, max_bytes=server.max_body_bytes)
        async with aclosing(body):
            with self._bodies.hold(max(server.max_body_bytes, server.max_bodies_bytes)) as share:
                held_bytes = 0
                while not finder.found and (part := await anext(body, b"")):
                    held_bytes += len(part)
                    share.hold(held_bytes)
                    finder.feed(part)
                finder.end()
                ticket, model_id = self._ticket(request, ability, finder.model_name)
                head = finder.head(model_id)
                length = request.content_length
                outbound = Outbound(
                    request.method,
                    path,
                    headers_to_worker(request.headers),
                    _joined(head, body),
                    None if length is None else length + len(model_id.encode()) - finder.name_bytes,
                )
                return await self._passing.pass_on(request, request[RECORD], ticket, outbound)

    async def document(self, path: str, ability: Ability, request: web.Request) -> web.StreamResponse:
        """JSON, with the model's `params`."""
        limits.require_json(request)
        server = self._config().server
        with self._bodies.hold(max(server.max_body_bytes, server.max_bodies_bytes)) as share:
            fields = strict_json.parse_object(await limits.read_body(request, share, max_bytes=server.max_body_bytes))
            name = shaped(fields, MediaBody).model
            ticket, model_id = self._ticket(request, ability, name)
            params = self._door.resolve(name).params
            kept = {key: value for key, value in fields.items() if key not in params.strip}
            body = msgspec.json.encode({**kept, **params.set, "model": model_id})
            headers = headers_to_worker(request.headers)
            headers[hdrs.CONTENT_TYPE] = "application/json"
            outbound = Outbound(request.method, path, headers, _joined(body, None), len(body))
            return await self._passing.pass_on(request, request[RECORD], ticket, outbound)

    async def question(self, path: str, ability: Ability, request: web.Request) -> web.StreamResponse:
        """What a loaded worker has to choose from. Nothing is loaded for it."""
        name = request.query.get("model")
        if not name:
            raise BadRequestError("model: say which one, as in ?model=NAME", param="model")
        ticket, _ = self._ticket(request, ability, name)
        ticket = replace(ticket, prompt_tokens=0, may_load=False)
        outbound = Outbound(hdrs.METH_GET, path, headers_to_worker(request.headers))
        return await self._passing.pass_on(request, request[RECORD], ticket, outbound)

    def _ticket(self, request: web.Request, ability: Ability, name: str) -> tuple[Ticket, str]:
        """The request as the scheduler sees it: about as large as one image or sound is elsewhere."""
        record, caller = request[RECORD], identify(request, self._config().server.client_header)
        model_id = record.model_id = self._door.resolve(name).id
        ticket = Ticket(
            record.request_id,
            model_id,
            caller.client,
            caller.priority,
            caller.weight,
            prompt_tokens=size.MEDIUM_TOKENS,
            answer_limit=0,
            needs=ability,
        )
        return ticket, model_id


async def _joined(head: bytes, rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    """What was read, then what comes."""
    yield head
    if rest is not None:
        async for part in rest:
            yield part
