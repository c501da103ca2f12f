"""The engine: one thread that owns the context and calls llama_decode, and the door other threads knock at.

Owns the inbox, the thread, and the promise that every accepted request gets exactly one `Ended`. Must never hold
its lock while llama.cpp works or `emit` runs.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from backends.llama_cpp.engine.embed import Embedder
from backends.llama_cpp.engine.generate import Generator
from backends.llama_cpp.engine.model import Model
from backends.llama_cpp.engine.types import Embed, Emit, Ended, Generate, Output
from backends.llama_cpp.settings import LlamaCppSettings

MAX_REQUESTS = 1024
"""Accepted and not ended, in all. The daemon sends far fewer; more is refused rather than queued."""

_SHUTTING_DOWN = "the worker is shutting down"


class EngineClosedError(Exception):
    """The engine takes no request: it is stopping, or it failed."""


class EngineFullError(Exception):
    """`MAX_REQUESTS` are being served already."""


class Engine:
    """Serves requests on one model from one thread. `emit` and `on_failure` are called from that thread."""

    def __init__(
        self,
        model: Model,
        settings: LlamaCppSettings,
        emit: Emit,
        *,
        on_failure: Callable[[BaseException], None] | None = None,
        fresh_seed: Callable[[], int] = lambda: secrets.randbits(31),
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`on_failure` hears of an error that ended the thread; `failure` then has it, and the model is lost."""
        self.failure: BaseException | None = None
        self._emit = emit
        self._on_failure = on_failure
        self._work: Generator | Embedder
        if model.embeddings:
            self._work = Embedder(model)
        else:
            self._work = Generator(
                model,
                n_parallel=settings.n_parallel,
                prefill_stall_s=settings.prefill_stall,
                cache_ram_bytes=settings.cache_ram_bytes(model.kv_bytes),
                fresh_seed=fresh_seed,
                now_s=now_s,
            )
        self._thread = threading.Thread(target=self._run, name="engine")
        self._wake = threading.Condition()
        self._inbox: list[Generate | Embed] = []
        self._cancelled: set[str] = set()
        self._live: set[str] = set()
        self._closed = False

    @property
    def batches(self) -> int:
        """Micro-batches finished since the start."""
        return self._work.batches

    @property
    def active(self) -> int:
        """Requests accepted and not ended."""
        return len(self._live)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every request with an error and join the thread, which finishes the batch it is in. Idempotent."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, request: Generate | Embed) -> None:
        """Accept a request. Raises `EngineClosedError`, `EngineFullError`, `ValueError` for an id in use."""
        with self._wake:
            if self._closed:
                raise EngineClosedError(_SHUTTING_DOWN)
            if len(self._live) >= MAX_REQUESTS:
                raise EngineFullError(f"the worker serves {MAX_REQUESTS} requests already")
            if request.request_id in self._live:
                raise ValueError(f"request id {request.request_id!r} is in use")
            self._live.add(request.request_id)
            self._inbox.append(request)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Free a request's sequences before the next batch; its `Ended` still follows. Unknown ids are ignored."""
        with self._wake:
            if request_id in self._live:
                self._cancelled.add(request_id)
                self._wake.notify()

    def _run(self) -> None:
        try:
            while self._receive():
                outputs: list[Output] = []
                self._take_in(outputs)
                if self._work.busy:
                    self._work.step(outputs)
                self._deliver(outputs)
            outputs = []
            self._take_in(outputs)
            self._work.end_all(_SHUTTING_DOWN, outputs)
            self._deliver(outputs)
        except BaseException as error:  # a thread has nobody to raise to: the owner is told
            self._fail(error)

    def _receive(self) -> bool:
        """Wait until there is something to do. False when it is to stop."""
        with self._wake:
            while not (self._closed or self._inbox or self._cancelled or self._work.busy):
                self._wake.wait()
            return not self._closed

    def _take_in(self, outputs: list[Output]) -> None:
        with self._wake:
            requests, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, set()
        work = self._work
        for request in requests:
            match request:
                case Generate() if isinstance(work, Generator):
                    work.add(request, outputs)
                case Embed() if isinstance(work, Embedder):
                    work.add(request, outputs)
                case _:
                    kind = "embeddings" if isinstance(work, Embedder) else "text"
                    outputs.append(Ended(request.request_id, 0, 0, 0, f"this worker serves {kind} only"))
        for request_id in cancelled:
            work.cancel(request_id, outputs)

    def _deliver(self, outputs: list[Output]) -> None:
        if not outputs:
            return
        ended = {output.request_id for output in outputs if isinstance(output, Ended)}
        if ended:
            with self._wake:
                self._live -= ended
        self._emit(outputs)

    def _fail(self, error: BaseException) -> None:
        """The context is not to be trusted any more: end every request without touching it, and say so."""
        with self._wake:
            self._closed = True
            live, self._live = self._live, set()
        self.failure = error
        try:
            self._emit([Ended(request_id, 0, 0, 0, f"the engine failed: {error}") for request_id in sorted(live)])
        except Exception as unheard:
            error.add_note(f"and the requests could not be told: {unheard!r}")
        finally:
            if self._on_failure is not None:
                self._on_failure(error)
