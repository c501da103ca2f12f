"""One request's exchange with a worker: what is sent, and its answer back to the client, with backpressure.

Owns the rule that a broken answer never looks whole. Must never parse an event's JSON, and never keep a connection to a
worker for a second request (a worker that misframes one answer must not spoil the next).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
from aiohttp import web

from swapd.api.openai import NATIVE_PATHS
from swapd.api.translation import EVENT_STREAM, Translation
from swapd.errors import (
    SwapdError,
    UpstreamTimeoutError,
    WorkerFailedError,
    WorkerLostError,
)
from swapd.http.flow import EventFlow
from swapd.http.foreign import ForeignAnswer
from swapd.http.record import Record
from swapd.http.sse import EventError
from swapd.http.stream import (
    COMMENT_EVERY_S,
    WRITE_DEADLINE_S,
    ClientStream,
    Comments,
    drop_client,
)
from swapd.http.upstream import Upstream, UpstreamError, UpstreamSilentError, post
from swapd.observe.metrics import Metrics
from swapd.pool.door import Door
from swapd.pool.lease import Lease, Ticket

BUFFERED_BYTES = 1024 * 1024
"""An answer up to this size is read whole before its status is sent; a larger one is streamed."""

TRANSLATED_BYTES = 64 * 1024 * 1024
"""A larger answer is not translated: it must be read whole for that."""

_ERROR_BODY_BYTES = 64 * 1024
_RESPONSE_HEADERS = ("content-type", "content-length", "retry-after")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that one exchange may spend where nobody else watches it."""

    connect_s: float = 5.0
    write_deadline_s: float = WRITE_DEADLINE_S
    """A client that takes nothing for this long is dropped."""
    comment_every_s: float = COMMENT_EVERY_S
    why_lost_s: float = 1.0
    """How long to wait for the pool to say why a worker is gone, and to read on from one that is."""
    close_s: float = 1.0
    """For a worker to close its side after the end of a stream."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as a worker gets it."""

    ticket: Ticket
    path: str
    body: bytes
    stream: bool
    loading_text: bool = False
    """Of a streamed chat: tell it how far its model is while it waits, as reasoning."""
    translate: Callable[[], Translation] | None = None
    """Makes what turns the answer into the client's dialect; None where that is OpenAI's."""
    within_s: float | None = None
    """For how long a place may be waited for before the request goes elsewhere; None: as long as the queue lets it."""
    elsewhere: Elsewhere | None = None
    """Of a request that others may serve, too: who they are."""


class Elsewhere(Protocol):
    """Where a request goes when what it was sent to cannot serve it."""

    @property
    def more(self) -> bool:
        """Whether there is somewhere else."""
        ...

    async def after(self, error: SwapdError) -> Outgoing:
        """The request for the next one. Raises what the client is told where there is none."""
        ...


class _CutShortError(Exception):
    """The worker's answer ended before it was whole."""


class WorkerGoneError(Exception):
    """The exchange broke on the worker's side; the message says why."""


