"""A worker's life once it is tied to the daemon: load, warm up, serve until SIGTERM.

Owns the order of these steps and what is reported when. The only module that joins the engine to the HTTP side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from backends.base import Offload
from backends.control import Failed, FailureKind, Progress, Ready, WarmingUp
from backends.llama_cpp import lifeline
from backends.llama_cpp.calls import Switchboard
from backends.llama_cpp.chat.conversation import MISTRAL_ID_CHARS, Chat
from backends.llama_cpp.chat.template import CHATML, ChatTemplateError
from backends.llama_cpp.engine.loop import Engine, EngineClosedError, EngineFullError
from backends.llama_cpp.engine.model import Model, ModelLoadError
from backends.llama_cpp.engine.mtmd import Projector
from backends.llama_cpp.engine.types import Embed, Generate
from backends.llama_cpp.errors import engine_unavailable
from backends.llama_cpp.media.reader import MediaReader
from backends.llama_cpp.reports import INTERVAL_S, LoadProgress, Reporter
from backends.llama_cpp.requests import Limits
from backends.llama_cpp.server import application
from backends.llama_cpp.service import Served, Service
from backends.llama_cpp.settings import LlamaCppSettings

STOP_GRACE_S = 30.0
"""How long running requests may go on after SIGTERM. The daemon has its own patience, and SIGKILL."""
MAX_MESSAGE_CHARS = 8000
THREAD_STACK_BYTES = 64 * 1024 * 1024
"""Of every thread that is started. The longest chain of references that a schema may have takes llguidance 32 MiB of
it; only what is used takes memory."""
BACKLOG = 1024

log = logging.getLogger(__name__)


def run(
    reporter: Reporter,
    *,
    socket_path: Path,
    model_id: str,
    settings: LlamaCppSettings,
    offload: Offload,
    portable: bool,
    proven: bool = False,
) -> Failed | None:
    """Load the model and serve it until SIGTERM. Returns why it could not be loaded, or None after serving."""
    threading.stack_size(THREAD_STACK_BYTES)
    on_progress = LoadProgress(reporter.send, time.monotonic)
    # The libraries are in; from here on it is the file that takes time.
    on_progress(0.0)
    try:
        model = Model.load(settings, offload, portable=portable, on_progress=on_progress)
        projector = Projector.load(model, settings, offload)
        reporter.send(WarmingUp())
        _warm_up(model, brief=proven)
    except ModelLoadError as error:
        kind = FailureKind.INVALID_MODEL if error.invalid else FailureKind.FAILED
        return Failed(kind, str(error)[:MAX_MESSAGE_CHARS])
    except Exception as error:
        log.exception("the model does not load")
        return Failed(FailureKind.FAILED, f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS])
    served = describe(model, model_id, settings, projector)
    asyncio.run(_serve(socket_path, model, served, settings, reporter))
    socket_path.unlink(missing_ok=True)
    return None


def rehearse() -> None:
    """Read a chat template: the first one takes twice as long. Touches no model and no device."""
    Chat.of(CHATML, bos_token="", eos_token="")


def _warm_up(model: Model, *, brief: bool) -> None:
    """Decode once in a thread that ends.

    OpenMP keeps a team of threads for each thread that ever computed. With a second team beside the engine's
    there are more of them than cores, and libgomp then puts threads to sleep at every barrier instead of
    spinning: a third of the speed at one stream.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="warm-up") as once:
        once.submit(model.warm_up, brief=brief).result()


def describe(model: Model, model_id: str, settings: LlamaCppSettings, projector: Projector | None = None) -> Served:
    """The loaded model as the HTTP side sees it."""
    limits = Limits(
        n_parallel=settings.n_parallel,
        n_vocab=model.n_vocab,
        n_ctx=model.n_ctx_request,
        n_embd=model.n_embd,
        n_batch=model.n_batch,
        n_input=model.longest_input,
    )
    return Served(
        model_id,
        limits,
        model,
        model.grammars,
        _chat(model, settings),
        model.facts.task,
        model.special_tokens,
        model.chat_template("rerank"),
        MediaReader(projector, model, limits, n_whole=min(model.n_batch, model.n_ubatch)) if projector else None,
    )


def _chat(model: Model, settings: LlamaCppSettings) -> Chat | ChatTemplateError:
    source = settings.chat_template or model.chat_template()
    if source is None:
        source = CHATML
        if not model.embeddings:
            log.warning("the file has no chat template; chats are written as ChatML")
    try:
        return Chat.of(source, bos_token=model.bos_token, eos_token=model.eos_token)
    except ChatTemplateError as error:
        log.warning("%s; chats will fail until chat_template is set in the model list", error)
        return error


class _Door:
    """The engine's door for requests, with its refusals in terms of HTTP."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.cancel = engine.cancel

    def submit(self, request: Generate | Embed, /) -> None:
        try:
            self._engine.submit(request)
        except (EngineClosedError, EngineFullError) as error:
            raise engine_unavailable(str(error)) from error


async def _serve(
    socket_path: Path, model: Model, served: Served, settings: LlamaCppSettings, reporter: Reporter
) -> None:
    """Serve until SIGTERM, then let running requests finish, within bounds.

    The engine thread is not joined: it may be in a batch of many seconds, and the process exit ends it at once.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    reporter.attach(loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    switchboard = Switchboard(loop, reporter.send)
    engine = Engine(model, settings, switchboard.emit, on_failure=_on_engine_failure)
    switchboard.connect(_Door(engine))
    service = Service(served, switchboard, lambda: datetime.now().astimezone(), _new_call_id)
    runner = web.AppRunner(
        application(service), handler_cancellation=True, access_log=None, shutdown_timeout=STOP_GRACE_S
    )
    engine.start()
    await runner.setup()
    await web.SockSite(runner, listen(socket_path), backlog=BACKLOG).start()
    reporter.send(Ready(n_ctx=served.limits.n_ctx, slots=settings.n_parallel))
    async with asyncio.TaskGroup() as tasks:
        report = _report_progress(lambda: engine.batches + service.encoded_parts, switchboard, reporter)
        progress = tasks.create_task(report, name="progress")
        await stop.wait()
        await runner.cleanup()
        progress.cancel()
    service.close()


def listen(path: Path) -> socket.socket:
    """A bound socket that only this user may connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    return listener


async def _report_progress(done: Callable[[], int], switchboard: Switchboard, reporter: Reporter) -> None:
    """Tell how far the work has come while there is some; an idle worker sleeps."""
    reported = 0
    while True:
        await switchboard.busy.wait()
        if done() != reported:
            reported = done()
            reporter.send(Progress(reported))
        await asyncio.sleep(INTERVAL_S)


def _new_call_id() -> str:
    return secrets.token_hex(5)[:MISTRAL_ID_CHARS]


def _on_engine_failure(error: BaseException) -> None:
    log.critical("the engine failed; the worker cannot go on", exc_info=error)
    lifeline.leave(lifeline.EXIT_DEFECT)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback that raised has lost outputs or a usage: better no worker than one that is wrong."""
    loop.default_exception_handler(context)
    if "handle" in context:
        lifeline.leave(lifeline.EXIT_DEFECT)
