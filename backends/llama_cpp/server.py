"""The worker's HTTP side: OpenAI's endpoints over a Unix socket.

Owns the routes, the order of a request's steps and what a client that leaves sets in motion. Must never block
the event loop: rendering and tokenizing run in a small pool of threads, everything else is short.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import web

from backends.llama_cpp import endpoints, prompts, tokens
from backends.llama_cpp.calls import Call
from backends.llama_cpp.chat.answers import ChoiceReader
from backends.llama_cpp.chat.body import ChatBody, decode_chat
from backends.llama_cpp.chat.conversation import Chat
from backends.llama_cpp.engine.types import Generate, Task
from backends.llama_cpp.errors import RequestError, engine_failed
from backends.llama_cpp.media.chats import read_chat, unread_request
from backends.llama_cpp.media.parts import has_media
from backends.llama_cpp.requests import GenerateBody, choices, decode_completion
from backends.llama_cpp.responses import Dialect, Heading, NewReader, Stream, Whole
from backends.llama_cpp.service import Service, send_json, send_stream

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The daemon's own limit is what clients meet; this one only keeps a defect from filling the memory."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Run = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handler = Callable[[Service, web.Request, Call], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


def application(service: Service) -> web.Application:
    """The aiohttp application; run it with `handler_cancellation=True`."""
    made = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_envelopes])
    made.router.add_get("/health", _health)
    for path, handler in HANDLERS.items():
        made.router.add_post(path, _counted(service, handler))
    return made


def _counted(service: Service, handler: Handler) -> Run:
    """Give the request a call: its usage is reported and what it started is cancelled, however it ends."""

    async def run(request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("X-Request-Id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        with service.switchboard.call(request_id) as call:
            return await handler(service, request, call)

    return run


async def _health(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _chat(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    service.require(Task.GENERATE)
    served = service.served
    chat = service.chat()
    body = decode_chat(await request.read())
    if has_media(body.messages):
        asked = await _media_chat(service, body, chat, call)
    else:
        make = partial(prompts.chat_request, body, served.tokenizer, served.grammars, chat, served.limits)
        asked = await service.prepare(partial(make, service.new_id(call), service.now()))
    new_reader = partial(ChoiceReader, asked.reading, service.new_call_id)
    return await _generate(service, request, call, body, asked.generates, Dialect.CHAT, new_reader)


async def _media_chat(service: Service, body: ChatBody, chat: Chat, call: Call) -> prompts.ChatRequest:
    served = service.served
    check = partial(unread_request, body, chat, served.able, served.tokenizer, served.grammars, served.limits)
    make = partial(check, service.new_id(call), service.now(), service.new_call_id())
    unread, generate = await service.prepare(make)
    assert served.media is not None, "media passed for a model that takes none"
    return await service.encode(partial(read_chat, unread, generate, served.media))


async def _complete(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    service.require(Task.GENERATE)
    served = service.served
    body = decode_completion(await request.read())
    make = partial(prompts.completion_requests, body, served.tokenizer, served.grammars, served.limits)
    generates = await service.prepare(partial(make, service.new_id(call)))
    return await _generate(service, request, call, body, generates, Dialect.COMPLETION)


async def _generate(
    service: Service,
    request: web.Request,
    call: Call,
    body: GenerateBody,
    generates: list[Generate],
    dialect: Dialect,
    new_reader: NewReader | None = None,
) -> web.StreamResponse:
    n = choices(body, service.served.limits)
    heading = Heading(dialect, call.request_id, service.served.model_id, int(service.now().timestamp()))
    first_index = {generate.request_id: position * n for position, generate in enumerate(generates)}
    call.submit(generates)
    if body.stream:
        return await send_stream(request, call, Stream(heading, first_index, n, body.include_usage, new_reader))
    whole = Whole(heading, first_index, n, new_reader, logprobs=generates[0].logprobs is not None)
    while not whole.finished:
        whole.feed(await call.take())
    return send_json(whole.answer())


HANDLERS: Mapping[str, Handler] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _complete,
    "/v1/chat/completions/input_tokens": endpoints.count_tokens,
    "/v1/embeddings": endpoints.embed,
    "/v1/rerank": endpoints.rerank,
    "/completion": endpoints.go_on,
    "/infill": endpoints.fill_in,
    "/apply-template": endpoints.apply_template,
    "/tokenize": partial(endpoints.about_tokens, tokens.tokenize),
    "/detokenize": partial(endpoints.about_tokens, tokens.detokenize),
}


@web.middleware
async def _errors_as_envelopes(request: web.Request, handler: Run) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return send_json(error.envelope(), error.status)
    except web.HTTPException as error:
        kind = "not_found_error" if error.status == web.HTTPNotFound.status_code else "invalid_request_error"
        return send_json(RequestError(error.reason, kind=kind).envelope(), error.status)
    except ConnectionError:
        raise
    except Exception:
        log.exception("request to %s failed", request.path)
        return send_json(engine_failed("the worker failed on this request; its log says why").envelope(), 500)
