"""The steps of each endpoint beside chats and completions: check, prepare in a thread, ask the engine, answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import msgspec
from aiohttp import web

from backends.llama_cpp import infill, native, prompts, tokens, vectors
from backends.llama_cpp.calls import Call
from backends.llama_cpp.chat.body import decode_chat
from backends.llama_cpp.engine.types import Embed, Embedded, Ended, Generate, Task
from backends.llama_cpp.errors import engine_failed
from backends.llama_cpp.media.chats import unread_chat
from backends.llama_cpp.media.parts import has_media
from backends.llama_cpp.requests import Limits, Tokens
from backends.llama_cpp.service import Service, send_json, send_stream


async def fill_in(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    """POST /infill."""
    service.require(Task.GENERATE)
    served = service.served
    infill.require_fim(served.special_tokens, served.model_id)
    body = infill.decode_infill(await request.read(), served.limits)
    make = partial(infill.infill_request, body, served.tokenizer, served.grammars, served.special_tokens, served.limits)
    return await _answer_natively(service, request, call, body, partial(make, service.new_id(call)))


async def go_on(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    """POST /completion."""
    service.require(Task.GENERATE)
    served = service.served
    body = native.decode_text(await request.read(), served.limits)
    make = partial(native.text_request, body, served.tokenizer, served.grammars, served.limits)
    return await _answer_natively(service, request, call, body, partial(make, service.new_id(call)))


async def _answer_natively(
    service: Service, request: web.Request, call: Call, body: native.NativeBody, make: Callable[[], Generate]
) -> web.StreamResponse:
    call.submit([await service.prepare(make)])
    answer = native.NativeAnswer(service.served.model_id, body, time.monotonic)
    if body.stream:
        return await send_stream(request, call, answer)
    while not answer.finished:
        answer.collect(await call.take())
    return send_json(answer.answer())


async def embed(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    """POST /v1/embeddings."""
    service.require(Task.EMBED)
    served = service.served
    body = vectors.decode_embedding(await request.read(), served.limits)
    inputs = await service.prepare(partial(vectors.embedding_inputs, body, served.tokenizer, served.limits))
    embedded = await _pooled(service, call, inputs)
    answer = partial(vectors.embedding_answer, served.model_id, embedded.vectors, embedded.prompt_tokens, body)
    return send_json(await service.prepare(answer))


async def rerank(service: Service, request: web.Request, call: Call) -> web.StreamResponse:
    """POST /v1/rerank."""
    service.require(Task.RANK)
    served = service.served
    body = vectors.decode_rerank(await request.read())
    make = partial(vectors.rerank_inputs, body, served.tokenizer, served.special_tokens, served.rerank_template)
    embedded = await _pooled(service, call, await service.prepare(partial(make, served.limits)))
    return send_json(vectors.rerank_answer(served.model_id, embedded.vectors, embedded.prompt_tokens, body))


async def _pooled(service: Service, call: Call, inputs: tuple[Tokens, ...]) -> Embedded:
    """What the engine makes of the inputs."""
    call.submit([Embed(service.new_id(call)(), inputs)])
    embedded: Embedded | None = None
    while True:
        for output in await call.take():
            if isinstance(output, Embedded):
                embedded = output
            elif isinstance(output, Ended):
                if output.error is not None or embedded is None:
                    raise engine_failed(output.error or "the engine dropped the request")
                return embedded


async def apply_template(service: Service, request: web.Request, _call: Call) -> web.StreamResponse:
    """POST /apply-template: a conversation as the text the model would read."""
    chat = service.chat()
    body = decode_chat(await request.read())
    text = await service.prepare(partial(prompts.render_chat, body, chat, service.served.able, service.now()))
    return send_json(msgspec.json.encode(tokens.Prompt(text)))


async def count_tokens(service: Service, request: web.Request, _call: Call) -> web.StreamResponse:
    """POST /v1/chat/completions/input_tokens: how long that text is in tokens."""
    chat = service.chat()
    body = decode_chat(await request.read())
    served = service.served
    count: Callable[[], int]
    if has_media(body.messages):
        make = partial(unread_chat, body, chat, served.able, service.now(), service.new_call_id())
        unread = await service.prepare(make)
        assert served.media is not None, "media passed for a model that takes none"
        count = partial(served.media.count, unread.parts, add_special=unread.add_special)
    else:
        count = partial(prompts.count_chat_tokens, body, served.tokenizer, chat, service.now())
    return send_json(msgspec.json.encode(tokens.InputTokens(await service.prepare(count))))


async def about_tokens(
    answer: Callable[[bytes, tokens.Vocabulary, Limits], bytes], service: Service, request: web.Request, _call: Call
) -> web.StreamResponse:
    """POST /tokenize and /detokenize."""
    served = service.served
    data = await request.read()
    return send_json(await service.prepare(partial(answer, data, served.tokenizer, served.limits)))
