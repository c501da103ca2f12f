"""A request's way from one worker to the next, until there is an answer or none can be had.

Owns the single replay of a request whose worker died before any of its answer was sent, what waiting streams are told,
and the list of requests that can be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from swapd.api.translation import EVENT_STREAM
from swapd.errors import (
    QueueTimeoutError,
    RequestCancelledError,
    SwapdError,
    WorkerLostError,
)
from swapd.http.exchange import Bounds, Exchange, Outgoing, ToldError, WorkerGoneError
from swapd.http.record import Record
from swapd.http.stream import (
    keeping_alive,
)
from swapd.http.waiting import News
from swapd.observe.metrics import Metrics
from swapd.pool.door import Door
from swapd.pool.lease import Lease

log = structlog.get_logger(__name__)

ATTEMPTS = 2


class Relay:
    def __init__(self, door: Door, metrics: Metrics, bounds: Bounds | None = None) -> None:
        self._door = door
        self._metrics = metrics
        self._bounds = bounds or Bounds()
        self._open: dict[str, asyncio.Timeout] = {}

    def cancel(self, request_id: str) -> bool:
        """End a request, waiting or running, as if its client had left, but tell it. False if there is none."""
        scope = self._open.get(request_id)
        if scope is not None and not scope.expired():
            scope.reschedule(asyncio.get_running_loop().time())
        return scope is not None

    async def answer(self, request: web.Request, record: Record, outgoing: Outgoing) -> web.StreamResponse:
        """Wait for a place, send the request, relay the answer.

        Raises `SwapdError` while the status is still open. After that an event stream ends with an error event and
        any other answer with a cut connection. A client that goes away cancels all of it.
        """
        record.client = outgoing.ticket.client
        exchange = Exchange(self._door, self._metrics, self._bounds, request, record, outgoing)
        try:
            return await self._until_cancelled(exchange)
        except ToldError as told:
            return await exchange.give_up(told.status, told.envelope)
        except SwapdError as error:
            if not exchange.client.committed:
                raise
            log.warning("answer broke", why=error.message)
            return await exchange.give_up(error.status, error.envelope())
        except Exception:
            if not exchange.client.committed:
                raise
            log.exception("answer broke")
            unexpected = SwapdError("the daemon failed to relay this answer; its log says why")
            return await exchange.give_up(unexpected.status, unexpected.envelope())

    async def _until_cancelled(self, exchange: Exchange) -> web.StreamResponse:
        request_id = exchange.record.request_id
        scope = self._open[request_id] = asyncio.timeout(None)
        try:
            async with scope:
                return await self._with_comments(exchange)
        except TimeoutError:
            if not scope.expired():
                raise
            raise RequestCancelledError(f"request {request_id} was cancelled by somebody") from None
        finally:
            del self._open[request_id]

    async def _with_comments(self, exchange: Exchange) -> web.StreamResponse:
        outgoing = exchange.outgoing
        if not outgoing.stream:
            return await self._somewhere(exchange)
        if exchange.stream_type != EVENT_STREAM:
            return await self._somewhere(exchange)
        news = News(
            exchange.record,
            self._door.place,
            comment_every_s=self._bounds.comment_every_s,
            loading_text=outgoing.loading_text,
        )
        async with keeping_alive(exchange.client, news.every_s, news) as comments:
            exchange.comments = comments
            return await self._somewhere(exchange)

    async def _somewhere(self, exchange: Exchange) -> web.StreamResponse:
        """From one target to the next, for as long as the client has seen nothing of an answer."""
        while True:
            try:
                return await self._with_replay(exchange)
            except SwapdError as error:
                elsewhere = exchange.outgoing.elsewhere
                if elsewhere is None or exchange.client.answered:
                    raise
                exchange.turn_to(await elsewhere.after(error))

    async def _with_replay(self, exchange: Exchange) -> web.StreamResponse:
        model_id = exchange.outgoing.ticket.model_id
        attempts = 1 if exchange.may_go_elsewhere else ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                async with self._lease(exchange) as lease:
                    exchange.record.waited_s += lease.waited_s
                    exchange.record.granted = True
                    return await exchange.run(lease)
            except WorkerGoneError as gone:
                if exchange.client.answered or attempt == attempts:
                    raise WorkerLostError(f"the worker of {model_id} was lost: {gone}") from None
                log.info("request replayed", model=model_id, why=str(gone))
        raise AssertionError("every attempt returns or raises")

    @asynccontextmanager
    async def _lease(self, exchange: Exchange) -> AsyncIterator[Lease]:
        """A place, within the time that the request may wait for it. Raises `QueueTimeoutError` after that."""
        outgoing = exchange.outgoing
        bound = asyncio.timeout(outgoing.within_s)
        began_s = asyncio.get_running_loop().time()
        try:
            async with bound, self._door.lease(outgoing.ticket) as lease:
                bound.reschedule(None)
                yield lease
        except TimeoutError:
            if not bound.expired():
                raise
            exchange.record.waited_s += asyncio.get_running_loop().time() - began_s
            raise QueueTimeoutError(
                f"model {outgoing.ticket.model_id!r} had no place within {outgoing.within_s:g} s (max_wait)"
            ) from None
