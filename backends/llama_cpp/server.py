"""The worker's HTTP side: OpenAI's endpoints over a Unix socket.

Owns the routes, the order of a request's steps and what a client that leaves sets in motion. Must never block
the event loop: rendering and tokenizing run in a small pool of threads, everything else is short.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TypeVar

from aiohttp import web

from backends.llama_cpp import prompts
from backends.llama_cpp.calls import Call, Switchboard
from backends.llama_cpp.chat.template import ChatTemplate, ChatTemplateError
from backends.llama_cpp.engine.types import Embedded, Ended, Generate
from backends.llama_cpp.errors import RequestError, engine_failed
from backends.llama_cpp.requests import (
    GenerateBody,
    Limits,
    choices,
    decode_chat,
    decode_completion,
    decode_embedding,
)
from backends.llama_cpp.responses import Dialect, Heading, Stream, Whole, embedding_answer

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The daemon's own limit is what clients meet; this one only keeps a defect from filling the memory."""
PREPARING_THREADS = 2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_EVENT_STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Decoded = TypeVar("Decoded")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """The loaded model, as far as requests are concerned."""

    model_id: str
    limits: Limits
    tokenizer: prompts.Tokenizer
    template: ChatTemplate | ChatTemplateError
    """What answers chats, or why none can be answered."""
    embeddings: bool


@dataclass(slots=True)
class Server:
    """The endpoints of one model. `now` tells the local time."""

    served: Served
    switchboard: Switchboard
    now: Callable[[], datetime]
    _threads: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="prepare")

    def application(self) -> web.Application:
        """The aiohttp application; run it with `handler_cancellation=True`."""
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_envelopes])
        application.add_routes(
            [
                web.get("/health", self._health),
                web.post("/v1/chat/completions", self._counted(self._chat)),
                web.post("/v1/completions", self._counted(self._complete)),
                web.post("/v1/embeddings", self._counted(self._embed)),
            ]
        )
        return application

    def _counted(self, handler: Callable[[web.Request, Call], Awaitable[web.StreamResponse]]) -> Handler:
        """Give the request a call: its usage is reported and what it started is cancelled, however it ends."""

        async def run(request: web.Request) -> web.StreamResponse:
            asked = request.headers.get("X-Request-Id", "")
            request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
            with self.switchboard.call(request_id) as call:
                return await handler(request, call)

        return run

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _chat(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require_generation()
        served = self.served
        if isinstance(served.template, ChatTemplateError):
            raise RequestError(str(served.template), status=500, kind="server_error", code="chat_template_error")
        body = decode_chat(await request.read())
        make = partial(prompts.chat_requests, body, served.tokenizer, served.template, served.limits)
        generates = await self._prepare(partial(make, self._new_id(call), self.now()))
        return await self._generate(request, call, body, generates, Dialect.CHAT)

    async def _complete(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require_generation()
        served = self.served
        body = decode_completion(await request.read())
        make = partial(prompts.completion_requests, body, served.tokenizer, served.limits)
        generates = await self._prepare(partial(make, self._new_id(call)))
        return await self._generate(request, call, body, generates, Dialect.COMPLETION)

    async def _embed(self, request: web.Request, call: Call) -> web.StreamResponse:
        served = self.served
        if not served.embeddings:
            raise RequestError(
                f"{served.model_id} runs as a text generator; set `embeddings: true` for it in the model list, "
                "or ask a model that has it"
            )
        body = decode_embedding(await request.read())
        make = partial(prompts.embedding_request, body, served.tokenizer, served.limits)
        call.submit([await self._prepare(partial(make, self._new_id(call)))])
        embedded: Embedded | None = None
        while True:
            for output in await call.take():
                if isinstance(output, Embedded):
                    embedded = output
                elif isinstance(output, Ended):
                    if output.error is not None or embedded is None:
                        raise engine_failed(output.error or "the engine dropped the request")
                    as_base64 = body.encoding_format == "base64"
                    answer = embedding_answer(
                        served.model_id, embedded.vectors, embedded.prompt_tokens, as_base64=as_base64
                    )
                    return _json(answer)

    def _require_generation(self) -> None:
        if self.served.embeddings:
            raise RequestError(
                f"{self.served.model_id} is an embeddings model; ask /v1/embeddings, "
                "or set `embeddings: false` for it in the model list"
            )

    def _new_id(self, call: Call) -> Callable[[], str]:
        return partial(self.switchboard.new_id, call.request_id)

    async def _prepare(self, make: Callable[[], Decoded]) -> Decoded:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, make)
        except ChatTemplateError as error:
            raise RequestError(str(error), param="messages", code="chat_template_error") from error

    async def _generate(
        self, request: web.Request, call: Call, body: GenerateBody, generates: list[Generate], dialect: Dialect
    ) -> web.StreamResponse:
        n = choices(body, self.served.limits)
        heading = Heading(dialect, call.request_id, self.served.model_id, int(self.now().timestamp()))
        first_index = {generate.request_id: position * n for position, generate in enumerate(generates)}
        call.submit(generates)
        if body.stream:
            return await _stream(request, call, Stream(heading, first_index, n, body.include_usage))
        whole = Whole(heading, first_index, n)
        while not whole.finished:
            whole.feed(await call.take())
        return _json(whole.answer())

    def close(self) -> None:
        """Let the threads go; what they still do is of no use to anyone."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _stream(request: web.Request, call: Call, stream: Stream) -> web.StreamResponse:
    outputs = await call.take()
    failure = next((output.error for output in outputs if isinstance(output, Ended) and output.error), None)
    if failure is not None:
        # Nothing has been sent, so it can still be a status.
        raise engine_failed(failure)
    response = web.StreamResponse(headers=_EVENT_STREAM)
    try:
        await response.prepare(request)
        while True:
            events = stream.feed(outputs)
            if events:
                await response.write(events)
            if stream.finished:
                await response.write_eof()
                return response
            outputs = await call.take()
    except ConnectionError:
        # The client is gone; leaving the call cancels the request in the engine.
        return response


def _json(document: bytes, status: int = 200) -> web.Response:
    return web.Response(body=document, status=status, content_type="application/json")


@web.middleware
async def _errors_as_envelopes(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return _json(error.envelope(), error.status)
    except web.HTTPException as error:
        kind = "not_found_error" if error.status == web.HTTPNotFound.status_code else "invalid_request_error"
        return _json(RequestError(error.reason, kind=kind).envelope(), error.status)
    except ConnectionError:
        raise
    except Exception:
        log.exception("request to %s failed", request.path)
        return _json(engine_failed("the worker failed on this request; its log says why").envelope(), 500)
