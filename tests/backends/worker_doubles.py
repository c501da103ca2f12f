"""A scripted engine and a tokenizer of characters behind the worker's real HTTP side on a real Unix socket."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from llguidance import LLTokenizer, TokenizerWrapper

from backends.control import Usage
from backends.llama_cpp.calls import Switchboard
from backends.llama_cpp.chat.conversation import Chat
from backends.llama_cpp.chat.template import CHATML, ChatTemplateError
from backends.llama_cpp.engine.grammars import Grammars
from backends.llama_cpp.engine.types import (
    Embed,
    Ended,
    Finish,
    Generate,
    Output,
    Piece,
    Prefilled,
    SpecialTokens,
    Task,
)
from backends.llama_cpp.media.chats import MediaReader
from backends.llama_cpp.requests import Limits
from backends.llama_cpp.server import application
from backends.llama_cpp.service import Served, Service

LIMITS = Limits(n_parallel=4, n_vocab=256, n_ctx=200, n_embd=3, n_batch=64, n_input=40)
NO_SPECIAL_TOKENS = SpecialTokens()
NOW = datetime(2025, 1, 2, 3, 4, 5)  # noqa: DTZ001


class CharTokenizer:
    """One token per character, its code point; a leading 1 as the beginning of the sequence."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = [ord(character) % 256 for character in text]
        return [1, *tokens] if add_special and tokens else tokens

    def token_bytes(self, token: int, /) -> bytes:
        return bytes([token])


def char_grammars() -> Grammars:
    """Compiles for those tokens; number 2 ends an answer."""

    class Characters:
        eos_token_id, bos_token_id = 2, 1
        tokens = [b"\xff<s>" if token in (1, 2) else bytes([token]) for token in range(256)]  # noqa: RUF012
        special_token_ids = (1, 2)

        def __call__(self, text: str | bytes) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    return Grammars(lambda: LLTokenizer(TokenizerWrapper(Characters()), n_vocab=256, eos_token=[2]))


class ScriptedEngine:
    """Keeps what it is asked and says what a test tells it to."""

    def __init__(self, emit: Callable[[list[Output]], None]) -> None:
        self.emit = emit
        self.submitted: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.script: Callable[[Any], list[list[Output]]] | None = None
        self.refusal: Exception | None = None

    def submit(self, request: Generate | Embed, /) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.put_nowait(request)
        for outputs in self.script(request) if self.script else ():
            self.emit(outputs)

    def cancel(self, request_id: str, /) -> None:
        self.cancelled.put_nowait(request_id)


def hello(request: Generate) -> list[list[Output]]:
    """Two tokens for each choice, then the end."""
    rid, count = request.request_id, len(request.prompt)
    return [
        [Prefilled(rid, count, 1), *(Piece(rid, k, "hé", 1) for k in range(request.n))],
        [
            *(Piece(rid, k, "llo", 1, Finish.STOP) for k in range(request.n)),
            Ended(rid, count, 1, 2 * request.n),
        ],
    ]


class Worker:
    """What a test holds: the engine to script, a client session, the usages reported so far, and who routes."""

    def __init__(
        self, engine: ScriptedEngine, session: aiohttp.ClientSession, usages: list[Usage], switchboard: Switchboard
    ) -> None:
        self.engine = engine
        self.session = session
        self.usages = usages
        self.switchboard = switchboard

    def post(self, path: str, body: object, **headers: str) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.session.post(f"http://worker{path}", data=data, headers={"X-Request-Id": "r1", **headers})

    async def error(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        async with self.post(path, body) as response:
            return response.status, (await response.json())["error"]


@asynccontextmanager
async def serving(
    socket_path: Path,
    *,
    template: str = CHATML,
    task: Task = Task.GENERATE,
    limits: Limits = LIMITS,
    special_tokens: SpecialTokens = NO_SPECIAL_TOKENS,
    rerank_template: str | None = None,
    media: MediaReader | None = None,
) -> AsyncIterator[Worker]:
    usages: list[Usage] = []
    compiled: Chat | ChatTemplateError
    try:
        compiled = Chat.of(template, bos_token="<s>", eos_token="</s>")
    except ChatTemplateError as error:
        compiled = error
    switchboard = Switchboard(asyncio.get_running_loop(), usages.append)
    engine = ScriptedEngine(switchboard.emit)
    switchboard.connect(engine)
    served = Served(
        "m", limits, CharTokenizer(), char_grammars(), compiled, task, special_tokens, rerank_template, media
    )
    call_ids = itertools.count(1)
    service = Service(served, switchboard, lambda: NOW, lambda: f"call{next(call_ids):05}")
    runner = web.AppRunner(application(service), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket_path)).start()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket_path))) as session:
            yield Worker(engine, session, usages, switchboard)
    finally:
        await runner.cleanup()
        service.close()


def events(text: str) -> list[Any]:
    """The data of each event of a stream, parsed; `[DONE]` stays a string."""
    assert text.endswith("\n\n")
    found = [block.removeprefix("data: ") for block in text.removesuffix("\n\n").split("\n\n")]
    return [block if block == "[DONE]" else json.loads(block) for block in found]
