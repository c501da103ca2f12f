"""What every endpoint of the worker shares: the model it is for, the way to the engine and to the threads.

Owns the pool of threads and the writing of answers and streams. Must never block the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

from aiohttp import web

from backends.llama_cpp.calls import Call, Switchboard
from backends.llama_cpp.chat.answers import NewCallId
from backends.llama_cpp.chat.conversation import Chat
from backends.llama_cpp.chat.template import ChatTemplateError
from backends.llama_cpp.engine.types import Ended, Output, SpecialTokens, Task
from backends.llama_cpp.errors import RequestError, engine_failed
from backends.llama_cpp.media.chats import MediaReader
from backends.llama_cpp.media.parts import Abilities
from backends.llama_cpp.prompts import Grammars
from backends.llama_cpp.requests import Limits
from backends.llama_cpp.tokens import Vocabulary

PREPARING_THREADS = 2
EASY_BYTES = 16 * 1024
"""With no more than this unsent, a transport takes a write at once: asyncio's low-water mark."""
_EVENT_STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Served:
    """The loaded model, as far as requests are concerned."""

    model_id: str
    limits: Limits
    tokenizer: Vocabulary
    grammars: Grammars
    chat: Chat | ChatTemplateError
    """What answers chats, or why none can be answered."""
    task: Task
    special_tokens: SpecialTokens
    rerank_template: str | None
    """The file's text around `{query}` and `{document}`."""
    media: MediaReader | None = None
    """What reads images and sounds, if the model has a projector."""

    @property
    def able(self) -> Abilities:
        """What the model takes beside text."""
        return self.media.able if self.media is not None else Abilities()


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
class Service:
    """The loaded model at work. `now` tells the local time, `new_call_id` names the tool calls of answers."""

    served: Served
    switchboard: Switchboard
    now: Callable[[], datetime]
    new_call_id: NewCallId
    _threads: ThreadPoolExecutor = field(init=False)
    _encoding: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="prepare")

    def require(self, task: Task) -> None:
        """Raise a `RequestError` that says where to go, unless the model is of this kind."""
        served = self.served
        if served.task is not task:
            raise RequestError(
                f"{served.model_id} {ENDPOINTS[served.task]}, or {REMEDIES[task]}", code="unsupported_endpoint"
            )

    def chat(self) -> Chat:
        """What renders chats. Raises `RequestError` when nothing can."""
        chat = self.served.chat
        if isinstance(chat, ChatTemplateError):
            raise RequestError(str(chat), status=500, kind="server_error", code="chat_template_error")
        return chat

    def new_id(self, call: Call) -> Callable[[], str]:
        """Makes ids for what the call asks of the engine."""
        return partial(self.switchboard.new_id, call.request_id)

    async def prepare(self, make: Callable[[], Made]) -> Made:
        """Run what blocks in a thread. A template that refuses its messages is the client's error."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, make)
        except ChatTemplateError as error:
            raise RequestError(str(error), param="messages", code="chat_template_error") from error

    @property
    def encoded_parts(self) -> int:
        """Parts of encodings finished since the start."""
        return self.served.media.steps if self.served.media is not None else 0

    async def encode(self, make: Callable[[Callable[[], bool]], Made]) -> Made:
        """Run what encodes media, one at a time, in a thread that ends with it: see docs/design.md, "One OpenMP team".

        `make` gets a function that says whether the request is gone; it may take a while until it asks.
        """
        with self.switchboard.preparing():
            await self._encoding.acquire()
            gone = threading.Event()
            thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
            try:
                made = asyncio.get_running_loop().run_in_executor(thread, make, gone.is_set)
                made.add_done_callback(self._next_encoding)
                # A request that goes does not end the thread, and the next one waits for that.
                return await asyncio.shield(made)
            finally:
                gone.set()
                thread.shutdown(wait=False)

    def _next_encoding(self, made: asyncio.Future[Made]) -> None:
        self._encoding.release()
        # Looked at, so that asyncio does not complain where nobody waits for it any more.
        made.exception()

    def close(self) -> None:
        """Let the threads go; what they still do is of no use to anyone."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Events(Protocol):
    """What turns outputs into server-sent events."""

    @property
    def finished(self) -> bool: ...

    def feed(self, outputs: Sequence[Output], /) -> bytes: ...


async def send_stream(request: web.Request, call: Call, stream: Events) -> web.StreamResponse:
    """Answer with what `stream` makes of the outputs, until it has finished or the client is gone."""
    outputs = await call.take()
    failure = next((output.error for output in outputs if isinstance(output, Ended) and output.error), None)
    if failure is not None:
        # Nothing has been sent, so it can still be a status.
        raise engine_failed(failure)
    response = web.StreamResponse(headers=_EVENT_STREAM)
    try:
        await response.prepare(request)
        passage = _Passage(request, stream)
        passage.events = stream.feed(outputs)
        while True:
            if passage.failure is not None:
                raise passage.failure
            if passage.events:
                await response.write(passage.events)
                passage.open = response.headers.get("Transfer-Encoding") == "chunked"
            if stream.finished:
                await response.write_eof()
                return response
            passage.events = b""
            await call.pass_on(passage.take)
    except ConnectionError:
        # The client is gone; leaving the call cancels the request in the engine.
        return response


class _Passage:
    """Writes a stream's events in the call that brings their outputs, where nothing has to wait."""

    def __init__(self, request: web.Request, stream: Events) -> None:
        self.open = False
        """The headers are out and say that the body comes in chunks."""
        self.events = b""
        """What could not be written at once."""
        self.failure: Exception | None = None
        self._request = request
        self._stream = stream

    def take(self, outputs: list[Output]) -> bool:
        try:
            events = self._stream.feed(outputs)
        except Exception as error:  # for the handler to raise: here it would end the worker
            self.failure = error
            return False
        if self._stream.finished or not self._write_now(events):
            self.events = events
            return False
        return True

    def _write_now(self, events: bytes) -> bool:
        """Whether the transport took them without anybody having to wait; as aiohttp would write a chunk."""
        transport = self._request.transport
        if not self.open or transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(events) > EASY_BYTES:
            return False
        if events:
            transport.write(b"%x\r\n%b\r\n" % (len(events), events))
        return True


def send_json(document: bytes, status: int = 200) -> web.Response:
    """A whole answer."""
    return web.Response(body=document, status=status, content_type="application/json")
