"""Between the engine's thread and the HTTP handlers: who asked for what, and where each output goes.

Owns the open calls, one per HTTP request. Every method but `Switchboard.emit` and `new_id` belongs to the event loop's
thread. Reports each call's usage exactly once, before the handler can see the end of its last output.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from backends.control import Usage
from backends.llama_cpp.engine.types import Embed, Ended, Generate, Output, Piece
from backends.llama_cpp.responses import Tally

MERGE_ABOVE = 512
"""Outputs an unread call may pile up before its pieces are joined."""


Sink = Callable[[list[Output]], bool]
"""Takes outputs as they come; False if it takes no more for now, with these taken all the same."""


class Engine(Protocol):
    """What the HTTP side needs of the engine. Both return at once; `submit` may raise a `RequestError`."""

    def submit(self, request: Generate | Embed, /) -> None: ...

    def cancel(self, request_id: str, /) -> None: ...


class Call:
    """One HTTP request and the engine requests behind it.

    What waits to be read is bounded by the text of the answer, which the context bounds: a client that reads
    slowly costs the text it has not read, and not an object per token.
    """

    def __init__(self, switchboard: Switchboard, request_id: str) -> None:
        self._switchboard = switchboard
        self.request_id = request_id
        self.running: set[str] = set()
        self.tally = Tally()
        self.reported = False
        self._unread: list[Output] = []
        self._merge_above = MERGE_ABOVE
        self._arrived = asyncio.Event()
        self._abandoned = False
        self._sink: Sink | None = None

    def submit(self, requests: Sequence[Generate | Embed]) -> None:
        """Hand everything this call asks for to the engine, once. Ids come from `Switchboard.new_id`."""
        assert requests
        assert not self.running
        self._switchboard.enter(self, requests)

    async def take(self) -> list[Output]:
        """Everything that came since the last time, at least one output."""
        await self._arrived.wait()
        self._arrived.clear()
        taken, self._unread = self._unread, []
        self._merge_above = MERGE_ABOVE
        return taken

    async def pass_on(self, sink: Sink) -> None:
        """Hand what comes to `sink` right as it does, until that returns False.

        A token that wakes no task costs half the CPU time. `sink` must not raise.
        """
        self._sink = sink
        self._arrived.clear()
        self.tell()
        try:
            await self._arrived.wait()
        finally:
            self._sink = None

    def put(self, output: Output) -> None:
        """Keep an output for the reader, if there still is one. `tell` says when a batch of them is complete."""
        if self._abandoned:
            return
        self._unread.append(output)
        if len(self._unread) > self._merge_above:
            self._unread = merged(self._unread)
            self._merge_above = len(self._unread) + MERGE_ABOVE

    def tell(self) -> None:
        """Let the reader know of what was put."""
        if not self._unread:
            return
        if self._sink is not None:
            taken, self._unread = self._unread, []
            if self._sink(taken):
                return
            self._sink = None
        self._arrived.set()

    def abandon(self) -> None:
        """Nobody will read this call any more."""
        self._abandoned = True
        self._unread.clear()

    def usage(self) -> Usage:
        """The control message about this call."""
        tally = self.tally
        return Usage(self.request_id, tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens)


def merged(outputs: Sequence[Output]) -> list[Output]:
    """The same outputs with all pieces of a choice joined into its first one; a finish is carried along."""
    groups: dict[object, list[Output]] = {}
    for position, output in enumerate(outputs):
        key = (output.request_id, output.index) if isinstance(output, Piece) else position
        groups.setdefault(key, []).append(output)
    return [_joined(group) for group in groups.values()]


def _joined(group: list[Output]) -> Output:
    pieces = [output for output in group if isinstance(output, Piece)]
    if len(pieces) < 2:
        return group[0]
    last = pieces[-1]
    text, tokens = "".join(piece.text for piece in pieces), sum(piece.tokens for piece in pieces)
    logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
    return Piece(last.request_id, last.index, text, tokens, last.finish, logprobs)


class Switchboard:
    """Routes outputs to calls and commands to the engine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[Usage], None]) -> None:
        self._loop = loop
        self._report = report
        self._engine: Engine | None = None
        self._calls: dict[str, Call] = {}
        self._serials = itertools.count(1)
        self._preparing = 0
        self.busy = asyncio.Event()
        """Set while there is something to do for anyone that may take long."""

    def connect(self, engine: Engine) -> None:
        """The engine is made with `emit`, so it arrives second."""
        self._engine = engine

    def emit(self, outputs: list[Output]) -> None:
        """The engine's `Emit`: from its thread, one wake-up of the loop for a whole batch."""
        self._loop.call_soon_threadsafe(self._dispatch, outputs)

    @contextmanager
    def call(self, request_id: str) -> Iterator[Call]:
        """A call for one HTTP request. Leaving it cancels in the engine what still runs."""
        call = Call(self, request_id)
        try:
            yield call
        finally:
            call.abandon()
            for engine_id in call.running:
                self.engine.cancel(engine_id)
            if not call.running:
                self._finish(call)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Something long is done for a request before the engine has it."""
        self._preparing += 1
        self.busy.set()
        try:
            yield
        finally:
            self._preparing -= 1
            self._rest()

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def new_id(self, request_id: str) -> str:
        """An engine id no other request has: clients may repeat theirs. For any thread."""
        return f"{request_id}#{next(self._serials)}"

    def enter(self, call: Call, requests: Sequence[Generate | Embed]) -> None:
        """Submit what a call asks for. Outputs reach `_dispatch` through the loop, so not before this returns."""
        for request in requests:
            self.engine.submit(request)
            call.running.add(request.request_id)
            self._calls[request.request_id] = call
            self.busy.set()

    def _dispatch(self, outputs: list[Output]) -> None:
        told: dict[Call, None] = {}
        for output in outputs:
            call = self._calls[output.request_id]
            if isinstance(output, Ended):
                self._ended(call, output)
            call.put(output)
            told[call] = None
        for call in told:
            call.tell()

    def _ended(self, call: Call, ended: Ended) -> None:
        del self._calls[ended.request_id]
        call.running.remove(ended.request_id)
        call.tally.add(ended)
        if not call.running:
            self._finish(call)
        self._rest()

    def _rest(self) -> None:
        if not self._calls and not self._preparing:
            self.busy.clear()

    def _finish(self, call: Call) -> None:
        if not call.reported:
            call.reported = True
            self._report(call.usage())