class ToldError(Exception):
    """The worker refused a stream whose status was already sent; `envelope` is the error to show instead."""

    def __init__(self, status: int, envelope: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.envelope = envelope


class Exchange:
    """One request's way through workers and back; `run` may be called again while nothing was answered."""

    comments: Comments | None = None
    _foreign: ForeignAnswer | None = None

    def __init__(
        self, door: Door, metrics: Metrics, bounds: Bounds, request: web.Request, record: Record, outgoing: Outgoing
    ) -> None:
        self._door = door
        self._metrics = metrics
        self._bounds = bounds
        self._request = request
        self._timers = metrics.stream_timers(outgoing.ticket.model_id)
        self._events = False
        self.record = record
        self.outgoing = outgoing
        self._translation = self._new_translation()
        self.stream_type = EVENT_STREAM if self._translation is None else self._translation.stream_type
        self.client = ClientStream(request, write_deadline_s=bounds.write_deadline_s, stream_type=self.stream_type)

    @property
    def may_go_elsewhere(self) -> bool:
        """Whether another target can still take the request over."""
        elsewhere = self.outgoing.elsewhere
        return elsewhere is not None and elsewhere.more and not self.client.answered

    def turn_to(self, outgoing: Outgoing) -> None:
        """The same request for another model."""
        self.outgoing = outgoing
        self.record.model_id = outgoing.ticket.model_id
        self.record.granted = False
        self._timers = self._metrics.stream_timers(outgoing.ticket.model_id)

    async def run(self, lease: Lease) -> web.StreamResponse:
        """Raises `WorkerGoneError` for whatever breaks on the worker's side."""
        self._translation = self._new_translation()
        self._foreign = None if lease.reports_usage else self._new_foreign(lease)
        try:
            with ending_when_lost(lease, self._bounds.why_lost_s) as bound:
                async with bound, self._post(lease) as upstream:
                    return await self._relay(upstream)
        except UpstreamSilentError as exc:
            assert self._foreign is not None, "only servers elsewhere have a bound"
            self._foreign.broke()
            why = f"{exc} ({self._foreign.silence_key})"
            raise UpstreamTimeoutError(f"the server of model {lease.model_id!r} was given up: {why}") from None
        except (UpstreamError, OSError, _CutShortError) as exc:
            if self._foreign is not None:
                self._foreign.broke()
            raise WorkerGoneError(await self._why(lease, exc)) from exc
        finally:
            if self._foreign is not None:
                self._foreign.close()

    def _post(self, lease: Lease) -> AbstractAsyncContextManager[Upstream]:
        """One request on a connection of its own. Leaving closes it, which is what frees the worker's sequence."""
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "X-Request-Id": lease.request_id,
            **self.record.traces_for(lease.address),
        }
        outgoing, patience = self.outgoing, lease.patience
        body = outgoing.body if self._foreign is None else self._foreign.request
        if patience is None:
            return post(lease.address, outgoing.path, headers, body, connect_s=self._bounds.connect_s)
        bounds = {"connect_s": patience.connect_s, "silence_s": patience.first_token_s}
        return post(lease.address, outgoing.path, headers, body, **bounds)

    def _new_foreign(self, lease: Lease) -> ForeignAnswer:
        outgoing = self.outgoing
        return ForeignAnswer(self._door, lease, outgoing.path, outgoing.body, stream=outgoing.stream)

    def _new_translation(self) -> Translation | None:
        return None if self.outgoing.translate is None else self.outgoing.translate()

    async def _relay(self, upstream: Upstream) -> web.StreamResponse:
        if self._foreign is not None:
            self._foreign.head(upstream)
        if upstream.status >= web.HTTPInternalServerError.status_code and self.may_go_elsewhere:
            said = (await self._envelope_of(upstream))["error"].get("message")
            raise WorkerFailedError(
                f"the worker of {self.outgoing.ticket.model_id} answered {upstream.status}: {str(said)[:500]}"
            )
        if upstream.content_type == EVENT_STREAM:
            return await self._relay_events(upstream)
        # From here no comment may commit a status that the worker's answer does not have.
        await self._stop_comments()
        if self.client.committed:
            raise ToldError(upstream.status, await self._envelope_of(upstream))
        if self._translation is not None:
            return await self._translate_body(upstream, self._translation)
        return await self._relay_body(upstream)

    async def _relay_events(self, upstream: Upstream) -> web.StreamResponse:
        with EventFlow(self.client, self.record, self._timers, self._translation, self._foreign) as flow:
            try:
                while data := await upstream.read():
                    whole = flow.events_in(data)
                    if whole:
                        if not self._events:
                            await self._open_events(upstream.status)
                        await self.client.send(whole)
                    while self._events and not flow.done:
                        await upstream.pass_on(flow.take)
                        if flow.failure is not None:
                            raise flow.failure
                        if not flow.kept:
                            break
                        await self.client.send(flow.give_kept())
                    if flow.done:
                        break
            except EventError as exc:
                raise WorkerLostError(f"the worker of {self.outgoing.ticket.model_id} was dropped: {exc}") from None
        if not flow.done and not flow.told_error:
            ending = flow.stop() if self.outgoing.path in NATIVE_PATHS else b""
            if not ending:
                raise _CutShortError("its stream ended before [DONE]")
            await self.client.send(ending)
        if flow.told_error:
            self.record.broken = WorkerLostError.status
        response = await self.client.finish()
        self.record.whole = response.status
        await _read_to_end(upstream, self._bounds.close_s)
        return response

    async def _open_events(self, status: int) -> None:
        await self._stop_comments()
        if status != web.HTTPOk.status_code and not self.client.committed:
            await self.client.open(status, {"Content-Type": self.stream_type})
        # The answer begins here, and with it the request's other ways end: what they hold of it may be large.
        self.outgoing = replace(self.outgoing, elsewhere=None)
        self._events = True

    async def _stop_comments(self) -> None:
        if self.comments is not None:
            await self.comments.stop()

    async def _relay_body(self, upstream: Upstream) -> web.StreamResponse:
        if not upstream.has_length:
            raise _CutShortError("it answered without a length, so the end of the answer cannot be told")
        headers = {name: upstream.headers[name] for name in _RESPONSE_HEADERS if name in upstream.headers}
        start = await upstream.read_up_to(BUFFERED_BYTES)
        if upstream.ended:
            headers.pop("content-length", None)
            return web.Response(status=upstream.status, headers=headers, body=self._seen(upstream.status, start))
        await self.client.open(upstream.status, headers)
        await self.client.send(start)
        while data := await upstream.read():
            if self._foreign is not None:
                self._foreign.moved(answers=True)
            await self.client.send(data)
        return await self.client.finish()

    async def _translate_body(self, upstream: Upstream, translation: Translation) -> web.StreamResponse:
        if upstream.status != web.HTTPOk.status_code:
            body = translation.refusal(upstream.status, await self._envelope_of(upstream))
        else:
            whole = await upstream.read_up_to(TRANSLATED_BYTES)
            if not upstream.ended:
                raise WorkerLostError(f"the worker's answer is larger than {TRANSLATED_BYTES} bytes")
            try:
                body = translation.whole(self._seen(upstream.status, whole))
            except ValueError as error:
                raise WorkerLostError(f"the worker's answer cannot be translated: {error}") from None
        headers = {name: upstream.headers[name] for name in ("retry-after",) if name in upstream.headers}
        return web.Response(status=upstream.status, headers=headers, body=body, content_type="application/json")

    def _seen(self, status: int, whole: bytes) -> bytes:
        """A whole answer, as the client gets it."""
        return whole if self._foreign is None else self._foreign.body(status, whole)

    async def _envelope_of(self, upstream: Upstream) -> dict[str, Any]:
        """The error a worker answered with, in its own words if it has any."""
        body = self._seen(upstream.status, await upstream.read_up_to(_ERROR_BODY_BYTES))
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError:
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            return {"error": answer["error"]}
        return WorkerLostError(f"the worker answered {upstream.status} without a stream").envelope()

    async def give_up(self, status: int, envelope: dict[str, Any]) -> web.StreamResponse:
        """End an answer that is already on its way; one that was already whole stays so."""
        if self.client.finished:
            return self.client.response
        self.record.broken = status
        if self.client.response.content_type == self.stream_type:
            return await self.client.fail(self._error_event(status, envelope))
        drop_client(self._request)
        return self.client.response

    def _error_event(self, status: int, envelope: dict[str, Any]) -> bytes:
        if self._translation is not None:
            return self._translation.failure(status, envelope)
        return b"data: " + msgspec.json.encode(envelope) + b"\n\n"

    async def _why(self, lease: Lease, exc: Exception) -> str:
        """The pool's own reason if it comes in time, else what the connection showed."""
        await asyncio.wait((lease.lost,), timeout=self._bounds.why_lost_s)
        if lease.lost.done() and not lease.lost.cancelled():
            return lease.lost.result()
        return str(exc) or type(exc).__name__


@contextmanager
def ending_when_lost(lease: Lease, grace_s: float) -> Iterator[asyncio.Timeout]:
    """A timeout that starts when the worker is gone: a process it left behind may hold the connection open."""
    bound = asyncio.timeout(None)
    left = False

    def start(_lost: asyncio.Future[str]) -> None:
        # A callback that is already scheduled still runs after its removal.
        if not left:
            bound.reschedule(asyncio.get_running_loop().time() + grace_s)

    lease.lost.add_done_callback(start)
    try:
        yield bound
    finally:
        left = True
        lease.lost.remove_done_callback(start)


async def _read_to_end(upstream: Upstream, deadline_s: float) -> None:
    """Let the worker finish by itself what is already whole for the client, whose leaving now changes nothing."""
    try:
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(deadline_s):
                while await upstream.read():
                    pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
