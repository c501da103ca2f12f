"""Processes without a model that wait for the next load, one of a kind at most.

Owns them until a worker takes one over. A spare that ends by itself is an event; when the next one is started, and
whether a load takes it, is the core's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog

from backends.base import Backend
from swapd.core.events import Event, SpareExited
from swapd.pool.process import Started, start

log = structlog.get_logger()

LAST_WORDS_S = 1.0
LAST_WORDS_BYTES = 64 * 1024
MAX_TAIL_CHARS = 500


class SpareProcess:
    """One spare. `run` is its life until it is released, stopped, or ends."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._version = ""
        self._started: Started | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """Kill it, unless it has been released."""
        if not self._over.done():
            self._over.set_result(None)

    def release(self) -> Started | None:
        """Hand the process over to the caller, who ends it from here on. None if there is none, or no more."""
        started = self._started
        if self._over.done() or started is None or started.process.returncode is not None:
            self.stop()
            return None
        self._started = None
        self.stop()
        return started

    async def is_stale(self) -> bool:
        """Whether the engine was installed anew since it was started."""
        return await asyncio.to_thread(self._backend.engine_version) != self._version

    async def run(self) -> str | None:
        """Returns a sentence if it ended by itself."""
        try:
            self._version = await asyncio.to_thread(self._backend.engine_version)
            started = await start(self._backend.spare, takes_order=True)
        except OSError as error:
            return f"a spare process of {self._backend.name} could not be started: {error}"
        self._started = started
        exited = asyncio.create_task(started.process.wait(), name=f"exit of spare {started.process.pid}")
        try:
            either: set[asyncio.Future[Any]] = {exited, self._over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():
                return None
            said = await _last_words(started)
            return f"the spare process of {self._backend.name} ended with status {exited.result()}{said}"
        finally:
            exited.cancel()
            if self._started is not None:
                self._started = None
                await started.end()


async def _last_words(started: Started) -> str:
    """What it has printed. Nobody reads that while it waits: it has no reason to say anything."""
    output = b""
    assert started.process.stdout is not None
    with suppress(TimeoutError):
        output = await asyncio.wait_for(started.process.stdout.read(LAST_WORDS_BYTES), LAST_WORDS_S)
    lines = output.decode("utf-8", "replace").splitlines()
    tail = " | ".join(line for line in lines if line.strip())[-MAX_TAIL_CHARS:]
    return f"; its last output: {tail}" if tail else ""


class Spares:
    """The spares there are, by the name of their backend."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        post: Callable[[Event], None],
        own: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._backends = backends
        self._post = post
        self._own = own
        self._by_kind: dict[str, SpareProcess] = {}

    def start(self, kind: str, number: int) -> None:
        self.stop(kind)
        spare = self._by_kind[kind] = SpareProcess(self._backends[kind])
        self._own(self._live(spare, kind, number), f"spare {number} of {kind}")

    def stop(self, kind: str) -> None:
        spare = self._by_kind.pop(kind, None)
        if spare is not None:
            spare.stop()

    def take(self, kind: str) -> SpareProcess | None:
        """The spare of this kind, to be released or stopped by the caller."""
        return self._by_kind.pop(kind, None)

    async def _live(self, spare: SpareProcess, kind: str, number: int) -> None:
        ended = await spare.run()
        if ended is not None:
            self._post(SpareExited(kind, number, ended))
