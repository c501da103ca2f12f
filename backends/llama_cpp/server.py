"""The worker's HTTP side: OpenAI's endpoints over a Unix socket.

Owns the routes, the order of a request's steps and what a client that leaves sets in motion. Must never block
the event loop: rendering and tokenizing run in a small pool of threads, everything else is short.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web

from backends.llama_cpp import infill, prompts, tokens, vectors
from backends.llama_cpp.calls import Call, Switchboard
from backends.llama_cpp.chat.template import ChatTemplate, ChatTemplateError
from backends.llama_cpp.engine.types import Embed, Embedded, Ended, Generate, Output, SpecialTokens, Task
from backends.llama_cpp.errors import RequestError, engine_failed
from backends.llama_cpp.requests import GenerateBody, Limits, Tokens, choices, decode_chat, decode_completion
from backends.llama_cpp.responses import Dialect, Heading, Stream, Whole

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
    tokenizer: tokens.Vocabulary
    template: ChatTemplate | ChatTemplateError
    """What answers chats, or why none can be answered."""
    task: Task
    special_tokens: SpecialTokens
    rerank_template: str | None
    """The file's text around `{query}` and `{document}`."""


ENDPOINTS = {
    Task.GENERATE: "is a text generator; ask /v1/chat/completions or /v1/completions",
    Task.EMBED: "is an embeddings model; ask /v1/embeddings",
    Task.RANK: "is a reranking model; ask /v1/rerank",
}
"""What a model of another kind than an endpoint needs is told to be."""
REMEDIES = {
    Task.GENERATE: "set `embeddings: false` for it in the model list",
    Task.EMBED: "set `embeddings: true` for it in the model list",
    Task.RANK: "name a reranking model",
}


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
                web.post("/v1/chat/completions/input_tokens", self._counted(self._count)),
                web.post("/v1/embeddings", self._counted(self._embed)),
                web.post("/v1/rerank", self._counted(self._rerank)),
                web.post("/infill", self._counted(self._infill)),
                web.post("/apply-template", self._counted(self._apply_template)),
                web.post("/tokenize", self._counted(partial(self._about_tokens, tokens.tokenize))),
                web.post("/detokenize", self._counted(partial(self._about_tokens, tokens.detokenize))),
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
        self._require(Task.GENERATE)
        served = self.served
        template = self._template()
        body = decode_chat(await request.read())
        make = partial(prompts.chat_requests, body, served.tokenizer, template, served.limits)
        generates = await self._prepare(partial(make, self._new_id(call), self.now()))
        return await self._generate(request, call, body, generates, Dialect.CHAT)

    async def _complete(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require(Task.GENERATE)
        served = self.served
        body = decode_completion(await request.read())
        make = partial(prompts.completion_requests, body, served.tokenizer, served.limits)
        generates = await self._prepare(partial(make, self._new_id(call)))
        return await self._generate(request, call, body, generates, Dialect.COMPLETION)

    async def _infill(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require(Task.GENERATE)
        served = self.served
        infill.require_fim(served.special_tokens, served.model_id)
        body = infill.decode_infill(await request.read(), served.limits)
        make = partial(infill.infill_request, body, served.tokenizer, served.special_tokens, served.limits)
        call.submit([await self._prepare(partial(make, self._new_id(call)))])
        filling = infill.Filling(served.model_id)
        if body.stream:
            return await _stream(request, call, filling)
        while not filling.finished:
            filling.collect(await call.take())
        return _json(filling.answer())

    async def _embed(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require(Task.EMBED)
        served = self.served
        body = vectors.decode_embedding(await request.read(), served.limits)
        inputs = await self._prepare(partial(vectors.embedding_inputs, body, served.tokenizer, served.limits))
        embedded = await self._pooled(call, inputs)
        answer = partial(vectors.embedding_answer, served.model_id, embedded.vectors, embedded.prompt_tokens, body)
        return _json(await self._prepare(answer))

    async def _rerank(self, request: web.Request, call: Call) -> web.StreamResponse:
        self._require(Task.RANK)
        served = self.served
        body = vectors.decode_rerank(await request.read())
        make = partial(vectors.rerank_inputs, body, served.tokenizer, served.special_tokens, served.rerank_template)
        embedded = await self._pooled(call, await self._prepare(partial(make, served.limits)))
        return _json(vectors.rerank_answer(served.model_id, embedded.vectors, embedded.prompt_tokens, body))

    async def _pooled(self, call: Call, inputs: tuple[Tokens, ...]) -> Embedded:
        """What the engine makes of the inputs."""
        call.submit([Embed(self._new_id(call)(), inputs)])
        embedded: Embedded | None = None
        while True:
            for output in await call.take():
                if isinstance(output, Embedded):
                    embedded = output
                elif isinstance(output, Ended):
                    if output.error is not None or embedded is None:
                        raise engine_failed(output.error or "the engine dropped the request")
                    return embedded

    async def _apply_template(self, request: web.Request, _call: Call) -> web.StreamResponse:
        template = self._template()
        body = decode_chat(await request.read())
        text = await self._prepare(partial(prompts.render_chat, body, template, self.now()))
        return _json(msgspec.json.encode(tokens.Prompt(text)))

    async def _count(self, request: web.Request, _call: Call) -> web.StreamResponse:
        template = self._template()
        body = decode_chat(await request.read())
        make = partial(prompts.chat_tokens, body, self.served.tokenizer, template, self.now())
        return _json(msgspec.json.encode(tokens.InputTokens(len(await self._prepare(make)))))

    async def _about_tokens(
        self, answer: Callable[[bytes, tokens.Vocabulary, Limits], bytes], request: web.Request, _call: Call
    ) -> web.StreamResponse:
        served = self.served
        data = await request.read()
        return _json(await self._prepare(partial(answer, data, served.tokenizer, served.limits)))

    def _require(self, task: Task) -> None:
        served = self.served
        if served.task is not task:
            raise RequestError(
                f"{served.model_id} {ENDPOINTS[served.task]}, or {REMEDIES[task]}", code="unsupported_endpoint"
            )

    def _template(self) -> ChatTemplate:
        template = self.served.template
        if isinstance(template, ChatTemplateError):
            raise RequestError(str(template), status=500, kind="server_error", code="chat_template_error")
        return template

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


class Events(Protocol):
    """What turns outputs into server-sent events."""

    @property
    def finished(self) -> bool: ...

    def feed(self, outputs: Sequence[Output], /) -> bytes: ...


async def _stream(request: web.Request, call: Call, stream: Events) -> web.StreamResponse:
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
